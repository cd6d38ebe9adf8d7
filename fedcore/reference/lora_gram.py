"""Definition of lora_gram: inner products of the clients' updates Δ_i = s_i B_i A_i, added up over modules.

    ⟨Δ_i, Δ_j⟩ = s_i s_j Σ_p Σ_q (G_B)_pq (G_A)_pq,   p over the terms of client i, q over those of client j, j ≤ i

with the blocks of fedcore/reference/lora_blocks.py. The double sum starts at 0.0 in fp64 and takes a rounded product
and an addition a pair, p by p and q by q inside; it is multiplied by the rounded s_i s_j and added to what the modules
before gave. Same bits here and in C, on every ISA and for every thread count.

Error of one module's entry, with P_i = s_i Σ_p ‖b_p‖‖a_p‖ over the terms of client i:

    |Ĝ_ij − G_ij| ≤ (d_in + d_out + r_i r_j + 8) · 2⁻⁵³ · P_i P_j
"""

from __future__ import annotations

import numpy as np

from fedcore.factors import Factors
from fedcore.reference.lora_blocks import lora_blocks


def lora_gram(factors: Factors, scales: np.ndarray, total: np.ndarray, threads: int = 1) -> None:
    """Add one module's (n, n) inner products to `total` fp64; scales (n,) fp64."""
    gram_b, gram_a = lora_blocks(factors)
    with np.errstate(invalid="ignore", over="ignore"):
        products = gram_b * gram_a
        ends = np.cumsum(factors.ranks)
        terms = [range(int(end - rank), int(end)) for end, rank in zip(ends, factors.ranks, strict=True)]
        for i, rows in enumerate(terms):
            for j, columns in enumerate(terms[: i + 1]):
                value = np.float64(0.0)
                for p in rows:
                    for q in columns:
                        value += products[p, q]
                total[i, j] += scales[i] * scales[j] * value
                total[j, i] = total[i, j]
