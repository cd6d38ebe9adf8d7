"""The public mean_around_median."""

from __future__ import annotations

from typing import Any

from fedcore.ops.kinds import in_kind
from fedcore.ops.order import checked_f, run_order_statistic
from fedcore.ops.rows import as_rows


@in_kind
def mean_around_median(
    rows: Any,
    f: int,
    out: Any = None,
    out_dtype: Any = "float32",
    *,
    backend: str | None = None,
    threads: int | None = None,
) -> Any:
    """The mean of the n − f values of each column that lie closest to its median: (d,) in `out_dtype`, rounded once.

    rows      (n, d) array or tensor, a sequence of n 1-D arrays, or a RowTable; fp32, fp16 or bf16. Never stacked.
    f         how many to leave out; 0 ≤ f < n
    out       (d,) array to write into, of any output dtype (then `out_dtype` is not used); must not overlap the rows
    out_dtype 'float32', 'float64', 'float16' or 'bfloat16'

    Closest to the fp64 median in fp64; of two on either side of it that tie the smaller is kept. Kept values are added
    in fp64 in ascending order, so the bits are the same on every backend, ISA and thread count and in every order of
    the rows; a zero is +0 (definition: fedcore/reference/mean_around_median.py). Known as Meamed (Xie, Koyejo and
    Gupta, 2018, "Generalized Byzantine-tolerant SGD"). NumPy in gives NumPy out, torch in gives torch out on the same
    device.

    Raises RuleError (f out of range: it says the largest f for this n), ShapeError, DTypeError, NonFiniteError (row and
    column of a NaN or Inf, even one that would have been left out) and RangeError (a finite mean that does not fit
    `out_dtype`). After an error the contents of `out` are not defined.
    """
    data = as_rows(rows)
    dropped = checked_f("mean_around_median", f, data.n, data.n - 1)
    return run_order_statistic("mean_around_median", data, (dropped,), out, out_dtype, backend, threads)
