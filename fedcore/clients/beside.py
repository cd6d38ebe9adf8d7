"""What lies beside the trained adapter: a side adapter that is added to the output of each module and never trains.

It stays factors in fp32, computed where the module computes, so a base in NF4 keeps every bit: nothing is folded in.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import functional

from fedcore.clients.base import Base
from fedcore.dtypes import to_float64
from fedcore.errors import LayoutError
from fedcore.updates import Update

#: (A (r, d_in), B (d_out, r) with the scale in it, and a core (r, r) between them or None)
Factors = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]


@contextmanager
def beside(base: Base, side: Update | None) -> Iterator[None]:
    """While this lasts, each module's output has scale · B · A · x of `side` added; None adds nothing.

    Raises LayoutError naming a module that the base does not have or whose size differs.
    """
    factors: dict[str, Factors] = {}
    for name, pair in {} if side is None else side.modules.items():
        assert side is not None
        a, b = (torch.from_numpy(to_float64(side.tensors[key])).float().to(base.device) for key in (pair.a, pair.b))
        factors[name] = (a, b * pair.scale, None)
    with added(base, factors, "side adapter"):
        yield


@contextmanager
def added(base: Base, factors: Mapping[str, Factors], what: str) -> Iterator[None]:
    """While this lasts, each module's output has B · core · A · x added; gradients reach what requires them."""
    modules, handles = dict(base.model.named_modules()), []
    try:
        for name, (a, b, core) in factors.items():
            module = modules.get(name)
            size = _size(module)
            if module is None or size != (len(b), a.shape[1]):
                got = "none of that name" if module is None else f"{size[0]} × {size[1]}"
                raise LayoutError(
                    f"{what}: module {name} is {len(b)} × {a.shape[1]}, the base has {got}; use that of this base"
                )
            adding = _adding if _embedding(module) is None else _adding_rows
            handles.append(module.register_forward_hook(adding(a, b, core)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _embedding(module: torch.nn.Module | None) -> torch.nn.Embedding | None:
    """The embedding that a module is, or that PEFT has wrapped in it; None for another."""
    layer = getattr(module, "base_layer", module)
    return layer if isinstance(layer, torch.nn.Embedding) else None


def _size(module: torch.nn.Module | None) -> tuple[int | None, int | None]:
    """(d_out, d_in) of the Δ that fits a module; of an embedding d_in counts tokens."""
    if (layer := _embedding(module)) is not None:
        return layer.embedding_dim, layer.num_embeddings
    return getattr(module, "out_features", None), getattr(module, "in_features", None)


def _adding(a: torch.Tensor, b: torch.Tensor, core: torch.Tensor | None) -> Any:
    def add(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        inner = inputs[0].float() @ a.T
        return output + ((inner if core is None else inner @ core.T) @ b.T).to(output.dtype)

    return add


def _adding_rows(a: torch.Tensor, b: torch.Tensor, core: torch.Tensor | None) -> Any:
    """`_adding` for an embedding, whose input are numbers of tokens: their columns of B · core · A."""

    def add(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        inner = functional.embedding(inputs[0], a.T)
        change = (inner if core is None else inner @ core.T) @ b.T
        # Gemma's layers multiply what they look up, so what is added to their weights as well
        if (scale := getattr(_embedding(module), "embed_scale", None)) is not None:
            change = change * scale
        return output + change.to(output.dtype)

    return add
