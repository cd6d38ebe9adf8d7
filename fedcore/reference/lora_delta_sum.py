"""Definition of lora_delta_sum.

    Y = round( Σ_i c_i B_i A_i + base ),   B_i (d_out, r_i), A_i (r_i, d_in), clients with c_i = 0 not read

The terms of an element y_pq are c_i · b_i[p, j] · a_i[j, q], clients in order and j in order: K = Σ r_i of them. Each
b' = c_i · b_i[p, j] is formed in fp64 and rounded once to fp32. Chains of CHAIN terms, counted over all K, are summed
in fp32 from +0 with fused multiply-adds, s = RN32(b' · a + s). The first chain's sum, widened to fp64, is added to by
the others' in order, then by the base; the one rounding after that is to nearest even, straight from fp64 to the output
dtype. The order alone fixes the bits: they are the same here, in C on every ISA and for every thread count.

Error, with u = 2⁻²⁴, P = Σ |c_i b_i a_i| over the K terms of an element, before the last rounding:

    |ŷ − y| ≤ (min(K, CHAIN) + 2) · u · P + K · 2⁻¹⁴⁹ · (1 + max |a|)

Each b' is off by u (and 2⁻⁵³) relatively, or by 2⁻¹⁵⁰ where it is subnormal; a chain of m fused multiply-adds adds at
most m · u of its terms (Higham 2002, Accuracy and Stability of Numerical Algorithms, §3.1), or 2⁻¹⁵⁰ each; chains are
added in fp64. Errors of random sign give about √m · u / 3. Where b' or a sum is above fp32, the output is not finite.

Triton (fedcore/kernels/lora_delta_sum.py) cuts the same chains and adds them in fp64 alike, but the order inside a
chain is the hardware's: it has the same bound, not the same bits. Factors of one 16-bit dtype go to matrix units there
(fedcore/kernels/lora_delta_half.py), with + 6 in place of + 2 in the bound.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from fedcore.dtypes import name_of, round_from_float64, to_float64
from fedcore.factors import Factors

#: terms that are summed in fp32
CHAIN = 256


def lora_delta_sum(
    factors: Factors, coefficients: np.ndarray, base: np.ndarray | None, out: np.ndarray, threads: int = 1
) -> bool:
    """Write Σ c_i B_i A_i + base into `out` (d_out, d_in); coefficients (n,) fp64. True if any output is not finite."""
    with np.errstate(invalid="ignore", over="ignore", under="ignore"):
        total = None
        for chain in chains(list(terms(factors, coefficients))):
            total = chain.astype(np.float64) if total is None else total + chain
        if total is None:
            total = np.zeros((factors.d_out, factors.d_in))
        if base is not None:
            total = total + to_float64(base)
        out[...] = rounded = round_from_float64(total, name_of(out.dtype))
        return not np.isfinite(to_float64(rounded)).all()


def terms(factors: Factors, coefficients: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(b' (d_out,), a (d_in,)) fp32 of each rank-one term, in order."""
    for i in np.flatnonzero(coefficients).tolist():
        b, a = factors.wide(i)
        scaled = (coefficients[i] * b).astype(np.float32)
        for j in range(int(factors.ranks[i])):
            yield scaled[:, j], a[j].astype(np.float32)


def chains(pairs: list[tuple[np.ndarray, np.ndarray]]) -> Iterator[np.ndarray]:
    """(d_out, d_in) fp32 sums of CHAIN terms each."""
    for start in range(0, len(pairs), CHAIN):
        total = np.zeros((len(pairs[start][0]), len(pairs[start][1])), np.float32)
        for b, a in pairs[start : start + CHAIN]:
            total = fused_multiply_add(b[:, None], a[None, :], total)
        yield total


def fused_multiply_add(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """RN32(x · y + z) of fp32 arrays, with one rounding.

    The product is exact in fp64. Its sum with z is rounded there to odd: what TwoSum (Knuth) says was cut off stays
    visible in the last bit, so that the second rounding equals a direct one (Boldo and Melquiond 2008, "Emulation of a
    FMA and correctly rounded sums: proved algorithms using rounding to odd").
    """
    product, addend = x.astype(np.float64) * y, z.astype(np.float64)
    total = product + addend
    back = total - product
    error = (product - (total - back)) + (addend - back)
    bits = total.view(np.int64)
    inexact = (error != 0) & np.isfinite(total) & ((bits & 1) == 0)
    bits = np.where(inexact, np.where((error > 0) == (total > 0), bits + 1, bits - 1), bits)
    return bits.view(np.float64).astype(np.float32)
