"""Update: the named tensors that a client sends, lying where they arrived."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fedcore.dtypes import STORAGE, to_float64
from fedcore.encoding import MOST_SCALES
from fedcore.errors import FormatError, LayoutError
from fedcore.quantized import QUANTIZED, Quantized, part_sizes, to_dtype
from fedcore.updates import directory as peft_directory
from fedcore.updates.arrays import gather
from fedcore.updates.config import (
    canonical_config,
    config_scales,
    fitted_config,
    given_scales,
    minimal_config,
    refuse_variants,
)
from fedcore.updates.encode import check_scales, encode
from fedcore.updates.file import File
from fedcore.updates.header import Header, arrange, header_length, pack_header, parse_entries, parse_header
from fedcore.updates.layout import Layout, shared_layout, shown
from fedcore.updates.metadata import check_identity, pack_metadata, unpack_metadata
from fedcore.updates.pairs import LoraPair, lora_pairs
from fedcore.updates.pieces import PLAIN, Piece, pieces_of

#: bytes of a tensor in a file that are in memory at a time while it is hashed or copied
PIECE = 1 << 22


class TensorView(Mapping[str, np.ndarray]):
    """name -> read-only array over an update's bytes, in canonical order; made when asked for.

    What lies as its dtype in a buffer is never copied; what travels in another format is decoded to fp32 each time, and
    what lies in a file is read from it each time.
    """

    def __init__(self, update: Update):
        self._update, self._layout = update, update.layout

    def __getitem__(self, name: str) -> np.ndarray:
        k = self._layout.index[name]
        found = self.stored(k)
        if isinstance(found, Quantized):
            found = found.to_float32()
        elif self._layout.formats[k] != self._layout.dtypes[k]:
            found = np.asarray(to_float64(found), np.float32)
        found.flags.writeable = False
        return found

    def stored(self, k: int) -> np.ndarray | Quantized:
        """A tensor as it lies, by its position."""
        layout, update = self._layout, self._update
        format, shape = layout.formats[k], layout.shapes[k]
        if format not in QUANTIZED:
            size = int(layout.nbytes[k])
            return update.bytes_at(int(update.offsets[k]), size).view(STORAGE[format]).reshape(shape)
        starts = (int(update.offsets[k]), *update.scales[:, k].tolist())
        if update.mapped:
            return Quantized.over(update.buffer, starts, format, shape, layout.dtypes[k])
        sizes = part_sizes(format, int(layout.sizes[k]))
        parts = [
            update.bytes_at(start, size * kind.itemsize).view(kind)
            for start, (kind, size) in zip(starts, sizes, strict=False)
        ]
        return Quantized(format, shape, parts[0], tuple(parts[1:]), layout.dtypes[k])

    def __iter__(self) -> Iterator[str]:
        return iter(self._update.layout.names)

    def __len__(self) -> int:
        return len(self._update.layout)


@dataclass(frozen=True, eq=False)
class Update:
    """What one client sends. Make one with `from_tensors`, `from_peft`, `from_bytes` or `open`.

    layout          names, shapes and dtypes in canonical order
    buffer          1-D uint8: the bytes that hold the tensors (a memory-mapped file, a message, memory of its own); of
                    no bytes for one made by `open`, whose tensors stay in `file`
    offsets         (s,) int64: bytes from the start of the buffer to each tensor, in canonical order; any alignment
    scales          (3, s) int64: the same to the scale arrays of those that are quantised
    scaling         module -> scale of its Δ = scale · B · A; one for every LoRA pair
    num_examples    what the update was trained on, at least 1
    client_id       who sent it; '' if nobody said
    base            name or digest of the base model; None if nobody said
    adapter_config  content of PEFT's adapter_config.json, true to the ranks and to `scaling`; {} if there is none
    counted         whether somebody said num_examples; False where a file is silent and 1 was taken
    file            the file that holds the tensors at `offsets`, mapped or not; None if there is none
    """

    layout: Layout
    buffer: np.ndarray
    offsets: np.ndarray
    scales: np.ndarray
    scaling: dict[str, float]
    num_examples: int
    client_id: str
    base: str | None
    adapter_config: dict[str, Any]
    counted: bool = True
    file: File | None = None

    @classmethod
    def from_tensors(
        cls,
        tensors: Mapping[str, Any],
        *,
        num_examples: int = 1,
        client_id: str = "",
        scaling: Mapping[str, float] | None = None,
        base: str | None = None,
        adapter_config: Mapping[str, Any] | None = None,
    ) -> Update:
        """An update with its own copy of the tensors, so that training on does not change it.

        tensors         name -> NumPy array or torch CPU tensor of any shape, fp32, fp16 or bf16
        scaling         module -> scale; without it adapter_config says the scales. Where both are given scaling counts,
                        and the config's ranks and alphas are brought in line

        Raises DTypeError, LayoutError or WeightError naming the tensor, module or field.
        """
        layout, buffer, offsets = gather(tensors)
        scales = np.zeros((MOST_SCALES, len(layout)), np.int64)
        return _checked(layout, buffer, offsets, scales, scaling, num_examples, client_id, base, adapter_config or {})

    @classmethod
    def from_peft(
        cls, directory: str | os.PathLike[str], *, num_examples: int | None = None, client_id: str | None = None
    ) -> Update:
        """An update over the memory-mapped adapter_model.safetensors of a PEFT directory; only its header is read.

        num_examples and client_id: the argument, else what fedcore wrote into the file, else 1 and the directory's
        name. The file must not be changed while the update lives: a map cannot notice one that is rewritten, and where
        one shrinks the operating system ends the process (SIGBUS). `Update.open`, or a budget for `fc.aggregate`, reads
        without a map and raises an error instead. Raises MissingError or FormatError naming the file or directory and
        the tensor, StorageError if it may not be read.
        """
        config, weights = peft_directory.open_adapter(directory)
        file = File.at(weights)
        buffer = peft_directory.map_file(weights)
        header = parse_header(buffer, str(weights))
        return _from_file(directory, file, header, buffer, config, num_examples, client_id)

    @classmethod
    def open(
        cls, path: str | os.PathLike[str], *, num_examples: int | None = None, client_id: str | None = None
    ) -> Update:
        """An update whose tensors stay in their file, without a map: only the header is read now.

        path   a PEFT directory, as for `from_peft`, or one safetensors file, as `to_bytes` writes it

        `fc.aggregate` reads such updates in tiles under its memory budget; `tensors` reads one tensor each time that it
        is asked for. A file that is changed after this raises FormatError or MissingError when it is read. Other
        arguments and errors as for `from_peft`.
        """
        config: dict[str, Any] | None = None
        weights = Path(path)
        # a path that leads nowhere was meant as a directory unless it is called like a file
        if weights.is_dir() or not (os.path.lexists(weights) or weights.suffix):
            config, weights = peft_directory.open_adapter(path)
        file = File.at(weights)
        header = _read_header(file)
        return _from_file(path, file, header, np.empty(0, np.uint8), config, num_examples, client_id)

    @classmethod
    def from_bytes(cls, data: bytes | memoryview | mmap.mmap, *, source: str = "message") -> Update:
        """An update over the bytes that `to_bytes` made, or any safetensors bytes without LoRA factors; never copied.

        `source` names the bytes in errors. Raises FormatError naming it and the tensor.
        """
        try:
            buffer = np.frombuffer(data, np.uint8) if len(data) else np.empty(0, np.uint8)
        except (TypeError, ValueError, BufferError) as error:
            raise FormatError(f"{source}: got {type(data).__name__} ({error}), expected contiguous bytes") from None
        header = parse_header(buffer, source)
        said = unpack_metadata(header.metadata, source)
        scaling, config = said.get("scaling", {}), said.get("adapter_config", {})
        identity = (said.get("num_examples", 1), said.get("client_id", ""), said.get("base"))
        return _checked_file(source, header, buffer, scaling, *identity, config, "num_examples" in said)

    @property
    def tensors(self) -> Mapping[str, np.ndarray]:
        """name -> read-only array, in canonical order; bf16 as fedcore.dtypes.BF16.

        A tensor that travels in another format than its dtype is decoded to fp32 when asked for, a copy each time.
        """
        return self._view

    @cached_property
    def _view(self) -> TensorView:
        return TensorView(self)

    def stored(self, name: str) -> np.ndarray | Quantized:
        """One tensor as it lies: an array of its format, or its payload and scales. Raises KeyError."""
        return self._view.stored(self.layout.index[name])

    @property
    def mapped(self) -> bool:
        """Whether the tensors lie in `buffer`; False where they are read from `file`."""
        return self.file is None or self.buffer.size > 0

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors as they lie and travel, arrays of scales included, without names and header."""
        return sum(piece.nbytes for piece in pieces_of(self.layout))

    def bytes_at(self, start: int, size: int) -> np.ndarray:
        """(size,) uint8 from byte `start` on: a read-only view of the buffer, or read from the file."""
        if self.file is None or self.mapped:
            return self.buffer[start : start + size]
        array = self.file.read(start, size)
        array.flags.writeable = False
        return array

    @cached_property
    def _pairs(self) -> tuple[dict[str, LoraPair], tuple[str, ...]]:
        pairs, dense = lora_pairs(self.layout)
        return {module: pair._replace(scale=self.scaling[module]) for module, pair in pairs.items()}, dense

    @property
    def modules(self) -> dict[str, LoraPair]:
        """module -> its LoRA pair, sorted by module: the name before '.lora_A.weight'."""
        return self._pairs[0]

    @property
    def dense(self) -> tuple[str, ...]:
        """Names of the tensors that belong to no pair: modules_to_save, biases, or all of a full model."""
        return self._pairs[1]

    def quantize(self, format: str) -> Update:
        """The same update with every tensor in another format, as it is to travel: a copy.

        format   'int8' (a quarter of fp32's bytes and a sixteenth of that again for scales), 'nf4' (an eighth and a
                 thirtieth of that again), or 'float32', 'float16', 'bfloat16', each element rounded once

        The tensors' dtypes stay what they were: what the update is written back as. Everything that takes an update
        takes this one; cohorts may mix formats. NaN and Inf stay visible (see Quantized.from_array). A tensor
        already in another format is decoded first, and loses again. Raises DTypeError for an unknown format, RangeError
        naming a tensor that does not fit it, LayoutError where a tensor has the name that a scale array needs.
        """
        layout, buffer, offsets = encode(self.tensors, self.layout, format)
        buffer.flags.writeable = False
        return replace(self, layout=layout, buffer=buffer, offsets=offsets[0], scales=offsets[1:], file=None)

    def digest(self) -> str:
        """SHA-256 (hex) of the content: layout, scaling, the tensors' bytes in canonical order; not of who sent it."""
        scales = json.dumps({module: scale.hex() for module, scale in sorted(self.scaling.items())})
        sha256 = hashlib.sha256(f"fedcore update 1\n{self.layout.digest}\n{scales}\n".encode())
        for piece in pieces_of(self.layout):
            for data in self._data(piece):
                sha256.update(data)
        return sha256.hexdigest()

    def to_bytes(self) -> bytes:
        """Safetensors bytes that hold everything; equal updates give equal bytes."""
        return b"".join(self.parts())

    def parts(self) -> Iterator[bytes | memoryview]:
        """What `to_bytes` gives, in parts, each valid until the next; of what lies in a file a few MB at a time."""
        order, _ = arrange(self.layout)
        pieces = pieces_of(self.layout)
        yield pack_header(self.layout, self._metadata(scaling=self.scaling, adapter_config=self.adapter_config))
        for k in order:
            yield from self._data(pieces[k])

    def to_peft(self, directory: str | os.PathLike[str]) -> None:
        """Write a PEFT directory, whole or not at all: beside, flushed to disk, then renamed. Its parents are made.

        Tensors that travel in another format are decoded, one at a time, and rounded to their dtype: what PEFT loads.
        What PEFT needs and adapter_config lacks is made from the tensors and scales; a scale that no alpha gives
        exactly is then rounded in its last bit. Raises ExistsError if `directory` exists, StorageError if the operating
        system refuses, LayoutError if there is neither a config nor a LoRA pair.
        """
        if not self.adapter_config and not self.modules:
            raise LayoutError(
                f"{directory}: the update has no LoRA pair, so no PEFT directory; write Update.to_bytes()"
            )
        config = self.adapter_config
        if self.modules:
            config = canonical_config(minimal_config(self.modules, self.dense, self.base) | config)
        peft_directory.write_adapter(directory, config, self._decoded_file())

    def _data(self, piece: Piece) -> Iterator[memoryview]:
        """The bytes of a piece; of a large one in a file, only a part is in memory at a time."""
        start = int(self.scales[piece.part - 1, piece.tensor] if piece.part else self.offsets[piece.tensor])
        step = max(piece.nbytes, 1) if self.mapped else PIECE
        for done in range(0, piece.nbytes, step):
            yield self.bytes_at(start + done, min(step, piece.nbytes - done)).data

    def _metadata(self, **also: Any) -> dict[str, str]:
        count = {"num_examples": self.num_examples} if self.counted else {}
        return pack_metadata(client_id=self.client_id, **count, base=self.base, **also)

    def _decoded_file(self) -> Iterator[bytes | memoryview]:
        """The parts of a safetensors file in which every tensor lies as its dtype; one is decoded at a time."""
        layout = self.layout.decoded()
        yield pack_header(layout, self._metadata())
        for k in arrange(layout)[0]:
            if self.layout.formats[k] == layout.dtypes[k]:
                yield from self._data(Piece(layout.names[k], PLAIN[layout.dtypes[k]], layout.shapes[k], k, 0))
            else:
                yield to_dtype(self.tensors[layout.names[k]], layout.dtypes[k]).tobytes()


def _read_header(file: File) -> Header:
    """The header of a safetensors file, by small reads: one that is cut short meanwhile is an error, not a signal."""
    length = header_length(file.read(0, min(8, file.size)).tobytes(), file.size, file.path)
    return parse_entries(file.read(8, length).tobytes(), file.size, file.path)


def _from_file(
    path: str | os.PathLike[str],
    file: File,
    header: Header,
    buffer: np.ndarray,
    config: dict[str, Any] | None,
    num_examples: int | None,
    client_id: str | None,
) -> Update:
    """The update in a file with a config beside it, or all by itself (config None), mapped or not."""
    said = unpack_metadata(header.metadata, file.path)
    name = peft_directory.name_of(path) if config is not None else Path(path).stem
    client_id = said.get("client_id") or name if client_id is None else client_id
    counted = num_examples is not None or "num_examples" in said
    num_examples = said.get("num_examples", 1) if num_examples is None else num_examples
    scaling = None if config is not None else said.get("scaling", {})
    config = said.get("adapter_config", {}) if config is None else config
    base = said.get("base") or config.get("base_model_name_or_path") or None
    fields = (scaling, num_examples, client_id, base, config, counted, file)
    return _checked_file(str(path), header, buffer, *fields)


def _checked_file(source: str, header: Header, buffer: np.ndarray, *rest: Any) -> Update:
    """`_checked` for bytes from outside: whatever is wrong is a FormatError that names them."""
    try:
        update = _checked(shared_layout(header.layout), buffer, header.offsets, header.scales, *rest)
    except LayoutError as error:
        raise FormatError(f"{source}: {error}") from None
    check_scales(update.layout, update.bytes_at, update.scales, source)
    return update


def _checked(
    layout: Layout,
    buffer: np.ndarray,
    offsets: np.ndarray,
    starts: np.ndarray,
    scaling: Mapping[str, Any] | None,
    num_examples: int,
    client_id: str,
    base: str | None,
    adapter_config: Mapping[str, Any],
    counted: bool = True,
    file: File | None = None,
) -> Update:
    """An Update whose fields agree. scaling None: the config says it. Raises LayoutError or WeightError."""
    check_identity(num_examples, client_id, base)
    pairs, _ = lora_pairs(layout)
    config = canonical_config(adapter_config)
    if pairs:
        refuse_variants(config)
    if scaling is None:
        if pairs and not config:
            raise LayoutError(f"module {shown(next(iter(pairs)))}: has no scale; pass scaling= or adapter_config=")
        scales = config_scales(config, pairs) if pairs else {}
    else:
        scales = given_scales(scaling, pairs)
        if pairs and config:
            config = fitted_config(config, {m: pair._replace(scale=scales[m]) for m, pair in pairs.items()})
    view = buffer.view()
    view.flags.writeable = False
    return Update(layout, view, offsets, starts, scales, int(num_examples), client_id, base, config, counted, file)
