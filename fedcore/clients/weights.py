"""The base weights that an adapter stands beside, as what they count in the model: dequantised, (d_out, d_in)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from fedcore.clients.base import Base


class AdaptedWeights(Mapping[str, np.ndarray]):
    """module -> fp32 weights (d_out, d_in) of the layer that its adapter wraps, made anew each time they are asked for.

    A layer in NF4 is dequantised; one that stores its weights transposed (GPT-2's Conv1D, every embedding) is turned.
    """

    def __init__(self, base: Base):
        from peft.tuners.lora import LoraLayer

        self._layers = {name: layer for name, layer in base.model.named_modules() if isinstance(layer, LoraLayer)}

    def __getitem__(self, module: str) -> np.ndarray:
        layer: Any = self._layers[module]
        inner = layer.get_base_layer()
        # what PEFT says of fan_in_fan_out is of the linear layers
        embedding = isinstance(inner, torch.nn.Embedding)
        if (state := getattr(inner.weight, "quant_state", None)) is not None:
            from bitsandbytes.functional import dequantize_4bit

            dense, turned = dequantize_4bit(inner.weight.data, state), embedding
        else:
            dense, turned = inner.weight.detach(), embedding or getattr(layer, "fan_in_fan_out", False)
        return (dense.T if turned else dense).float().cpu().numpy()

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)
