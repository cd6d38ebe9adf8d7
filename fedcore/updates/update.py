"""Update: the named tensors that a client sends, lying where they arrived."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fedcore.encoding import MOST_SCALES
from fedcore.errors import FormatError, LayoutError
from fedcore.numbers import got, shown, shown_bytes
from fedcore.quantized import Quantized
from fedcore.updates import directory as peft_directory
from fedcore.updates.arrays import gather, names_values
from fedcore.updates.config import canonical_config, minimal_config
from fedcore.updates.encode import encode
from fedcore.updates.file import File
from fedcore.updates.header import parse_header
from fedcore.updates.layout import Layout
from fedcore.updates.making import checked, from_file, from_header, read_header
from fedcore.updates.metadata import unpack_metadata
from fedcore.updates.pairs import LoraPair, lora_pairs
from fedcore.updates.pieces import pieces_of
from fedcore.updates.scales import Scales
from fedcore.updates.view import TensorView
from fedcore.updates.writing import content_digest, decoded_parts, file_parts


@dataclass(frozen=True, eq=False, repr=False)
class Update:
    """What one client sends. Make one with `from_tensors`, `from_peft`, `from_bytes` or `open`.

    layout          names, shapes and dtypes in canonical order
    buffer          1-D uint8: the bytes that hold the tensors (a memory-mapped file, a message, memory of its own); of
                    no bytes for one made by `open`, whose tensors stay in `file`
    offsets         (s,) int64: bytes from the start of the buffer to each tensor, in canonical order; any alignment
    scales          (3, s) int64: the same to the scale arrays of those that are quantised
    scaling         module -> scale of its Δ = scale · B · A; one for every LoRA pair; read-only
    num_examples    what the update was trained on, from 1 to 2**40
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

    def __post_init__(self) -> None:
        object.__setattr__(self, "scaling", Scales(self.scaling))

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

        Raises DTypeError, LayoutError, ShapeError (a tensor whose storage was freed) or WeightError naming the tensor,
        module or field.
        """
        layout, buffer, offsets = gather(tensors)
        scales = np.zeros((MOST_SCALES, len(layout)), np.int64)
        config = {} if adapter_config is None else adapter_config
        return checked(cls, layout, buffer, offsets, scales, scaling, num_examples, client_id, base, config)

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
        return from_file(cls, directory, file, header, buffer, config, num_examples, client_id)

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
        header = read_header(file)
        return from_file(cls, path, file, header, np.empty(0, np.uint8), config, num_examples, client_id)

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
        return from_header(cls, source, header, buffer, scaling, *identity, config, "num_examples" in said)

    def __repr__(self) -> str:
        who = f" client {shown(self.client_id)}" if self.client_id else ""
        return f"<Update{who}: {len(self.layout)} tensors, {shown_bytes(self.nbytes)}>"

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

    def with_tensors(
        self, tensors: Mapping[str, Any], *, client_id: str | None = None, num_examples: int | None = None
    ) -> Update:
        """The same update with other values for the tensors that are named, of any rank: a copy.

        tensors                 name -> array as for `from_tensors`; those not named stay, decoded to their values
        client_id, num_examples whose it is from now on; None: who sent this one

        Raises LayoutError naming a tensor that this update has not, and what `from_tensors` raises.
        """
        if not names_values(tensors):
            raise LayoutError(f"{got('tensors', tensors)}, expected a mapping of names to arrays")
        if unknown := sorted(set(tensors) - self.layout.index.keys()):
            raise LayoutError(f"tensor {shown(unknown[0])}: not in the update; pass only names of its layout")
        found = Update.from_tensors(
            dict(self.tensors) | dict(tensors),
            num_examples=self.num_examples if num_examples is None else num_examples,
            client_id=self.client_id if client_id is None else client_id,
            scaling=self.scaling,
            base=self.base,
            adapter_config=self.adapter_config,
        )
        return found if num_examples is not None or self.counted else replace(found, counted=False)

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
        return content_digest(self)

    def to_bytes(self) -> bytes:
        """Safetensors bytes that hold everything; equal updates give equal bytes."""
        return b"".join(self.parts())

    def __reduce__(self) -> tuple[Any, ...]:
        """A pickle holds the bytes of `to_bytes`, also of what lies in a file."""
        return Update.from_bytes, (self.to_bytes(),)

    def parts(self) -> Iterator[bytes | memoryview]:
        """What `to_bytes` gives, in parts, each valid until the next; of what lies in a file a few MB at a time."""
        return file_parts(self)

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
        peft_directory.write_adapter(directory, config, decoded_parts(self))
