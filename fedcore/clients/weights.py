"""The base weights that an adapter stands beside, as what they count in the model: dequantised, (d_out, d_in)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from fedcore.clients.base import Base


class AdaptedWeights(Mapping[str, np.ndarray]):
    """module -> fp32 weights (d_out, d_in) of the layer that its adapter wraps, made anew each time they are asked for.

    A layer in NF4 is dequantised; one that stores its weights transposed (GPT-2's Conv1D) is turned.
    """

    def __init__(self, base: Base):
        from peft.tuners.lora import LoraLayer

        self._layers = {name: layer for name, layer in base.model.named_modules() if isinstance(layer, LoraLayer)}

    def __getitem__(self, module: str) -> np.ndarray:
        layer: Any = self._layers[module]
        weight = layer.get_base_layer().weight
        if (state := getattr(weight, "quant_state", None)) is not None:
            from bitsandbytes.functional import dequantize_4bit

            dense = dequantize_4bit(weight.data, state)
        else:
            dense = weight.detach().T if getattr(layer, "fan_in_fan_out", False) else weight.detach()
        return dense.float().cpu().numpy()

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)
