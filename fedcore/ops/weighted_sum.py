"""The public weighted_sum."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fedcore.dtypes import OUT_DTYPES, STORAGE, name_of
from fedcore.errors import DTypeError, RangeError, ShapeError, WeightError
from fedcore.numbers import shown
from fedcore.ops.rows import (
    Rows,
    as_rows,
    check_plain,
    choose,
    is_torch,
    raise_first_nonfinite,
    thread_count,
    view_of_tensor,
)
from fedcore.ops.tiles import run_columns

LARGEST_COUNT = 1 << 24


def weighted_sum(
    rows: Any,
    weights: Any,
    divisor: float | None = None,
    out: Any = None,
    out_dtype: Any = "float32",
    *,
    backend: str | None = None,
    threads: int | None = None,
) -> Any:
    """Σ_i w_i x_i per column, divided by `divisor` if one is given: (d,) in `out_dtype`, rounded once.

    rows      (n, d) array or tensor, a sequence of n 1-D arrays, or a RowTable; fp32, fp16 or bf16. Never stacked.
    weights   n numbers, rounded to fp32 once, each 0 or at least 2**-126 in size; a row with weight 0 is not read
    divisor   one fp64 number, such as the sum of the weights for a mean
    out       (d,) array to write into, of any output dtype (then `out_dtype` is not used); must not overlap the rows
    out_dtype 'float32', 'float64', 'float16' or 'bfloat16'

    The law: start at 0.0 in fp64, add fp64(w_i)·fp64(x_i) in row order, divide, round once to nearest even. Every
    backend, ISA and thread count gives the same bits (see fedcore/reference/weighted_sum.py).

    NumPy in gives NumPy out, torch in gives torch out on the same device, without gradients. Raises ShapeError,
    DTypeError, WeightError (a weight that is not finite, or a count above 2**24, which fp32 cannot hold),
    NonFiniteError (row and column of a NaN or Inf that would have counted) and RangeError (a finite sum that
    `out_dtype` cannot hold). After an error the contents of `out` are not defined.
    """
    data = as_rows(rows)
    w = checked_weights(weights, data.n)
    if divisor is not None:
        divisor = checked_divisor(divisor)
    name = choose(data, backend)
    dtype = name_of(getattr(out, "dtype", out_dtype))
    if dtype not in OUT_DTYPES:
        raise DTypeError(f"out_dtype: got {dtype}, expected one of {', '.join(OUT_DTYPES)}")
    result, target = output_for(data, out, dtype, as_tensor=name == "triton")
    if run_columns("weighted_sum", name, data, (w, divisor), target, thread_count(threads)):
        raise_first_nonfinite(data, np.flatnonzero(w), "weighted_sum")
        raise RangeError(f"weighted_sum: a finite sum does not fit {dtype}; ask for a wider out_dtype")
    return result


def checked_divisor(divisor: Any, name: str = "divisor") -> float:
    """A divisor as a float. Raises WeightError, by `name`, unless it is a finite number other than 0."""
    try:
        value = float("" if isinstance(divisor, str) else divisor)  # a text that float reads is no number
    except (TypeError, ValueError, OverflowError):
        raise WeightError(f"{name}: got {shown(divisor)}, expected a number that fp64 holds") from None
    if not np.isfinite(value) or value == 0.0:
        raise WeightError(f"{name}: got {value}, expected a finite number other than 0")
    return value


def checked_weights(weights: Any, n: int) -> np.ndarray:
    """Weights as (n,) fp32. Raises as `exact_weights` does, by position."""
    with np.errstate(under="ignore"):
        return exact_weights(weights, n).astype(np.float32)


def exact_weights(weights: Any, n: int, names: Sequence[str] | None = None) -> np.ndarray:
    """Weights as (n,) fp64, each 0 or a normal number of fp32 once it is rounded, and exact where it is a count.

    names: what messages call the row of each; None is its position. Raises ShapeError, DTypeError or WeightError.
    """
    given = np.asarray(_in_main_memory(weights) if is_torch(weights) else weights)
    if given.shape != (n,):
        raise ShapeError(f"weights: got shape {given.shape}, expected ({n},), one for each row")
    if given.dtype.kind not in "buif":
        raise DTypeError(f"weights: got {given.dtype}, expected real numbers")

    def got(i: Any) -> str:
        return f"weight {i}: got {given[i]}" if names is None else f"{names[i]}: got weight {given[i]}"

    exact = given.astype(np.float64)
    with np.errstate(over="ignore", under="ignore"):
        rounded = exact.astype(np.float32)
    for i in np.flatnonzero(~np.isfinite(rounded)):
        raise WeightError(f"{got(i)}, expected a finite fp32 number")
    # a weight that vanishes would drop its row unseen, and a subnormal one is at the mercy of the caller's flush mode
    for i in np.flatnonzero((exact != 0) & (np.abs(rounded) < np.finfo(np.float32).tiny)):
        instead = "use 0" if names is None else "leave that client out"  # where clients are weighed 0 is refused
        raise WeightError(f"{got(i)}, below the normal fp32 numbers; {instead} or scale the weights up")
    count = (np.abs(exact) > LARGEST_COUNT) & (exact == np.trunc(exact))
    for i in np.flatnonzero(count & ((given.dtype.kind in "iu") | (rounded != exact))):
        raise WeightError(f"{got(i)}, a count above 2**24 is not exact in fp32; divide the counts first")
    return exact


def _in_main_memory(weights: Any) -> Any:
    """A tensor of weights as NumPy takes it, which has no bf16."""
    check_plain("weights", weights)
    held = weights.detach().cpu()
    return held.double() if str(held.dtype) == "torch.bfloat16" else held


def output_for(data: Rows, out: Any, dtype: str, as_tensor: bool, count: int | None = None) -> tuple[Any, Any]:
    """(what the caller gets, what the backend writes): two views of the same memory, (d,) or (count, d).

    out  None makes one, by the library and on the device of the rows

    Raises DTypeError for what is no array, and ShapeError for an `out` of another shape, kind or device, that is not
    contiguous and writable, or that overlaps the rows.
    """
    shape = (data.d,) if count is None else (count, data.d)
    if out is not None:
        if not is_torch(out) and not isinstance(out, np.ndarray):
            raise DTypeError(f"out: got {type(out).__name__}, expected a NumPy array or a torch tensor")
        if is_torch(out):
            check_plain("out", out)
            if out.requires_grad:
                raise DTypeError("out: requires gradients, which pass no kernel; pass out.detach()")
        if tuple(out.shape) != shape:
            raise ShapeError(f"out: got shape {tuple(out.shape)}, expected {shape}")
        contiguous = out.is_contiguous() if is_torch(out) else out.flags.c_contiguous and out.flags.writeable
        if not contiguous:
            raise ShapeError("out: expected a contiguous, writable array")
        if is_torch(out) != (data.device is not None) or (is_torch(out) and out.device != data.device):
            raise ShapeError("out: expected the same kind of array on the same device as the rows")
    elif data.device is not None:
        import torch

        out = torch.empty(shape, dtype=getattr(torch, dtype), device=data.device)
    else:
        out = np.empty(shape, data.bfloat16 if dtype == "bfloat16" else STORAGE[dtype])
    if data.on_gpu:
        return out, out
    target = view_of_tensor(out) if is_torch(out) else out
    _refuse_overlap(target, data)
    if as_tensor and not is_torch(out):
        import torch

        view = target.view(np.int16) if dtype == "bfloat16" else target
        tensor = torch.from_numpy(view)
        return out, tensor.view(torch.bfloat16) if dtype == "bfloat16" else tensor
    return out, out if as_tensor else target


def _refuse_overlap(target: np.ndarray, data: Rows) -> None:
    table = data.table
    if table is None or table.d == 0:
        return
    low = np.uint64(target.ctypes.data)
    high = low + np.uint64(target.nbytes)
    starts, sizes = table.extents()
    hit = (starts < high) & (starts + sizes.astype(np.uint64) > low) & (sizes > 0)
    if hit.any():
        raise ShapeError(f"out: it overlaps row {np.flatnonzero(hit)[0] % table.n}; give memory of its own")
