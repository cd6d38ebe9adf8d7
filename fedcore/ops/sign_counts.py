"""The public sign_counts."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedcore.backends import implementation
from fedcore.ops.rows import as_center, as_rows, choose, raise_first_nonfinite, thread_count
from fedcore.ops.tiles import tiles_of


def sign_counts(rows: Any, center: Any = None, *, backend: str | None = None, threads: int | None = None) -> Any:
    """How many rows lie above the centre in each column, less how many lie below: (d,) int32, on the rows' device.

    rows     (n, d) array or tensor, a sequence of n 1-D arrays, or a RowTable; fp32, fp16 or bf16
    center   a (d,) row of any of those dtypes; None is zero

    Elements are compared as numbers, exactly: −0 equals +0, and a subnormal is not zero. The same on every backend
    (definition: fedcore/reference/sign_counts.py).
    Raises ShapeError, DTypeError, and NonFiniteError with the row and column of a NaN or Inf.
    """
    data = as_rows(rows)
    middle = as_center(center, data)
    name = choose(data, backend)
    count = thread_count(threads)
    if name == "triton":
        import torch

        votes: Any = torch.empty(data.d, dtype=torch.int32, device=data.device)
        suspect = False
        for columns, tensors in tiles_of(data, middle):
            around: Any = None if middle is None else tensors.pop()
            suspect |= implementation("sign_counts", name)(tensors, around, votes[columns], count)
    else:
        votes = np.empty(data.d, np.int32)
        around = None if middle is None else middle.table
        suspect = implementation("sign_counts", name)(data.table, around, votes, count)
    if suspect:
        if middle is not None:
            raise_first_nonfinite(middle, op="sign_counts: center")
        raise_first_nonfinite(data, op="sign_counts")
    if name == "triton":
        return votes if data.device is not None else votes.numpy()
    if data.device is None:
        return votes
    import torch

    return torch.from_numpy(votes)
