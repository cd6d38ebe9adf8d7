"""Definition of hadamard: the orthonormal fast Walsh–Hadamard transform, block by block, in place.

    y = H x / √N for each block of N = 2^m elements,   H_jk = (−1)^popcount(j & k)

Stages h = 1, 2, 4, … N/2, in this order, in fp32: of each pair of elements h apart inside 2h, (a, b) becomes
(a + b, a − b), each rounded once; after the last stage each element is multiplied by fp32(1/√N), a power of two where
m is even. A stage's output comes from two inputs alone, so however passes are cut, the bits are the same on every
backend, ISA and thread count. It is its own inverse up to rounding; ‖error‖ ≤ (m + 2) · 2⁻²⁴ · ‖x‖ to first order (each
stage's rounding errors are at most 2⁻²⁴ of its outputs, and stages and scale keep the ratio of norms).
Order of rows: Hadamard's ("natural"), not by sequency. Source: Fino and Algazi 1976, "Unified Matrix Treatment of the
Fast Walsh–Hadamard Transform".
"""

from __future__ import annotations

import numpy as np


def hadamard(x: np.ndarray, block: int, threads: int = 1) -> bool:
    """Transform `x` (d,) fp32 in place, d a multiple of `block`. Returns True if any output is not finite."""
    with np.errstate(invalid="ignore", over="ignore"):
        h = 1
        while h < block:
            pairs = x.reshape(-1, 2, h)
            total = pairs[:, 0] + pairs[:, 1]
            pairs[:, 1] = pairs[:, 0] - pairs[:, 1]
            pairs[:, 0] = total
            h *= 2
        x *= np.float32(np.sqrt(1 / np.float64(block)))
    return not np.isfinite(x).all()
