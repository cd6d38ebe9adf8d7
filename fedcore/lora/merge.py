"""Adapters added to a layer's base weights, where those are not quantised."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedcore import ops
from fedcore.dtypes import ROW_DTYPES
from fedcore.errors import DTypeError, LayoutError, ShapeError
from fedcore.numbers import shown
from fedcore.ops.tensors import is_torch, tensor_of
from fedcore.updates import Update


def merge(weight: Any, module: str, *adapters: Update) -> Any:
    """W + Σ s B A of one module in W's dtype, each element rounded once; W itself stays as it is.

    weight    base weights as the layer stores them, in fp32, fp16 or bf16, NumPy or torch; the result is of the same
              kind: (d_out, d_in); or (d_in, d_out), to which (s B A)ᵀ is added, of an embedding, and where an
              adapter's config says fan_in_fan_out, as PEFT writes it for GPT-2's Conv1D
    adapters  what lies beside them: an adapter, and the side adapter where a method leaves one, which has no config

    By `ops.lora_delta_sum`. Raises DTypeError for quantised weights: a change below a quantisation step would be
    rounded away whole (NF4 keeps nothing of an update of 1 % of its norm), so it stays beside them. LayoutError for an
    adapter without the module, ShapeError for weights of another shape, and what `lora_delta_sum` raises.
    """
    dtype = str(getattr(weight, "dtype", type(weight).__name__)).removeprefix("torch.")
    if hasattr(weight, "quant_state") or dtype not in (*ROW_DTYPES, "[('bfloat16', '<u2')]"):
        raise DTypeError(
            f"module {shown(module)}: its base weights are {dtype}, expected {', '.join(ROW_DTYPES)}: quantised "
            "weights round an update away; keep the adapter beside them, or merge into dequantised weights"
        )
    conv1d = any(update.adapter_config.get("fan_in_fan_out") for update in adapters)
    b, a, scales = [], [], []
    for update in adapters:
        if module not in update.modules:
            raise LayoutError(f"module {shown(module)} is missing in adapter {shown(update.client_id)}; leave it out")
        pair = update.modules[module]
        turned = pair.embedding or conv1d
        expected = (pair.d_in, pair.d_out) if turned else (pair.d_out, pair.d_in)
        if tuple(weight.shape) != expected:
            raise ShapeError(
                f"module {shown(module)}: its base weights are {tuple(weight.shape)}, expected {expected}, as "
                f"{_lies(pair.embedding, conv1d)}; give them as the layer stores them"
            )
        left, right = update.tensors[pair.b], update.tensors[pair.a]
        if turned:
            left, right = np.ascontiguousarray(right.T), np.ascontiguousarray(left.T)
        b.append(left)
        a.append(right)
        scales.append(pair.scale)
    if is_torch(weight):
        b, a = ([tensor_of(factor).to(weight.device) for factor in side] for side in (b, a))
    return ops.lora_delta_sum(b, a, scales, base=weight)


def _lies(embedding: bool, conv1d: bool) -> str:
    if embedding:
        return "an embedding stores a row for each token"
    return f"the adapter's config says fan_in_fan_out {str(conv1d).lower()}"
