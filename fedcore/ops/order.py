"""What the public order statistics share."""

from __future__ import annotations

from typing import Any

from fedcore.errors import RangeError, RuleError
from fedcore.numbers import as_whole, got
from fedcore.ops.outputs import output_dtype, output_for
from fedcore.ops.rows import Rows, choose, raise_first_nonfinite, thread_count
from fedcore.ops.tiles import run_columns


def run_order_statistic(
    op: str, data: Rows, arguments: tuple[int, ...], out: Any, out_dtype: Any, backend: str | None, threads: int | None
) -> Any:
    """Call the backend's (rows, *arguments, out, threads) -> suspect, and say what is wrong if anything is.

    Returns (d,) of `out_dtype`, or `out`. Raises DTypeError for another output dtype, NonFiniteError with the row and
    column of NaN or Inf, RangeError for a result that does not fit or `threads` below 1, and as `choose` and
    `output_for` do.
    """
    name = choose(data, backend)
    dtype = output_dtype(out, out_dtype)
    result, target = output_for(data, (data.d,), out, dtype, name, data.overlapped)
    if run_columns(op, name, data, arguments, target, thread_count(threads)):
        raise_first_nonfinite(data, op=op)
        raise RangeError(f"{op}: a finite result does not fit {dtype}; ask for a wider out_dtype")
    return result


def checked_f(op: str, f: Any, n: int, largest: int) -> int:
    """f as an int from 0 to `largest`. Raises RuleError that says the largest f for this n."""
    count = as_whole(f)
    if count is None or not 0 <= count <= largest:
        raise RuleError(f"{got('f', f, op)}, expected a whole number from 0 to {largest}, the largest f for n = {n}")
    return count
