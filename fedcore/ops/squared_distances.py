"""The public squared_distances."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedcore.backends import implementation
from fedcore.errors import DTypeError, ShapeError
from fedcore.ops.rows import as_rows, choose, raise_first_nonfinite, thread_count


def squared_distances(rows: Any, pairs: Any, *, backend: str | None = None, threads: int | None = None) -> np.ndarray:
    """‖x_i − x_j‖² for pairs of rows, formed directly in fp64 with columns in order: (m,) fp64 NumPy.

    rows     as in `gram`
    pairs    (m, 2) integers, row numbers

    The oracle of certified selection: exact to (d + 2) · 2⁻⁵³, the same bits on every backend and thread count.
    Raises ShapeError (a row number out of range), DTypeError, and NonFiniteError with row and column.
    """
    data = as_rows(rows)
    given = np.asarray(pairs)
    if given.size and given.dtype.kind not in "iu":
        raise DTypeError(f"pairs: got {given.dtype}, expected integer row numbers")
    index = np.ascontiguousarray(given, np.int64)
    if index.ndim != 2 or index.shape[1] != 2:
        raise ShapeError(f"pairs: got shape {index.shape}, expected (m, 2) row numbers")
    if index.size and (index.min() < 0 or index.max() >= data.n):
        raise ShapeError(f"pairs: got row numbers {index.min()} to {index.max()}, expected 0 to {data.n - 1}")
    result = implementation("squared_distances", choose(data, backend))(data.table, index, thread_count(threads))
    if not np.isfinite(result).all():
        raise_first_nonfinite(data, np.unique(index[~np.isfinite(result)]), "squared_distances")
    return result
