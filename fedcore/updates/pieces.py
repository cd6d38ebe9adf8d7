"""What a tensor is in a file: itself, or where its format is not its dtype the pieces that encode it.

A tensor that travels in another format than its dtype stands under its own name, as documented here, and its scales
under names made from it:

format                       file dtype and shape under NAME                            beside it
'float16', 'bfloat16', ...   F16, BF16, ...; the tensor's shape                         –
'int8'                       I8; the tensor's shape                                     NAME.absmax, F32 (blocks,)
'nf4'                        U8 (bytes, 1), two elements a byte, the first in the high  NAME.absmax, U8 (blocks,)
                             half, as bitsandbytes has it                               NAME.nested_absmax, F32 (n,)
                                                                                        NAME.nested_offset, F32 (1,)

The file's metadata say under KEY, in JSON, {NAME: {"format": ..., "dtype": ..., "shape": [...]}} for each such tensor:
how it travels, what it decodes to be rounded to where it is written out, and its true shape. Blocks and arithmetic:
fedcore/quantized.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from fedcore.dtypes import ROW_DTYPES, STORAGE
from fedcore.errors import FormatError
from fedcore.numbers import shown
from fedcore.quantized import QUANTIZED, SCALES, part_sizes
from fedcore.updates.layout import MOST_DIMENSIONS, Layout, name_problem

KEY = "fedcore.formats"
#: how a tensor may travel
WIRE_FORMATS = (*ROW_DTYPES, *QUANTIZED)
_CODES = {np.dtype("i1"): "I8", np.dtype("u1"): "U8", np.dtype("<f4"): "F32"}
PLAIN = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
ITEMSIZES = {"F32": 4, "F16": 2, "BF16": 2, "I8": 1, "U8": 1}


class Piece(NamedTuple):
    """One entry of a file.

    name, code, shape   of the entry; code is safetensors' own name of the dtype
    tensor, part        which tensor of the layout, and which of its arrays: 0 is the payload, then the scales
    """

    name: str
    code: str
    shape: tuple[int, ...]
    tensor: int
    part: int

    @property
    def nbytes(self) -> int:
        """Bytes of its data."""
        return math.prod(self.shape) * ITEMSIZES[self.code]


def pieces_of(layout: Layout) -> list[Piece]:
    """The entries of a file, tensor by tensor in canonical order."""
    found = []
    for k, (name, shape, format) in enumerate(zip(layout.names, layout.shapes, layout.formats, strict=True)):
        if format not in SCALES:
            found.append(Piece(name, PLAIN[format], shape, k, 0))
            continue
        (kind, size), *scales = part_sizes(format, math.prod(shape))
        found.append(Piece(name, _CODES[kind], shape if format == "int8" else (size, 1), k, 0))
        for part, ((dtype, length), (suffix, _)) in enumerate(zip(scales, SCALES[format], strict=True), 1):
            found.append(Piece(f"{name}.{suffix}", _CODES[dtype], (length,), k, part))
    return found


def repeated_name(layout: Layout) -> str | None:
    """In words, what keeps the pieces' names from standing in one file, or None."""
    seen: dict[str, Piece] = {}
    for piece in pieces_of(layout):
        if problem := name_problem(piece.name):
            return f"tensor {shown(piece.name)}: {problem}"
        if piece.name in seen:
            return f"tensor {shown(piece.name)}: is also the name of a scale array of a quantised tensor; rename it"
        seen[piece.name] = piece
    return None


def format_entries(layout: Layout) -> dict[str, dict[str, Any]]:
    """What stands under KEY: the tensors whose format is not their dtype; {} if there is none."""
    return {
        name: {"format": format, "dtype": dtype, "shape": list(shape)}
        for name, shape, dtype, format in zip(layout.names, layout.shapes, layout.dtypes, layout.formats, strict=True)
        if format != dtype
    }


def declared_layout(plain: Mapping[str, tuple[str, tuple[int, ...]]], said: Mapping[str, Any], source: str) -> Layout:
    """The layout of a file of these entries, name -> (code, shape), whose metadata say `said`.

    Raises FormatError naming `source` and the tensor for metadata that no fedcore writes, and for pieces that are
    missing, of another dtype or of another size than the true shape asks for.
    """
    layout = Layout.from_entries(
        ((name, tuple(entry["shape"]), entry["dtype"]) for name, entry in said.items()),
        formats={name: _checked(name, entry, source)["format"] for name, entry in said.items()},
    )
    if problem := repeated_name(layout):
        raise FormatError(f"{source}: {problem}")
    pieces = pieces_of(layout)
    for piece in pieces:
        name = layout.names[piece.tensor]
        if piece.name not in plain:
            raise FormatError(f"{source}: tensor {shown(name)}: its {shown(piece.name)} is missing; send both")
        if plain[piece.name] != (piece.code, piece.shape):
            code, shape = plain[piece.name]
            raise FormatError(
                f"{source}: tensor {shown(name)}: {shown(piece.name)} is {code} of shape {shown(shape)}, expected "
                f"{piece.code} of shape {shown(piece.shape)} for {layout.formats[piece.tensor]} of shape "
                f"{shown(layout.shapes[piece.tensor])}; write the file again"
            )
    taken = {piece.name for piece in pieces}
    dtypes = {code: dtype for dtype, code in PLAIN.items()}
    rest = []
    for name, (code, shape) in plain.items():
        if name in taken:
            continue
        if code not in dtypes:
            raise FormatError(
                f"{source}: tensor {shown(name)}: got dtype {shown(code)}, expected one of {', '.join(dtypes)}; "
                "convert the tensor"
            )
        rest.append((name, shape, dtypes[code]))
    if not taken:
        return Layout.from_entries(rest)
    both = [*rest, *zip(layout.names, layout.shapes, layout.dtypes, strict=True)]
    return Layout.from_entries(both, formats=dict(zip(layout.names, layout.formats, strict=True)))


def _checked(name: str, entry: Any, source: str) -> dict[str, Any]:
    where = f"{source}: metadata {KEY!r}: tensor {shown(name)}"
    if not isinstance(entry, dict) or entry.keys() != {"format", "dtype", "shape"}:
        raise FormatError(f"{where}: expected exactly the fields format, dtype, shape; write the file again")
    if entry["format"] not in WIRE_FORMATS or entry["dtype"] not in ROW_DTYPES or entry["format"] == entry["dtype"]:
        raise FormatError(
            f"{where}: got {shown(entry['format'])} for {shown(entry['dtype'])}, expected a format of "
            f"{', '.join(WIRE_FORMATS)} other than the dtype; write the file again"
        )
    shape = entry["shape"]
    sizes = isinstance(shape, list) and len(shape) <= MOST_DIMENSIONS
    if not sizes or not all(type(size) is int and 0 <= size < 1 << 60 for size in shape):
        raise FormatError(f"{where}: got shape {shown(shape)}, expected at most {MOST_DIMENSIONS} sizes from 0")
    if math.prod(size or 1 for size in shape) * STORAGE[entry["dtype"]].itemsize >= 1 << 63:
        raise FormatError(f"{where}: got shape {shown(shape)}, whose sizes overflow; write the file again")
    return entry
