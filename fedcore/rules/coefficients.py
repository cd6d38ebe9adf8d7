"""Coefficients of rows: how they are multiplied, rounded and seen as points, in n-space and without BLAS."""

from __future__ import annotations

import numpy as np

#: the smallest fp32 number that keeps all 24 bits
SMALLEST_NORMAL = 2.0**-126


def combine(coefficients: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """coefficients (…, a) · matrix (a, k), added strictly in row order, as no BLAS product promises: (…, k).

    Zeros are left out: they change no sum.
    """
    rows = np.atleast_2d(coefficients)
    total = np.zeros((len(rows), matrix.shape[1]))
    for k in np.flatnonzero(rows.any(0)):
        some, columns = np.flatnonzero(rows[:, k]), np.flatnonzero(matrix[k])
        if 4 * some.size * columns.size < total.size:
            total[np.ix_(some, columns)] += rows[some, k, None] * matrix[k, columns]
        else:
            total += rows[:, k, None] * matrix[k]
    return total.reshape(*coefficients.shape[:-1], matrix.shape[1])


def round_coefficients(values: np.ndarray) -> np.ndarray:
    """Coefficients as they are used: fp64 rounded to fp32 once.

    Below the normal range of fp32 they become 0: the few bits that are left there could make a clipped row 1.7 times
    too long, or twice.
    """
    return np.where(np.abs(values) < SMALLEST_NORMAL, 0.0, values).astype(np.float32)


def product(matrix: np.ndarray, values: np.ndarray) -> np.ndarray:
    """matrix (a, n) · values (n,) without BLAS, whose threads spin on after so little work."""
    return np.einsum("ij,j->i", matrix, values)


def distances_to(values: np.ndarray, inner: np.ndarray) -> np.ndarray:
    """‖y_i − z‖ for z = y_o + Σ v_k (y_k − y_o), from inner products seen from row o: K_ii − 2 (K v)_i + vᵀ K v."""
    toward = product(inner, values)
    return np.sqrt(np.maximum(inner.diagonal() - 2 * toward + values @ toward, 0.0))


def stays_with_clients(matrix: np.ndarray, clients: int) -> bool:
    """Whether row i of a mixing matrix holds of all clients only client i, for each of them."""
    if len(matrix) != clients:
        return False
    off = matrix[:, :clients] != 0
    return int(off.sum()) == int(off.diagonal().sum())
