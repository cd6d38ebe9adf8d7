"""Adapters added to a layer's base weights, where those are not quantised."""

from __future__ import annotations

from typing import Any

from fedcore import ops
from fedcore.dtypes import ROW_DTYPES
from fedcore.errors import DTypeError, LayoutError
from fedcore.ops.factors import tensor_of
from fedcore.ops.rows import is_torch
from fedcore.updates import Update
from fedcore.updates.layout import shown


def merge(weight: Any, module: str, *adapters: Update) -> Any:
    """W + Σ s B A of one module in W's dtype, each element rounded once; W itself stays as it is.

    weight    (d_out, d_in) base weights in fp32, fp16 or bf16, NumPy or torch; the result is of the same kind
    adapters  what lies beside them: an adapter, and the side adapter where a method leaves one

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
    b, a, scales = [], [], []
    for update in adapters:
        if module not in update.modules:
            raise LayoutError(f"module {shown(module)} is missing in adapter {shown(update.client_id)}; leave it out")
        pair = update.modules[module]
        b.append(update.tensors[pair.b])
        a.append(update.tensors[pair.a])
        scales.append(pair.scale)
    if is_torch(weight):
        b, a = ([tensor_of(factor).to(weight.device) for factor in side] for side in (b, a))
    return ops.lora_delta_sum(b, a, scales, base=weight)
