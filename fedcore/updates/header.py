"""The safetensors format: its header read without touching the data, and written deterministically.

A file is 8 bytes of little-endian header length, a JSON object {name: {dtype, shape, data_offsets}}, then the data,
which the tensors cover without holes or overlaps (github.com/huggingface/safetensors, README, "Format"). The header is
parsed here so that the data can stay where it lies, and written here because the library writes its metadata in an
order that changes from run to run.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from fedcore.encoding import MOST_SCALES
from fedcore.errors import FormatError
from fedcore.numbers import shown
from fedcore.updates.layout import MOST_DIMENSIONS, Layout, name_problem
from fedcore.updates.pieces import ITEMSIZES, KEY, declared_layout, format_entries, pieces_of

#: the format's own limit on the header, in bytes
LONGEST_HEADER = 100_000_000
_FIELDS = {"dtype", "shape", "data_offsets"}


class Header(NamedTuple):
    """What a header says.

    offsets    (s,) int64: where each tensor starts, in bytes from the start of the buffer, in canonical order
    scales     (3, s) int64: where its scale arrays start; 0 where it has none
    metadata   the file's own strings, {} if it has none
    """

    layout: Layout
    offsets: np.ndarray
    scales: np.ndarray
    metadata: dict[str, str]


def parse_json(text: bytes, source: str) -> dict[str, Any]:
    """A JSON object, strictly: UTF-8, no repeated keys, no NaN or Infinity. Raises FormatError naming `source`."""
    return json_object(text, source, object_pairs_hook=_unique, parse_constant=_refuse_constant)


def json_object(text: bytes | str, source: str, remedy: str = "write the file again", **options: Any) -> dict[str, Any]:
    """A JSON object in UTF-8, read as `json.loads` reads it with these options. Raises FormatError naming `source`.

    For whatever comes from outside, as a text that ends too early or nests too deeply must be an error of its own.
    """
    try:
        value = json.loads(text.decode() if isinstance(text, bytes) else text, **options)
    except RecursionError:
        raise FormatError(f"{source}: its JSON is nested too deeply; {remedy}") from None
    except ValueError as error:  # of JSON, of UTF-8, or a number of too many digits
        raise FormatError(f"{source}: not valid JSON ({shown(str(error))}); {remedy}") from None
    if not isinstance(value, dict):
        raise FormatError(f"{source}: got a JSON {type(value).__name__}, expected an object; {remedy}")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        [(key, count)] = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {shown(key)} occurs {count} times")
    return result


def _refuse_constant(constant: str) -> None:
    raise ValueError(f"{constant} is not a JSON number")


def parse_header(buffer: np.ndarray, source: str) -> Header:
    """The header of safetensors bytes (a 1-D uint8 array); reads those of the header alone and copies no tensor.

    Offsets need not be aligned. Raises FormatError naming `source` and the tensor for anything that the format or
    fedcore does not allow; what is allocated is bounded by the bytes that are really there.
    """
    length = header_length(buffer[:8].tobytes(), buffer.size, source)
    return parse_entries(buffer[8 : 8 + length].tobytes(), buffer.size, source)


def header_length(first: bytes, size: int, source: str) -> int:
    """The bytes of JSON that follow the first 8 of `size` bytes. Raises FormatError naming `source`."""
    if size < 8:
        raise FormatError(f"{source}: has {size} bytes, expected at least 8; it is truncated: fetch it again")
    length = int.from_bytes(first, "little")
    if length > min(LONGEST_HEADER, size - 8):
        raise FormatError(
            f"{source}: claims a header of {length} bytes and has {size - 8} after its length "
            f"(at most {LONGEST_HEADER} are allowed); it is truncated or no safetensors file"
        )
    return length


def parse_entries(text: bytes, size: int, source: str) -> Header:
    """The header whose JSON is `text`, of safetensors bytes `size` in all. Raises as `parse_header` does."""
    length = len(text)
    entries = parse_json(text, f"{source}: header")
    metadata = _metadata(entries.pop("__metadata__", {}), source)
    if not entries:
        raise FormatError(f"{source}: has no tensor, expected at least one; write the file again")
    start, data = 8 + length, size - 8 - length
    spans = {name: _span(name, entry, data, source) for name, entry in entries.items()}
    _check_cover(spans, data, source)
    plain = {name: (entry["dtype"], tuple(entry["shape"])) for name, entry in entries.items()}
    text = metadata.get(KEY, "{}").encode(errors="surrogatepass")
    said = parse_json(text, f"{source}: metadata {KEY!r}")
    layout = declared_layout(plain, said, source)
    if layout.formats == layout.dtypes:
        offsets = np.array([[start + spans[name][0] for name in layout.names]], np.int64)
        return Header(layout, offsets[0], np.zeros((MOST_SCALES, len(layout)), np.int64), metadata)
    offsets = offsets_of(layout, [start + spans[piece.name][0] for piece in pieces_of(layout)])
    return Header(layout, offsets[0], offsets[1:], metadata)


def offsets_of(layout: Layout, starts: Sequence[int] | np.ndarray) -> np.ndarray:
    """(4, s) int64: bytes to the payload and the scale arrays of each tensor, from where each piece starts."""
    offsets = np.zeros((1 + MOST_SCALES, len(layout)), np.int64)
    for piece, start in zip(pieces_of(layout), starts, strict=True):
        offsets[piece.part, piece.tensor] = start
    return offsets


def _metadata(value: object, source: str) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise FormatError(f"{source}: __metadata__ must map strings to strings; write the file again")
    return value


def _natural(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def _span(name: str, entry: object, data: int, source: str) -> tuple[int, int]:
    """The checked data_offsets (begin, end) of one tensor, bytes from the start of the data."""

    def refuse(what: str) -> FormatError:
        return FormatError(f"{source}: tensor {shown(name)}: {what}")

    if problem := name_problem(name):
        raise refuse(problem)
    if not isinstance(entry, dict) or entry.keys() != _FIELDS:
        raise refuse("expected exactly the fields dtype, shape, data_offsets; write the file again")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEMSIZES:
        raise refuse(f"got dtype {shown(dtype)}, expected one of F32, F16, BF16; convert the tensor")
    if not isinstance(shape, list) or len(shape) > MOST_DIMENSIONS or not all(map(_natural, shape)):
        raise refuse(f"got shape {shown(shape)}, expected at most {MOST_DIMENSIONS} sizes from 0 to 2**63-1")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_natural, offsets)):
        raise refuse(f"got data_offsets {shown(offsets)}, expected [begin, end] in bytes")
    begin, end = offsets
    if begin > end:
        raise refuse(f"data_offsets [{begin}, {end}] end before they begin; write the file again")
    if end > data:
        raise refuse(f"ends at byte {end} of {data} bytes of data; it is truncated: fetch it again")
    itemsize = ITEMSIZES[dtype]
    # an empty tensor may still have sizes that no array can take, such as [2**62, 2**62, 0]
    if math.prod(size or 1 for size in shape) * itemsize >= 1 << 63:
        raise refuse(f"got shape {shown(shape)}, whose sizes overflow; write the file again")
    if end - begin != (expected := math.prod(shape) * itemsize):
        raise refuse(
            f"has {end - begin} bytes, expected {expected} for {dtype} of shape {shown(shape)}; fetch it again"
        )
    return begin, end


def _check_cover(spans: dict[str, tuple[int, int]], data: int, source: str) -> None:
    """Refuse overlaps, holes and bytes after the last tensor: every byte belongs to exactly one tensor."""
    reached = 0
    for name, (begin, end) in sorted(spans.items(), key=lambda item: item[1]):
        if begin != reached:
            what = "overlaps the one before it" if begin < reached else "leaves a hole before it"
            raise FormatError(f"{source}: tensor {shown(name)}: starts at byte {begin}, expected {reached}: it {what}")
        reached = end
    if reached != data:
        raise FormatError(f"{source}: has {data - reached} bytes after its last tensor, expected none; fetch it again")


def arrange(layout: Layout) -> tuple[list[int], np.ndarray]:
    """How a file is laid out: positions of its pieces in the order in which their data follow, and (pieces,) offsets.

    Offsets are in bytes by position. Wider dtypes come first, so that every piece is aligned when the data are; equal
    ones in canonical order.
    """
    pieces = pieces_of(layout)
    order = sorted(range(len(pieces)), key=lambda k: -ITEMSIZES[pieces[k].code])
    sizes = np.array([piece.nbytes for piece in pieces], np.int64)
    ends = np.cumsum(sizes[order])
    offsets = np.empty(len(pieces), np.int64)
    offsets[order] = ends - sizes[order]
    return order, offsets


def pack_header(layout: Layout, metadata: dict[str, str]) -> bytes:
    """The header, its 8 bytes of length included, for data that follow as `arrange` says; deterministic."""
    pieces, (order, offsets) = pieces_of(layout), arrange(layout)
    if formats := format_entries(layout):
        metadata = metadata | {KEY: json.dumps(formats, separators=(",", ":"))}
    entries: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    for k in order:
        piece, start = pieces[k], int(offsets[k])
        span = [start, start + piece.nbytes]
        entries[piece.name] = {"dtype": piece.code, "shape": piece.shape, "data_offsets": span}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
