"""Definition of lora_truncate: the leading singular triplets of a product of stacked factors, without the product.

For Δ = B A with B (d_out, R) and A (R, d_in), thin QR of both, B = Q_B R_B and Aᵀ = Q_A R_A, leaves the core R_B R_Aᵀ,
whose SVD U S Vᵀ is that of Δ with Q_B U and Q_A V for singular vectors. Keeping the largest singular values gives the
closest product of that rank in the Frobenius norm (Eckart and Young 1936, "The approximation of one matrix by another
of lower rank"). Cost: O((d_in + d_out) R²), never d_in · d_out. All in fp64: what is lost to rounding is at most
(d_in + d_out + R min(R, d)) 2⁻⁵³ P with d the larger of both sides and P = Σ ‖b_j‖‖a_j‖ over the rank-one terms
(Higham 2002, Accuracy and Stability of Numerical Algorithms, §19.3; a wide matrix takes no more reflections than it has
rows), however small their sum is: where terms cancel, a singular value up to that may be 0.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Leading(NamedTuple):
    """The q leading singular triplets of Δ, and what is known of the others; fp64.

    left, right   (d_out, q) and (q, d_in), orthonormal columns and rows
    values        (q,) descending
    norm          ‖Δ‖ (Frobenius)
    lost          ‖Δ − left · values · right‖
    slack         how far norm² and lost² may be off, at most, by how they were found
    noise         what rounding makes of 0 at most: norm, lost and each of `values` may be off by that, too
    fourth        Σ σ⁴ over all singular values of Δ, at most
    terms         R: no more singular values than these are not 0
    core          how they were found: 'qr', 'gram' or 'block'
    """

    left: np.ndarray
    right: np.ndarray
    values: np.ndarray
    norm: float
    lost: float
    slack: float
    noise: float
    fourth: float
    terms: int
    core: str


def lora_truncate(b: np.ndarray, a: np.ndarray, q: int) -> Leading:
    """The q leading triplets, or as many as min(R, d_out, d_in), of b (d_out, R) · a (R, d_in), both fp64."""
    q_b, r_b = np.linalg.qr(b)
    q_a, r_a = np.linalg.qr(a.T)
    u, values, vt = np.linalg.svd(r_b @ r_a.T, full_matrices=False)
    q = min(q, len(values))
    lost, norm = float(np.linalg.norm(values[q:])), float(np.linalg.norm(values))
    fourth, terms = float((values**4).sum()), a.shape[0]
    # columns of R_B and R_A are as long as those of B and Aᵀ; hypot neither overflows nor loses what is small
    sizes = np.hypot.reduce(r_b, axis=0) @ np.hypot.reduce(r_a, axis=0)
    noise = (b.shape[0] + a.shape[1] + terms * min(terms, max(b.shape[0], a.shape[1]))) * 2.0**-53 * float(sizes)
    return Leading(q_b @ u[:, :q], vt[:q] @ q_a.T, values[:q], norm, lost, 0.0, noise, fourth, terms, "qr")
