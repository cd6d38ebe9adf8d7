"""Definition of shamir_combine: the constant terms of the polynomials that shares lie on, by Lagrange's formula.

    s_b = Σ_i w_i · f_b(x_i),   w_i = Π_{j ≠ i} x_j / (x_j − x_i)   in GF(2^8), as in fedcore/reference/shamir_split.py

The points x_i are public; the shares are only multiplied by constants and added.
"""

from __future__ import annotations

import numpy as np

from fedcore.reference.shamir_split import REDUCTION, times


def product(a: int, b: int) -> int:
    """a · b in GF(2^8), of public numbers."""
    found = 0
    while a:
        found ^= b * (a & 1)
        a, b = a >> 1, (b << 1) ^ (b >> 7) * (0x100 | REDUCTION)
    return found


def weights(points: np.ndarray) -> list[int]:
    """Lagrange's weights at 0 of distinct points, none of them 0."""
    found = []
    for i, x in enumerate(points.tolist()):
        above, below = 1, 1
        for j, other in enumerate(points.tolist()):
            if j != i:
                above, below = product(above, other), product(below, other ^ x)
        inverse = 1
        for _ in range(254):  # the group has 255 elements
            inverse = product(inverse, below)
        found.append(product(above, inverse))
    return found


def shamir_combine(points: np.ndarray, shares: np.ndarray, out: np.ndarray) -> None:
    """Write the secrets to `out` (size,) uint8. points: (t,) uint8; shares: (t, size) uint8."""
    out[:] = 0
    for weight, share in zip(weights(points), shares, strict=True):
        out ^= times(weight, share)
