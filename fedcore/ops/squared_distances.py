"""The public squared_distances."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedcore.backends import implementation
from fedcore.errors import BackendError, ShapeError, WeightError
from fedcore.ops.host_numbers import host_numbers
from fedcore.ops.rows import Rows, as_rows, checked_total, choose, raise_first_nonfinite, thread_count
from fedcore.ops.tiles import tiles_of


def squared_distances(
    rows: Any,
    pairs: Any,
    *,
    mix: Any = None,
    total: np.ndarray | None = None,
    backend: str | None = None,
    threads: int | None = None,
) -> np.ndarray:
    """‖y_i − y_j‖² for pairs of rows, or of mixtures of rows, formed directly in fp64 with columns in order: (m,) fp64.

    rows     as in `gram`; on the host where they are mixed
    pairs    (m, 2) integers: row numbers, or mixtures
    mix      (mixtures, n) finite numbers, taken as fp64: y_m = Σ_i mix_mi x_i. Default: y are the rows themselves.
    total    (m,) fp64 NumPy, contiguous and writable, of the columns before, to go on from: added to in place and
             returned. Tiles of any width give the bits of one pass.

    The oracle of certified selection: exact to (d + 2) · 2⁻⁵³, and to (n + 1) · 2⁻⁵³ of Σ_i |mix_mi x_i| where rows are
    mixed; the same bits on every backend and thread count. Raises ShapeError (a number out of range), DTypeError,
    WeightError (a number of `mix` that is not finite), NonFiniteError with row and column, and BackendError for
    mixtures on Triton.
    """
    data = as_rows(rows)
    index = np.require(host_numbers("pairs", pairs, "iu", "integer row numbers"), np.int64, ["C", "A"])
    if index.ndim != 2 or index.shape[1] != 2:
        raise ShapeError(f"pairs: got shape {index.shape}, expected (m, 2) row numbers")
    mixed = None if mix is None else _checked(mix, data.n)
    points, what = (data.n, "row numbers") if mixed is None else (len(mixed), "mixtures")
    if index.size and (index.min() < 0 or index.max() >= points):
        raise ShapeError(f"pairs: got {what} {index.min()} to {index.max()}, expected 0 to {points - 1}")
    before = checked_total(total, (len(index),))
    result = np.zeros(len(index)) if before is None else before
    name = choose(data, backend)
    if name == "triton":
        if mixed is not None:
            raise BackendError("squared_distances: the triton backend mixes no rows; use 'c' or 'reference' for mix=")
        result[:] = _on_device(data, index, result, thread_count(threads))
    else:
        implementation("squared_distances", name)(data.table, index, thread_count(threads), result, mixed)
    if not np.isfinite(result).all():
        among = np.unique(index[~np.isfinite(result)])
        among = among if mixed is None else np.flatnonzero(mixed[among].any(axis=0))
        raise_first_nonfinite(data, among, "squared_distances")
    return result


def _checked(mix: Any, rows: int) -> np.ndarray:
    """The coefficients of mixtures, contiguous in fp64."""
    found = np.require(host_numbers("mix", mix), np.float64, ["C", "A"])
    if found.ndim != 2 or found.shape[1] != rows:
        raise ShapeError(f"mix: got shape {found.shape}, expected (mixtures, {rows}), a coefficient a row")
    if not np.isfinite(found).all():
        m, i = np.argwhere(~np.isfinite(found))[0]
        raise WeightError(f"mix: got {found[m, i]} for row {i} of mixture {m}, expected finite numbers")
    return found


def _on_device(data: Rows, index: np.ndarray, total: np.ndarray, threads: int) -> np.ndarray:
    """What the Triton kernel adds to `total`, tile by tile where rows are encoded."""
    import torch

    found = torch.tensor(total, device=data.device)
    for _, rows in tiles_of(data):
        implementation("squared_distances", "triton")(rows, index, threads, found)
    return found.cpu().numpy()
