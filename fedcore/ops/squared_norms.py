"""The public squared_norms."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedcore.backends import implementation
from fedcore.errors import BackendError
from fedcore.ops.kinds import in_kind
from fedcore.ops.rows import Rows, as_center, as_rows, checked_total, choose, raise_first_nonfinite, thread_count
from fedcore.ops.tiles import tiles_of


@in_kind
def squared_norms(
    rows: Any,
    center: Any = None,
    *,
    total: np.ndarray | None = None,
    backend: str | None = None,
    threads: int | None = None,
) -> Any:
    """‖x_i − center‖² of each row: (n,) fp64, on the device of the rows.

    rows     (n, d) array or tensor, a sequence of n 1-D arrays, or a RowTable; fp32, fp16 or bf16
    center   a (d,) row of any of those dtypes; None is zero
    total    (n,) fp64 NumPy, contiguous and writable, of the columns before, to go on from: added to in place and
             returned, on a GPU as a tensor beside it. Tiles whose widths are multiples of 8192 columns give the bits
             of one pass.

    The same bits on every backend, ISA and thread count (order: fedcore/reference/squared_norms.py).
    Raises ShapeError, DTypeError, and NonFiniteError with the row and column of a NaN or Inf.
    """
    data = as_rows(rows)
    middle = as_center(center, data)
    before = checked_total(total, (data.n,))
    result = run_statistic("squared_norms", data, middle, backend, threads, total=before)
    check_statistic("squared_norms", data, middle, result)
    return result


def run_statistic(
    op: str, data: Rows, center: Rows | None, backend: str | None, threads: int | None, **going_on: Any
) -> Any:
    """Call a statistic's backend: (rows, center, threads) -> NumPy, brought to the caller's kind of array."""
    name = choose(data, backend)
    if name == "triton":
        if "first" in going_on:
            raise BackendError(f"{op}: the triton backend makes whole matrices; use 'c' or 'reference' for first=")
        import torch

        before = going_on.get("total")
        result = None if before is None else torch.as_tensor(before, device=data.device)
        for _, rows in tiles_of(data, center):
            middle = None if center is None else rows.pop()
            result = implementation(op, name)(rows, middle, thread_count(threads), total=result)
        assert result is not None
        return result if data.device is not None else result.numpy()
    middle = None if center is None else center.table
    result = implementation(op, name)(data.table, middle, thread_count(threads), **going_on)
    if data.device is None:
        return result
    import torch

    return torch.from_numpy(result)


def check_statistic(op: str, data: Rows, center: Rows | None, diagonal: Any) -> None:
    """Name the culprit if a norm is not finite: an fp64 sum of squares of finite fp32 numbers always is."""
    found = np.asarray(diagonal.cpu() if data.device is not None else diagonal)
    if np.isfinite(found).all():
        return
    if center is not None:
        raise_first_nonfinite(center, op=f"{op}: center")
    raise_first_nonfinite(data, np.flatnonzero(~np.isfinite(found)), op)
