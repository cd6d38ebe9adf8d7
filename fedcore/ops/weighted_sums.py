"""The public weighted_sums."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedcore.errors import RangeError, ShapeError, WeightError
from fedcore.ops.host_numbers import host_numbers
from fedcore.ops.outputs import output_dtype, output_for
from fedcore.ops.rows import as_rows, choose, raise_first_nonfinite, thread_count
from fedcore.ops.tiles import run_columns
from fedcore.ops.weighted_sum import checked_divisor, checked_weights


def weighted_sums(
    rows: Any,
    weights: Any,
    divisors: Any = None,
    out: Any = None,
    out_dtype: Any = "float32",
    *,
    backend: str | None = None,
    threads: int | None = None,
) -> Any:
    """Several weighted sums of the same rows from one read of them, Σ_i w_ai x_i / divisor_a: (m, d) in `out_dtype`.

    rows      (n, d) array or tensor, a sequence of n 1-D arrays, or a RowTable; fp32, fp16 or bf16. Never stacked.
    weights   (m, n) numbers, each as in weighted_sum; a row whose weights are all 0 is not read
    divisors  m fp64 numbers, or None
    out       (m, d) array to write into, of any output dtype (then `out_dtype` is not used); must not overlap the rows
    out_dtype 'float32', 'float64', 'float16' or 'bfloat16'

    Row a has the bits of weighted_sum with the weights w_a and the divisor_a, on every backend, ISA and thread count
    (definition: fedcore/reference/weighted_sums.py). Cost: n · m · d multiplications and additions in fp64, and one
    read of the rows.

    NumPy in gives NumPy out, torch in gives torch out on the same device. Raises ShapeError, DTypeError, WeightError
    (naming output and row), NonFiniteError (row and column of a NaN or Inf in a row that counts for any output) and
    RangeError (a finite sum that `out_dtype` cannot hold). After an error the contents of `out` are not defined.
    """
    data = as_rows(rows)
    w = _checked_matrix(weights, data.n)
    by = None if divisors is None else _checked_divisors(divisors, len(w))
    name = choose(data, backend)
    dtype = output_dtype(out, out_dtype)
    result, target = output_for(data, (len(w), data.d), out, dtype, name, data.overlapped)
    if run_columns("weighted_sums", name, data, (w, by), target, thread_count(threads)):
        raise_first_nonfinite(data, np.flatnonzero(w.any(0)), "weighted_sums")
        raise RangeError(f"weighted_sums: a finite sum does not fit {dtype}; ask for a wider out_dtype")
    return result


def _checked_matrix(weights: Any, n: int) -> np.ndarray:
    """Weights as (m, n) fp32. Raises WeightError by output and row."""
    given = host_numbers("weights", weights)
    if given.ndim != 2 or given.shape[1] != n:
        raise ShapeError(f"weights: got shape {given.shape}, expected (m, {n}), one row for each output")
    try:
        return checked_weights(given.reshape(-1), given.size).reshape(given.shape)
    except WeightError as error:
        for a, row in enumerate(given):  # whose it is
            try:
                checked_weights(row, n)
            except WeightError as own:
                raise WeightError(f"output {a}, {own}") from None
        raise error


def _checked_divisors(divisors: Any, m: int) -> np.ndarray:
    """Divisors as (m,) fp64. Raises ShapeError, DTypeError, or WeightError by output."""
    given = host_numbers("divisors", divisors)
    if given.shape != (m,):
        raise ShapeError(f"divisors: got shape {given.shape}, expected ({m},), one for each output")
    return np.array([checked_divisor(value, f"divisor {a}") for a, value in enumerate(given.tolist())])
