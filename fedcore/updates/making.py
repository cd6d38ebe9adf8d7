"""Updates made of what came in: of files, messages and arrays, with fields that agree."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedcore.errors import FormatError, LayoutError
from fedcore.numbers import got, shown
from fedcore.updates import directory as peft_directory
from fedcore.updates.config import PREFIX, canonical_config, config_scales, fitted_config, given_scales, refuse_variants
from fedcore.updates.encode import check_scales
from fedcore.updates.file import File
from fedcore.updates.header import Header, header_length, parse_entries
from fedcore.updates.layout import Layout, shared_layout
from fedcore.updates.metadata import check_identity, unpack_metadata
from fedcore.updates.pairs import lora_pairs
from fedcore.updates.taken import refuse_gradients

if TYPE_CHECKING:
    from fedcore.updates.update import Update


def read_header(file: File) -> Header:
    """The header of a safetensors file, by small reads: one that is cut short meanwhile is an error, not a signal."""
    length = header_length(file.read(0, min(8, file.size)).tobytes(), file.size, file.path)
    return parse_entries(file.read(8, length).tobytes(), file.size, file.path)


def from_file(
    make: type[Update],
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
    return from_header(make, str(path), header, buffer, *fields)


def from_header(make: type[Update], source: str, header: Header, buffer: np.ndarray, *rest: Any) -> Update:
    """`checked` for bytes from outside: whatever is wrong is a FormatError that names them."""
    try:
        update = checked(make, shared_layout(header.layout), buffer, header.offsets, header.scales, *rest)
    except LayoutError as error:
        raise FormatError(f"{source}: {error}") from None
    check_scales(update.layout, update.bytes_at, update.scales, source)
    return update


def checked(
    make: type[Update],
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
    for name, value in (("scaling", {} if scaling is None else scaling), ("adapter_config", adapter_config)):
        if not isinstance(value, Mapping):
            raise LayoutError(f"{got(name, value)}, expected a mapping; leave it out where there is none")
    pairs, _ = lora_pairs(layout)
    config = canonical_config(adapter_config)
    if pairs:
        refuse_variants(config)
        refuse_gradients(config)
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
    return make(layout, view, offsets, starts, scales, int(num_examples), client_id, base, config, counted, file)


def config_like(updates: Iterable[Update], modules: Iterable[str]) -> dict[str, Any]:
    """The config of a result that has these modules: that of the first update with just these, else the settings of the
    first with a config, its targets by full path; {} where none has a config. Ranks and alphas are still to be fitted.
    """
    wanted, known = set(modules), [update for update in updates if update.adapter_config]
    for update in known:
        if update.modules.keys() == wanted:
            return dict(update.adapter_config)
    if not known:
        return {}
    layers = dict.fromkeys(("exclude_modules", "layers_pattern", "layers_to_transform"))
    targets = [module.removeprefix(PREFIX) for module in wanted]
    return canonical_config(known[0].adapter_config | layers | {"target_modules": targets})
