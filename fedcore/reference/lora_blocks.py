"""Definition of lora_blocks: all inner products of the terms of one module's LoRA factors.

    G_B = Bᵀ B,   G_A = A Aᵀ,   B = [B_1 … B_n] (d_out, R),   A = [A_1; …; A_n] (R, d_in),   R = Σ r_i

An entry is a sum of products of fp32, fp16 or bf16 numbers, which are exact in fp64 (so that a fused multiply-add
changes nothing): within chunks of CHUNK elements, counted from the first, they are added one by one in fp64 from 0.0,
and the chunks' sums are added in order to 0.0. That fixes the bits: they are the same here and in C, on every ISA and
for every thread count. Factors in fp64 (as a QR rebuilds them) are taken too; their products are fused multiply-adds in
C, so that bits differ between backends, not between ISAs.

Error: |Ĝ_pq − G_pq| ≤ (CHUNK + ⌈d / CHUNK⌉) · 2⁻⁵³ · Σ |x_p x_q| (Higham 2002, Accuracy and Stability of Numerical
Algorithms, §3.1), which is at most (d + 1) · 2⁻⁵³ ‖x_p‖‖x_q‖ too. Triton adds inside a chunk in the hardware's order:
the same bound.
"""

from __future__ import annotations

import numpy as np

from fedcore.factors import Factors

#: elements that are summed before they are folded
CHUNK = 1024


def lora_blocks(factors: Factors, threads: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """(G_B, G_A), both (R, R) fp64 and symmetric."""
    wide = [factors.wide(i) for i in range(factors.n)]
    return _gram(np.concatenate([b.T for b, _ in wide])), _gram(np.concatenate([a for _, a in wide]))


def _gram(terms: np.ndarray) -> np.ndarray:
    total = np.zeros((len(terms), len(terms)))
    with np.errstate(invalid="ignore", over="ignore"):
        for start in range(0, terms.shape[1], CHUNK):
            part = np.zeros_like(total)
            for column in terms[:, start : start + CHUNK].T:
                part += column[:, None] * column[None, :]
            total += part
    return total
