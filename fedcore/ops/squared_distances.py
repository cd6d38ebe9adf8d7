"""The public squared_distances."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedcore.backends import implementation
from fedcore.errors import DTypeError, ShapeError
from fedcore.ops.rows import Rows, as_rows, choose, raise_first_nonfinite, thread_count
from fedcore.ops.tiles import tiles_of


def squared_distances(
    rows: Any,
    pairs: Any,
    *,
    total: np.ndarray | None = None,
    backend: str | None = None,
    threads: int | None = None,
) -> np.ndarray:
    """‖x_i − x_j‖² for pairs of rows, formed directly in fp64 with columns in order: (m,) fp64 NumPy.

    rows     as in `gram`
    pairs    (m, 2) integers, row numbers
    total    (m,) fp64 of the columns before, to go on from: added to in place and returned. Tiles of any width give the
             bits of one pass.

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
    result = np.zeros(len(index)) if total is None else total
    name = choose(data, backend)
    if name == "triton":
        result[:] = _on_device(data, index, result, thread_count(threads))
    else:
        implementation("squared_distances", name)(data.table, index, thread_count(threads), result)
    if not np.isfinite(result).all():
        raise_first_nonfinite(data, np.unique(index[~np.isfinite(result)]), "squared_distances")
    return result


def _on_device(data: Rows, index: np.ndarray, total: np.ndarray, threads: int) -> np.ndarray:
    """What the Triton kernel adds to `total`, tile by tile where rows are encoded."""
    import torch

    found = torch.tensor(total, device=data.device)
    for _, rows in tiles_of(data):
        implementation("squared_distances", "triton")(rows, index, threads, found)
    return found.cpu().numpy()
