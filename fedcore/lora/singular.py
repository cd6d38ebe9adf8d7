"""The SVD of a product of stacked factors, without forming it, and its truncations to several ranks at once.

For Δ = B A with B (d_out, R) and A (R, d_in), thin QR of both, B = Q_B R_B and Aᵀ = Q_A R_A, leaves the R × R core
R_B R_Aᵀ, whose SVD U S Vᵀ is that of Δ with Q_B U and Q_A V for singular vectors. Cost: O((d_in + d_out) R²).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Truncation(NamedTuple):
    """Factors of one rank, Δ ≈ scale · b · a, in fp64: a (rank, d_in), b (d_out, rank).

    norm is ‖Δ‖ and residual ‖Δ − scale · b · a‖ / ‖Δ‖, 0 if Δ is 0.
    """

    a: np.ndarray
    b: np.ndarray
    norm: float
    residual: float


def truncations(b: np.ndarray, a: np.ndarray, wanted: Sequence[tuple[int, float]]) -> list[Truncation]:
    """The best factors of each (rank, scale) of b (d_out, R) · a (R, d_in), from one factorisation.

    They are balanced: both carry the root of a singular value. The sign of each direction makes the largest entry of
    its column of scale · b positive. A direction in which Δ is 0 keeps a unit row in a and zeros in b, like a fresh
    adapter: with zeros in both, no training would ever bring it back.
    """
    return balanced(*singular(b, a), wanted)


def singular(b: np.ndarray, a: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(left (d_out, m), values (m,), right (m, d_in)) of b · a: its SVD with m = min(R, d_out, d_in) terms.

    `left` has orthonormal columns and `right` orthonormal rows, whatever the rank of the product; the largest entry of
    each column of `left` is positive.
    """
    q_b, r_b = np.linalg.qr(b)
    q_a, r_a = np.linalg.qr(a.T)
    u, values, vt = np.linalg.svd(r_b @ r_a.T, full_matrices=False)
    left, right = q_b @ u, vt @ q_a.T
    sign = np.where(left[np.abs(left).argmax(0), np.arange(len(values))] < 0, -1.0, 1.0)
    return left * sign, values, right * sign[:, None]


def balanced(
    left: np.ndarray, values: np.ndarray, right: np.ndarray, wanted: Sequence[tuple[int, float]]
) -> list[Truncation]:
    """`truncations` of a product whose SVD is known."""
    return [_cut(left, values, right, rank, scale) for rank, scale in wanted]


def _cut(left: np.ndarray, values: np.ndarray, right: np.ndarray, rank: int, scale: float) -> Truncation:
    kept = min(rank, len(values))
    alive = values[:kept] > values[0] * max(len(left), right.shape[1]) * np.finfo(np.float64).eps
    root = np.sqrt(values[:kept] / abs(scale))
    out_a, out_b = np.zeros((rank, right.shape[1])), np.zeros((len(left), rank))
    out_a[:kept] = right[:kept] * np.where(alive, root, 1.0)[:, None]
    out_b[:, :kept] = left[:, :kept] * (np.where(alive, root, 0.0) * np.sign(scale))
    norm = float(np.linalg.norm(values))
    lost = float(np.linalg.norm(np.concatenate((values[:kept][~alive], values[kept:]))))
    return Truncation(out_a, out_b, norm, lost / norm if norm else 0.0)
