"""Update: the named tensors that a client sends, lying where they arrived."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from fedcore.dtypes import STORAGE
from fedcore.errors import FormatError, LayoutError
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
from fedcore.updates.header import Header, arrange, pack_header, parse_header
from fedcore.updates.layout import Layout, shown
from fedcore.updates.metadata import check_identity, pack_metadata, unpack_metadata
from fedcore.updates.pairs import LoraPair, lora_pairs


class TensorView(Mapping[str, np.ndarray]):
    """name -> read-only array over an update's bytes, in canonical order; made when asked for, data never copied."""

    def __init__(self, layout: Layout, buffer: np.ndarray, offsets: np.ndarray):
        self._layout, self._buffer, self._offsets = layout, buffer, offsets

    def __getitem__(self, name: str) -> np.ndarray:
        k = self._layout.index[name]
        start, size = int(self._offsets[k]), int(self._layout.nbytes[k])
        return self._buffer[start : start + size].view(STORAGE[self._layout.dtypes[k]]).reshape(self._layout.shapes[k])

    def __iter__(self) -> Iterator[str]:
        return iter(self._layout.names)

    def __len__(self) -> int:
        return len(self._layout)


@dataclass(frozen=True, eq=False)
class Update:
    """What one client sends. Make one with `from_tensors`, `from_peft` or `from_bytes`.

    layout          names, shapes and dtypes in canonical order
    buffer          1-D uint8: the bytes that hold the tensors (a memory-mapped file, a message, memory of its own)
    offsets         (s,) int64: bytes from the start of the buffer to each tensor, in canonical order; any alignment
    scaling         module -> scale of its Δ = scale · B · A; one for every LoRA pair
    num_examples    what the update was trained on, at least 1
    client_id       who sent it; '' if nobody said
    base            name or digest of the base model; None if nobody said
    adapter_config  content of PEFT's adapter_config.json, true to the ranks and to `scaling`; {} if there is none
    counted         whether somebody said num_examples; False where a file is silent and 1 was taken
    """

    layout: Layout
    buffer: np.ndarray
    offsets: np.ndarray
    scaling: dict[str, float]
    num_examples: int
    client_id: str
    base: str | None
    adapter_config: dict[str, Any]
    counted: bool = True

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
        return _checked(layout, buffer, offsets, scaling, num_examples, client_id, base, adapter_config or {})

    @classmethod
    def from_peft(
        cls, directory: str | os.PathLike[str], *, num_examples: int | None = None, client_id: str | None = None
    ) -> Update:
        """An update over the memory-mapped adapter_model.safetensors of a PEFT directory; only its header is read.

        num_examples and client_id: the argument, else what fedcore wrote into the file, else 1 and the directory's
        name. The file must not be changed while the update lives. Raises MissingError or FormatError naming the file or
        directory and the tensor, StorageError if it may not be read.
        """
        config, buffer, source = peft_directory.open_adapter(directory)
        header = parse_header(buffer, source)
        said = unpack_metadata(header.metadata, source)
        client_id = said.get("client_id") or peft_directory.name_of(directory) if client_id is None else client_id
        counted = num_examples is not None or "num_examples" in said
        num_examples = said.get("num_examples", 1) if num_examples is None else num_examples
        base = said.get("base") or config.get("base_model_name_or_path") or None
        return _checked_file(str(directory), header, buffer, None, num_examples, client_id, base, config, counted)

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

    @cached_property
    def tensors(self) -> Mapping[str, np.ndarray]:
        """name -> read-only array, in canonical order; bf16 as fedcore.dtypes.BF16."""
        return TensorView(self.layout, self.buffer, self.offsets)

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

    def digest(self) -> str:
        """SHA-256 (hex) of the content: layout, scaling, the tensors' bytes in canonical order; not of who sent it."""
        scales = json.dumps({module: scale.hex() for module, scale in sorted(self.scaling.items())})
        sha256 = hashlib.sha256(f"fedcore update 1\n{self.layout.digest}\n{scales}\n".encode())
        for k in range(len(self.layout)):
            sha256.update(self._data(k))
        return sha256.hexdigest()

    def to_bytes(self) -> bytes:
        """Safetensors bytes that hold everything; equal updates give equal bytes."""
        return b"".join(self._file(scaling=self.scaling, adapter_config=self.adapter_config))

    def to_peft(self, directory: str | os.PathLike[str]) -> None:
        """Write a PEFT directory, whole or not at all: beside, flushed to disk, then renamed. Its parents are made.

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
        peft_directory.write_adapter(directory, config, self._file())

    def _data(self, k: int) -> memoryview:
        start = int(self.offsets[k])
        return self.buffer[start : start + int(self.layout.nbytes[k])].data

    def _file(self, **also: Any) -> list[bytes | memoryview]:
        """The parts of a safetensors file, in order."""
        count = {"num_examples": self.num_examples} if self.counted else {}
        metadata = pack_metadata(client_id=self.client_id, **count, base=self.base, **also)
        order, _ = arrange(self.layout)
        return [pack_header(self.layout, metadata), *(self._data(k) for k in order)]


def _checked_file(source: str, header: Header, buffer: np.ndarray, *rest: Any) -> Update:
    """`_checked` for bytes from outside: whatever is wrong is a FormatError that names them."""
    try:
        return _checked(header.layout, buffer, header.offsets, *rest)
    except LayoutError as error:
        raise FormatError(f"{source}: {error}") from None


def _checked(
    layout: Layout,
    buffer: np.ndarray,
    offsets: np.ndarray,
    scaling: Mapping[str, Any] | None,
    num_examples: int,
    client_id: str,
    base: str | None,
    adapter_config: Mapping[str, Any],
    counted: bool = True,
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
    return Update(layout, view, offsets, scales, int(num_examples), client_id, base, config, counted)
