"""LoRA adapters on a base: attach one, load an update into it, read an update out of it.

PEFT does the wrapping. Names and values go through the named trainable parameters: PEFT's own state-dict functions ask
the hub for a base's vocabulary on the way out, and accept missing, unknown and misshapen tensors without a word on the
way in.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from fedcore.clients.base import Base
from fedcore.clients.quiet import quiet
from fedcore.clients.seeding import seeded
from fedcore.clients.settings import AdapterSettings
from fedcore.dtypes import name_of, to_float64
from fedcore.errors import ConfigError, LayoutError
from fedcore.updates import Update
from fedcore.updates.bases import is_digest, same_name

_ADAPTER = "default"
_FACTOR = re.compile(r"\.lora_(embedding_)?([AB])(?=\.|$)")


def attach(base: Base, settings: AdapterSettings, seed: int) -> Update:
    """Put a LoRA adapter on `base.model` and return its initial state: B = 0, A drawn under `seed`.

    A is drawn by the CPU's generator, so it is the same on every device: as PEFT draws it, but for embeddings, where
    PEFT has A = 0 and draws B, uniform within ±1. An adapter that is there already is replaced. Raises ConfigError
    where the settings fit no layer of the model.
    """
    with quiet():
        from peft import LoraConfig, PeftModel, get_peft_model

        targets = settings.target_modules
        config = LoraConfig(
            r=settings.rank,
            lora_alpha=settings.alpha,  # type: ignore[arg-type]  # PEFT divides it; a float is as good
            target_modules=targets if isinstance(targets, str) else list(targets),
            lora_dropout=settings.dropout,
            use_rslora=settings.rslora,
            bias="none",
            task_type="CAUSAL_LM",
        )
        if isinstance(base.model, PeftModel):
            base.model = base.model.unload()
            base.model.__dict__.pop("peft_config", None)
        try:
            with seeded(seed):
                base.model = get_peft_model(base.model, config)
                _draw_embeddings(base.model)
        except ValueError as error:
            raise ConfigError(
                f"adapter: {' '.join(str(error).split())[:200]}; choose another rank or target_modules"
            ) from error
    base.model.eval()
    return read(base, client_id="", num_examples=1)


def _draw_embeddings(model: torch.nn.Module) -> None:
    """Begin the adapters of embeddings as all others are: methods that freeze A, or start at B = 0, count on it."""
    from peft.tuners.lora import Embedding

    for layer in model.modules():
        if isinstance(layer, Embedding):
            a, b = layer.lora_embedding_A[_ADAPTER], layer.lora_embedding_B[_ADAPTER]
            # ±1/√n is for inputs of n numbers; a token is one number that is not 0
            with torch.no_grad():
                a.copy_(torch.empty(a.shape).uniform_(-1, 1))
                b.zero_()


def trainable(base: Base) -> dict[str, torch.nn.Parameter]:
    """The adapter's parameters by their names in PEFT files, sorted, those frozen by `only` left out."""
    return {name: parameter for name, parameter in adapter_parameters(base).items() if parameter.requires_grad}


@contextmanager
def only(base: Base, factors: Collection[str]) -> Iterator[None]:
    """While this lasts, of each module only these factors ("a", "b") train; modules_to_save always do.

    Raises LayoutError for anything else.
    """
    if unknown := set(factors) - {"a", "b"}:
        raise LayoutError(f"factors: got {min(unknown)!r}, expected 'a' and 'b', the factors of an adapter")
    frozen = [p for name, p in adapter_parameters(base).items() if (f := _factor(name)) and f not in factors]
    try:
        for parameter in frozen:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)


def _factor(name: str) -> str | None:
    """ "a" or "b" for a factor of an adapter, None for another tensor."""
    found = _FACTOR.search(name)
    return found.group(2).lower() if found else None


def other_factor(name: str) -> str | None:
    """The name of B for that of A and of A for that of B, None for another tensor."""
    found = _FACTOR.search(name)
    return f"{name[: found.start(2)]}{'B' if found[2] == 'A' else 'A'}{name[found.end(2) :]}" if found else None


def adapter_parameters(base: Base) -> dict[str, torch.nn.Parameter]:
    """The adapter's parameters by their names in PEFT files, sorted. Raises LayoutError where there is none."""
    found = {
        re.sub(rf"(\.lora_\w+)\.{_ADAPTER}(?=\.|$)", r"\1", name): parameter
        for name, parameter in base.model.named_parameters()
        if parameter.requires_grad or f".{_ADAPTER}" in name
    }
    if not found:
        raise LayoutError(f"base {base.name}: has no adapter; call fedcore.clients.attach first")
    return dict(sorted(found.items()))


def read(base: Base, *, client_id: str, num_examples: int) -> Update:
    """A copy of the attached adapter: fp32 tensors, per-module scales, the base's digest, PEFT's configuration."""
    tensors = {name: parameter.detach().cpu() for name, parameter in adapter_parameters(base).items()}
    return Update.from_tensors(
        tensors,
        num_examples=num_examples,
        client_id=client_id,
        scaling=_scaling(base),
        base=base.digest,
        adapter_config=_config(base),
    )


def load(base: Base, update: Update) -> None:
    """Write an update's tensors into the attached adapter, bit for bit where they are fp32.

    Raises LayoutError naming the base, key or module where the update is of another base, or names, shapes or scales
    differ; nothing is written then.
    """
    if update.base is not None and not _same_base(update.base, base):
        raise LayoutError(
            f"update {update.client_id or '(no id)'}: belongs to base {update.base[:16]}, expected {base.name} with "
            f"digest {base.digest[:16]}; use the same weights, quantisation and kind of device"
        )
    parameters = adapter_parameters(base)
    _check_names(update, parameters)
    for module, scale in _scaling(base).items():
        if update.scaling.get(module, scale) != scale:
            raise LayoutError(
                f"module {module}: the update's scale is {update.scaling[module]}, expected {scale} as attached; use "
                "the same rank, alpha and rslora"
            )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(torch.from_numpy(_float32(update.tensors[name])))


def _same_base(said: str, base: Base) -> bool:
    """By digest where `said` is one, else by name."""
    return said == base.digest if is_digest(said) else same_name(said, base.name)


def _check_names(update: Update, parameters: dict[str, torch.nn.Parameter]) -> None:
    for name in parameters:
        if name not in update.tensors:
            raise LayoutError(
                f"tensor {name}: the update does not have it, the attached adapter does; use the same target_modules"
            )
    for name, tensor in update.tensors.items():
        if name not in parameters:
            raise LayoutError(f"tensor {name}: the attached adapter has no such parameter; use the same target_modules")
        if tuple(tensor.shape) != tuple(parameters[name].shape):
            raise LayoutError(
                f"tensor {name}: got shape {tuple(tensor.shape)}, expected {tuple(parameters[name].shape)} as "
                "attached; use the same rank and base"
            )


def _float32(tensor: np.ndarray) -> np.ndarray:
    """A writable fp32 copy; exact, as every row dtype is fp32 or narrower."""
    if name_of(tensor.dtype) == "float32":
        return np.array(tensor, np.float32, order="C")
    return to_float64(np.ascontiguousarray(tensor)).astype(np.float32)


def _scaling(base: Base) -> dict[str, float]:
    from peft.tuners.lora import LoraLayer

    layers = ((name, module) for name, module in base.model.named_modules() if isinstance(module, LoraLayer))
    return {name: float(module.scaling[_ADAPTER]) for name, module in layers}


def _config(base: Base) -> dict[str, Any]:
    """PEFT's adapter_config.json, canonical (its sets have no order of their own) and without this machine's paths."""
    config = dict(base.model.peft_config[_ADAPTER].to_dict(), base_model_name_or_path=base.name, inference_mode=True)
    return {key: _plain(value) for key, value in sorted(config.items())}


def _plain(value: Any) -> Any:
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    if isinstance(value, dict):
        return {str(key): _plain(part) for key, part in sorted(value.items())}
    return value
