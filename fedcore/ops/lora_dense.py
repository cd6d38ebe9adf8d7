"""The leading triplets of a matrix that is given whole, such as the median of updates, where few of many are wanted.

The block iteration of lora_cores.py with products by the matrix itself in place of Grams: no R × R matrix is held, and
no product of two of them made. The triplets are those of Qᵀ Δ in fp64, ‖Δ‖² is summed in fp64, and what bounds other
triplets, Σ σ⁴ = ‖ΔᵀΔ‖², comes from tiles of ΔᵀΔ in fp32 that are never held together.
"""

from __future__ import annotations

import numpy as np

from fedcore.ops.lora_cores import iterate, wide_product
from fedcore.reference.lora_truncate import Leading

#: columns of ΔᵀΔ that exist at a time
COLUMNS = 512
#: largest elements between which products in fp32 neither overflow nor lose what matters
RANGE = (2.0**-40, 2.0**40)


def dense_core(delta: np.ndarray, q: int) -> Leading:
    """The q leading triplets of delta (d_out, d_in), fp32 and finite; q well below both sides."""
    if delta.shape[1] > delta.shape[0]:
        found = dense_core(delta.T, q)
        return found._replace(left=found.right.T, right=found.left.T)
    largest = float(np.abs(delta).max())
    unit = 1.0
    if largest and not RANGE[0] < largest < RANGE[1]:
        unit = 2.0 ** float(np.clip(-np.frexp(largest)[1], -126, 126))
        delta = delta * np.float32(unit)
    (d_out, d_in), step = delta.shape, np.finfo(np.float64).eps / 2
    square = sum(float(np.square(row, dtype=np.float64).sum()) for row in delta)
    coefficients = iterate(lambda x: x, lambda x: delta.T @ (delta @ x), d_in, delta.dtype, q, square)
    basis = np.linalg.qr((delta @ coefficients.astype(delta.dtype)).astype(np.float64))[0]
    q_a, r_a = np.linalg.qr(wide_product(np.ascontiguousarray(basis.T), delta).T)
    u, values, vt = np.linalg.svd(r_a.T)
    lost = max(square - float(values @ values), 0.0)
    slack, fourth = 4 * (d_out + d_in) * step * square, _fourth(delta, square)
    scaled = values / unit, float(np.sqrt(square)) / unit, float(np.sqrt(lost)) / unit
    noise = (d_out + d_in + q**2) * step * scaled[1]
    return Leading(basis @ u, vt @ q_a.T, *scaled, slack / unit**2, noise, fourth / unit**4, d_in, "block")


def _fourth(delta: np.ndarray, square: float) -> float:
    """Σ σ⁴ = ‖ΔᵀΔ‖² at most: an inner product of two columns is off by γ times their norms, all of them by γ ‖Δ‖²."""
    (d_out, d_in), total = delta.shape, 0.0
    for start in range(0, d_in, COLUMNS):
        own = slice(start, start + COLUMNS)
        tile = delta[:, start:].T @ delta[:, own]
        squares = np.einsum("ij,ij->i", tile, tile, dtype=np.float64)
        width = tile.shape[1]
        # what is below the tile on the diagonal stands above it, too
        total += float(squares[:width].sum() + 2 * squares[width:].sum())
    rounding = (d_out + 8) * float(np.finfo(np.float32).eps) / 2
    return (np.sqrt(total) + rounding * square) ** 2
