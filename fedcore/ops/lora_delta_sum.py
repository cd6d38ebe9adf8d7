"""The public lora_delta_sum."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedcore.backends import implementation
from fedcore.dtypes import ROW_DTYPES, name_of
from fedcore.errors import DTypeError, NonFiniteError, RangeError, ShapeError
from fedcore.ops.factors import (
    FactorPairs,
    as_factors,
    checked_coefficients,
    choose_for,
    first_nonfinite,
    raise_nonfinite_factor,
)
from fedcore.ops.outputs import output_dtype, output_for
from fedcore.ops.rows import thread_count
from fedcore.ops.tensors import check_plain, extent, is_torch, tensor_of, view_of_tensor


def lora_delta_sum(
    b: Any,
    a: Any,
    coefficients: Any,
    *,
    base: Any = None,
    out: Any = None,
    out_dtype: Any = None,
    backend: str | None = None,
    threads: int | None = None,
) -> Any:
    """Σ_i c_i B_i A_i (+ base) of one module's LoRA factors, dense: (d_out, d_in), rounded once.

    b             n matrices (d_out, r_i), fp32, fp16 or bf16 each, read where they lie; ranks may differ and be 0
    a             n matrices (r_i, d_in)
    coefficients  n fp64 numbers, the scales α/r (or α/√r) already in them; a client with 0 is not read
    base          (d_out, d_in) fp32, fp16 or bf16 that is added before the one rounding, such as a layer's weight
    out           (d_out, d_in) array to write into, of any output dtype (then `out_dtype` is not used); it may be
                  `base` itself, otherwise it must not overlap what is read
    out_dtype     'float32', 'float64', 'float16' or 'bfloat16'; by default that of `base`, or float32

    The law (fedcore/reference/lora_delta_sum.py): each c · b is rounded to fp32; chains of 256 terms, clients in order,
    are summed in fp32 by fused multiply-adds, chains and base in fp64. The reference and C give the same bits on every
    ISA and thread count; Triton, whose order inside a chain is the GPU's, is within the same bound:
    |error| ≤ (min(Σr, 256) + 2) · 2⁻²⁴ · Σ |c b a| an element, before the last rounding, where nothing is subnormal;
    + 6 for + 2 where all factors are of one 16-bit dtype, which it multiplies on matrix units.

    One call for all clients. Memory beside the result: some 64 to 256 rows of stacked B in fp32 a thread, and tiles.
    NumPy in gives NumPy out, torch in gives torch out on the same device. Raises ShapeError and DTypeError naming the
    client, WeightError (a coefficient that is not finite), NonFiniteError (client and place of a NaN or Inf that would
    have counted) and RangeError (a finite sum that `out_dtype`, or c · B that fp32, cannot hold). After an error the
    contents of `out` are not defined.
    """
    factors = as_factors(b, a)
    c = checked_coefficients(coefficients, factors.n)
    name = choose_for(factors, backend)
    _check_base(base, factors)
    dtype = output_dtype(out, out_dtype or ("float32" if base is None else base.dtype))

    def overlapped(low: int, high: int) -> str | None:
        in_place = base is None or (extent(base) == (low, high) and name_of(base.dtype) == dtype)
        start, stop = (0, 0) if in_place else extent(base)
        return "base" if start < high and stop > low else factors.overlapped(low, high)

    result, target = output_for(factors, (factors.d_out, factors.d_in), out, dtype, name, overlapped)
    if name == "triton":
        left = None if base is None else tensor_of(base)
        suspect = implementation("lora_delta_sum", name)(factors.tensors(), c, left, target, thread_count(threads))
    else:
        left = view_of_tensor(base) if is_torch(base) else base
        suspect = implementation("lora_delta_sum", name)(factors.table, c, left, target, thread_count(threads))
    if suspect:
        raise_nonfinite_factor("lora_delta_sum", factors, np.flatnonzero(c))
        found = None if base is None or extent(base) == extent(result) else first_nonfinite(base)
        if found is not None:
            raise NonFiniteError(f"lora_delta_sum: base holds {found[1]} at {found[0]}; repair it")
        raise RangeError(
            f"lora_delta_sum: a finite sum does not fit {dtype}, or a coefficient times B does not fit float32; "
            "ask for a wider out_dtype or scale the factors"
        )
    return result


def _check_base(base: Any, factors: FactorPairs) -> None:
    if base is None:
        return
    if not is_torch(base) and not isinstance(base, np.ndarray):
        raise DTypeError(f"base: got {type(base).__name__}, expected a NumPy array or a torch tensor")
    check_plain("base", base)
    if tuple(base.shape) != (factors.d_out, factors.d_in):
        raise ShapeError(f"base: got shape {tuple(base.shape)}, expected {(factors.d_out, factors.d_in)}")
    if name_of(base.dtype) not in ROW_DTYPES:
        raise DTypeError(f"base: got {base.dtype}, expected one of {', '.join(ROW_DTYPES)}")
    if not (base.is_contiguous() if is_torch(base) else base.flags.c_contiguous):
        raise ShapeError("base: its elements are not contiguous, row by row; pass a contiguous copy")
    if is_torch(base) != (factors.device is not None) or (is_torch(base) and base.device != factors.device):
        raise ShapeError("base: expected the same kind of array on the same device as the factors")
