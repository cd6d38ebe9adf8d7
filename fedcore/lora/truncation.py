"""The best approximation of given rank to a product of stacked factors, without forming the product.

For Δ = B A with B (d_out, R) and A (R, d_in), thin QR of both, B = Q_B R_B and Aᵀ = Q_A R_A, leaves the R × R core
R_B R_Aᵀ, whose SVD U S Vᵀ is that of Δ with Q_B U and Q_A V for singular vectors. Keeping the largest singular values
gives the closest product of that rank in the Frobenius norm (Eckart and Young 1936, "The approximation of one matrix by
another of lower rank"). Cost: O((d_in + d_out) R²), never d_in · d_out.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Truncated(NamedTuple):
    """Factors of the result, Δ ≈ scale · b · a, in fp64.

    a, b       (rank, d_in) and (d_out, rank)
    norm       ‖Δ‖ (Frobenius)
    residual   ‖Δ − scale · b · a‖ / ‖Δ‖, 0 if Δ is 0
    """

    a: np.ndarray
    b: np.ndarray
    norm: float
    residual: float


def truncate(b: np.ndarray, a: np.ndarray, rank: int, scale: float) -> Truncated:
    """The best factors of rank `rank` of b (d_out, R) · a (R, d_in), balanced: both carry the root of a singular value.

    The sign of each direction makes the largest entry of its column of scale · b positive. A direction in which Δ is 0
    keeps a unit row in a and zeros in b, like a fresh adapter: with zeros in both, no training would ever bring it
    back.
    """
    q_b, r_b = np.linalg.qr(b)
    q_a, r_a = np.linalg.qr(a.T)
    u, values, vt = np.linalg.svd(r_b @ r_a.T)
    kept = min(rank, len(values))
    left, right = q_b @ u[:, :kept], vt[:kept] @ q_a.T
    largest = np.abs(left).argmax(0)
    sign = np.where(left[largest, np.arange(kept)] < 0, -1.0, 1.0)
    alive = values[:kept] > values[0] * max(r_b.shape) * np.finfo(np.float64).eps
    root = np.sqrt(values[:kept] / abs(scale))
    out_a, out_b = np.zeros((rank, a.shape[1])), np.zeros((b.shape[0], rank))
    out_a[:kept] = right * (sign * np.where(alive, root, 1.0))[:, None]
    out_b[:, :kept] = left * (sign * np.where(alive, root, 0.0) * np.sign(scale))
    norm = float(np.linalg.norm(values))
    lost = float(np.linalg.norm(np.concatenate((values[:kept][~alive], values[kept:]))))
    return Truncated(out_a, out_b, norm, lost / norm if norm else 0.0)
