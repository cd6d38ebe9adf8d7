"""The public weighted_sum."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fedcore.errors import RangeError, ShapeError, WeightError
from fedcore.numbers import shown
from fedcore.ops.host_numbers import host_number, host_numbers
from fedcore.ops.kinds import in_kind
from fedcore.ops.outputs import output_dtype, output_for
from fedcore.ops.rows import as_rows, choose, raise_first_nonfinite, thread_count
from fedcore.ops.tiles import run_columns

LARGEST_COUNT = 1 << 24


@in_kind
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
    DTypeError, WeightError (a weight that is not finite, or a whole number above 2**24, beyond which fp32 lacks some),
    NonFiniteError (row and column of a NaN or Inf that would have counted) and RangeError (a finite sum that
    `out_dtype` cannot hold). After an error the contents of `out` are not defined.
    """
    data = as_rows(rows)
    w = checked_weights(weights, data.n)
    if divisor is not None:
        divisor = checked_divisor(divisor)
    name = choose(data, backend)
    dtype = output_dtype(out, out_dtype)
    result, target = output_for(data, (data.d,), out, dtype, name, data.overlapped)
    if run_columns("weighted_sum", name, data, (w, divisor), target, thread_count(threads)):
        raise_first_nonfinite(data, np.flatnonzero(w), "weighted_sum")
        raise RangeError(f"weighted_sum: a finite sum does not fit {dtype}; ask for a wider out_dtype")
    return result


def checked_divisor(divisor: Any, name: str = "divisor") -> float:
    """A divisor as a float. Raises WeightError, by `name`, unless it is a finite number other than 0.

    Raises as `host_number` too.
    """
    value = host_number(name, divisor)
    if value is None:
        raise WeightError(f"{name}: got {shown(divisor)}, expected a number that fp64 holds")
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
    given = host_numbers("weights", weights)
    if given.shape != (n,):
        raise ShapeError(f"weights: got shape {given.shape}, expected ({n},), one for each row")

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
        raise WeightError(f"{got(i)}, a count above 2**24, beyond which fp32 lacks some; divide the counts")
    return exact
