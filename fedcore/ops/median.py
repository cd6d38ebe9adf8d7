"""The public median."""

from __future__ import annotations

from typing import Any

from fedcore.ops.kinds import in_kind
from fedcore.ops.order import run_order_statistic
from fedcore.ops.rows import as_rows


@in_kind
def median(
    rows: Any,
    out: Any = None,
    out_dtype: Any = "float32",
    *,
    backend: str | None = None,
    threads: int | None = None,
) -> Any:
    """The middle of each column, or half the fp64 sum of the middle two: (d,) in `out_dtype`, rounded once.

    rows      (n, d) array or tensor, a sequence of n 1-D arrays, or a RowTable; fp32, fp16 or bf16. Never stacked.
    out       (d,) array to write into, of any output dtype (then `out_dtype` is not used); must not overlap the rows
    out_dtype 'float32', 'float64', 'float16' or 'bfloat16'

    The same bits on every backend, ISA and thread count and in every order of the rows; a zero is +0 (definition:
    fedcore/reference/median.py). NumPy in gives NumPy out, torch in gives torch out on the same device.

    Raises ShapeError, DTypeError, NonFiniteError (row and column of a NaN or Inf, whether or not it would have been the
    median) and RangeError (a finite median that `out_dtype` cannot hold). After an error the contents of `out` are not
    defined.
    """
    return run_order_statistic("median", as_rows(rows), (), out, out_dtype, backend, threads)
