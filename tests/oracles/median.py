"""The geometric median of few rows in long double: Vardi and Zhang's condition at each row, else Newton's steps."""

from __future__ import annotations

import numpy as np

LONG = np.longdouble


def geometric_median(rows: np.ndarray) -> np.ndarray:
    """(d,) long double. Rows are seen from the one with the least sum of distances, so that near ones keep all bits."""
    x = np.asarray(rows, LONG)
    least, start = None, None
    for row in x:
        away, d = lengths(x - row), x - row
        pull = np.divide(1, away, out=np.zeros_like(away), where=away > 0)
        force, held = lengths(pull @ d), (away == 0).sum()
        if force <= held:
            return row
        if least is None or away.sum() < least:
            least, start = away.sum(), (row, (1 - held / force) * (pull @ d) / pull.sum())
    origin, z = start
    y = x - origin
    for _ in range(3000):
        step = _better(y, z)
        if step is None:
            break
        z = step
    return origin + z


def lengths(vectors: np.ndarray) -> np.ndarray:
    """‖v‖ of each, (…,)."""
    return np.sqrt((vectors * vectors).sum(-1))


def _better(y: np.ndarray, z: np.ndarray) -> np.ndarray | None:
    """A point with a smaller sum of distances along Newton's step or Weiszfeld's; None where there is none."""
    away, gradient, weight = lengths(z - y), *_gradient(y, z)
    if lengths(gradient) <= LONG(1e-17) * len(y):
        return None
    unit = (z - y) / away[:, None]
    hessian = weight * np.eye(len(z), dtype=LONG) - np.einsum("i,ij,ik->jk", 1 / away, unit, unit)
    with np.errstate(divide="ignore", invalid="ignore"):
        newton = -_solved(hessian, gradient)
    for step in (newton, -gradient / weight):
        for part in (1, 0.5, 0.25, 0.1, 0.02, 0.004):
            found = z + LONG(part) * step
            after = lengths(found - y)
            if not (after > 0).all():
                continue
            # |a| − |b| as (a − b)(a + b) / (|a| + |b|), which does not cancel
            change = (((found - z) * (found + z - 2 * y)).sum(1) / (after + away)).sum()
            shorter = lengths(_gradient(y, found)[0]) < 0.9 * lengths(gradient)
            if change < 0 or (shorter and abs(change) < 1e-25):
                return found
    return None


def _gradient(y: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The gradient of the sum of distances at z, and Σ 1 / distance."""
    pull = 1 / lengths(z - y)
    return pull @ (z - y), pull.sum()


def _solved(matrix: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """Gauss with pivots, as NumPy has no solver in long double; NaN where the matrix is singular, and no step then."""
    a, k = np.column_stack((matrix, vector)), len(vector)
    for i in range(k):
        pivot = i + int(np.argmax(np.abs(a[i:, i])))
        a[[i, pivot]] = a[[pivot, i]]
        for j in range(k):
            if j != i:
                a[j] -= a[j, i] / a[i, i] * a[i]
    return a[:, k] / np.diagonal(a)
