"""The public squared_norms."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedcore.backends import implementation
from fedcore.ops.rows import Rows, as_center, as_rows, choose, raise_first_nonfinite, tensors_of, thread_count


def squared_norms(rows: Any, center: Any = None, *, backend: str | None = None, threads: int | None = None) -> Any:
    """‖x_i − center‖² of each row: (n,) fp64, on the device of the rows.

    rows     (n, d) array or tensor, a sequence of n 1-D arrays, or a RowTable; fp32, fp16 or bf16
    center   a (d,) row of any of those dtypes; None is zero

    The same bits on every backend, ISA and thread count (order: fedcore/reference/squared_norms.py).
    Raises ShapeError, DTypeError, and NonFiniteError with the row and column of a NaN or Inf.
    """
    data = as_rows(rows)
    middle = as_center(center, data)
    result = run_statistic("squared_norms", data, middle, backend, threads)
    check_statistic("squared_norms", data, middle, result)
    return result


def run_statistic(op: str, data: Rows, center: Rows | None, backend: str | None, threads: int | None) -> Any:
    """Call a statistic's backend: (rows, center, threads) -> NumPy, brought to the caller's kind of array."""
    name = choose(data, backend)
    if name == "triton":
        result = implementation(op, name)(
            tensors_of(data), None if center is None else tensors_of(center)[0], thread_count(threads)
        )
        return result if data.device is not None else result.numpy()
    result = implementation(op, name)(data.table, None if center is None else center.table, thread_count(threads))
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
