"""The cumulative table of a discrete Gaussian, how draws from a narrow one make a wide one, and how exact both are.

The discrete Gaussian of scale σ has P(x) ∝ exp(−x² / 2σ²) on the integers. A table holds, for k = 0, 1, …,

    2¹⁵⁹ · P(|X| > k), rounded, as a first word of 31 bits and two more of 64,

from integer arithmetic of BITS bits, so that |X| is the number of entries above a uniform number of 159 bits.

A table of a large σ would be long, so X = Σ c_i X_i of T draws at σ₀ = σ / √(Σ c_i²), c_0 = 1. The sum of the first i
draws and c_i X_i has, by Poisson summation, the ratios of a discrete Gaussian up to 1 ± ε, ε = 2 Σ_j exp(−2π² s² j²),
where s² = σ₀² A / (A + c_i²), A = c_0² + … + c_{i−1}² (Micciancio and Walter, CRYPTO 2017, section 4; powers of one
stride a are the case c_i = aⁱ, whose first step asks for a² ≤ (σ₀/s)² − 1). Strides here are the largest for which
s² ≥ SMOOTHING, so that a step costs less than 2⁻¹⁰⁴ in total variation.

A draw has a word of 32 bits: its sign, and v of 31 bits. v decides alone unless it is the first word of an entry. Such
ties are rare, so that BLOCK samples share words of 128 bits for TIES of them: the first tie of a block takes the first,
and so on, in the order of samples and then draws. With no more ties than that, every draw is what a number of 159 bits
of its own makes of it. A block has more with probability at most (BLOCK · T · H / 2³¹)⁹ / 9! for a table of H different
first words, which is part of its distance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import numpy as np

from fedcore.errors import RangeError

#: fixed-point bits in which a table is made
BITS = 320
#: total variation that the values left out of a table may have
TAIL_BITS = 106
SMOOTHING = Fraction(37, 10)
#: strides up to MOST stay below 2^31, which csrc/fedcore.h asks for
LEAST, MOST = Fraction(1, 2), Fraction(10**9)
#: draws of a sample at most
MOST_TERMS = 9
#: samples that share words for ties, from a multiple of it on, and how many ties those are for
BLOCK, TIES = 2048, 8
#: bits of a first word, and of the rest of an entry
FIRST, REST = 31, 128
#: the base σ is looked for in steps of 1 / GRID
GRID = 64
#: raised whenever a key comes to give other samples: charges name it
SAMPLER = 4
#: entries of a table at most, and those whose first word is not 0: csrc/impl.h
MOST_ENTRIES, MOST_HEADS = 254, 126


@dataclass(frozen=True)
class GaussianTable:
    """What a sampler needs for one σ.

    first     (entries,) uint32: twice an entry's first word, which a draw's word is compared with, its sign in the last
              bit; they fall, the last is 0
    rest      (entries, 2) uint64: the rest of an entry, the high word first
    strides   (terms,) int64: c_i
    distance  an upper bound on the total variation distance between a sample and the discrete Gaussian of σ
    """

    first: np.ndarray
    rest: np.ndarray
    strides: np.ndarray
    distance: float

    def __post_init__(self) -> None:
        for array in (self.first, self.rest, self.strides):
            array.flags.writeable = False


def nonce_of(draw: int, shared: int, high: int) -> bytes:
    """12 bytes: the draw, 0, b"dg", the cipher block's number from bit 32 on (the rest: counter); (0, 1): for ties."""
    return bytes([draw, shared]) + b"dg" + high.to_bytes(8, "little")


@lru_cache(maxsize=64)
def gaussian_table(sigma: Fraction) -> GaussianTable:
    """The table of σ, a Fraction from LEAST to MOST. Made once in milliseconds; the same on every machine."""
    strides = plan(sigma)
    entries = thresholds(sigma**2 / _squares(strides))
    first = [entry >> REST for entry in entries]
    if not 0 < len(entries) <= MOST_ENTRIES or not 0 <= len(first) - first.count(0) <= MOST_HEADS or first[-1]:
        raise RangeError(
            f"gaussian_table: sigma={float(sigma)!r} has a table that kernels cannot read; a plan is wrong"
        )
    rest = [[entry >> 64 & (2**64 - 1), entry & (2**64 - 1)] for entry in entries]
    found = _distance(sigma, strides, first)
    if found >= Fraction(1, 2**100):
        raise RangeError(f"gaussian_table: sigma={float(sigma)!r} is {float(found):.3g} off, expected below 2^-100")
    doubled = np.array([2 * word for word in first], np.uint32)
    bound = math.nextafter(float(found), 1.0)
    return GaussianTable(doubled, np.array(rest, np.uint64), np.array(strides, np.int64), bound)


def _distance(sigma: Fraction, strides: list[int], first: list[int]) -> Fraction:
    """Total variation, at most, between a sample and the discrete Gaussian of σ; exact but for the bound of exp."""
    terms = len(strides)
    # what is left out of a table, and half of each |difference| of two rounded entries, k = 0 to their number
    draw = Fraction(1, 2**TAIL_BITS) + Fraction(len(first) + 1, 2 ** (FIRST + REST + 1))
    ties = Fraction(BLOCK * terms * len(set(first)), 2**FIRST) ** (TIES + 1) / math.factorial(TIES + 1)
    steps = sum(Fraction(2.0001 * math.exp(-2 * math.pi**2 * s)) for s in _spreads(sigma, strides))
    return terms * draw + ties + steps


def _spreads(sigma: Fraction, strides: list[int]) -> list[float]:
    """s² of each step after the first draw."""
    base = sigma**2 / _squares(strides)
    sums = [_squares(strides[:i]) for i in range(1, len(strides))]
    return [float(base * a / (a + c * c)) for a, c in zip(sums, strides[1:], strict=True)]


def plan(sigma: Fraction) -> list[int]:
    """Strides c_i of as few draws as make a table that is short enough; in exact arithmetic.

    Where σ is about to take one draw more, as from 162 to 175, that may be one too many, by the rounding of strides.
    A search by halves costs nearly the same for every table, and a draw its word of a stream. 6.25 σ₀ + 1 is at least
    the number of entries from 2⁻³¹ on, 12 σ₀ + 1 that of all.
    """
    for terms in range(1, MOST_TERMS + 1):
        strides = _strides_of(sigma, terms) if terms > 1 else [1]
        if strides is None:
            continue
        base = Fraction(math.isqrt(math.floor(sigma**2 * GRID**2 / _squares(strides))) + 1, GRID)
        if Fraction(25, 4) * base + 1 <= MOST_HEADS and 12 * base + 1 <= MOST_ENTRIES:
            return strides
    raise RangeError(f"gaussian_table: got sigma={float(sigma)!r}, which takes more than {MOST_TERMS} draws")


def _squares(strides: list[int]) -> int:
    return sum(c * c for c in strides)


def _widest(base: Fraction, terms: int) -> list[int]:
    """The largest strides that a base of at least this σ₀ allows, one after the other."""
    strides, total = [1], 1
    while len(strides) < terms:
        strides.append(math.isqrt(math.floor(total * (base**2 / SMOOTHING - 1))))
        total += strides[-1] ** 2
    return strides


def _strides_of(sigma: Fraction, terms: int) -> list[int] | None:
    """Strides for the least base, on the grid, from which they reach σ; None if σ is too small for so many draws."""
    low = math.isqrt(math.ceil(2 * SMOOTHING * GRID**2)) + 1  # from here on a stride is 1 or more
    high = math.floor(sigma * GRID) + 1

    def reaches(m: int) -> bool:
        return Fraction(m, GRID) ** 2 * _squares(_widest(Fraction(m, GRID), terms)) >= sigma**2

    if low >= high or sigma**2 < terms * Fraction(low, GRID) ** 2:
        return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if reaches(middle) else (middle + 1, high)
    base = Fraction(low, GRID)
    strides = _widest(base, terms)
    # the last stride no larger than what is missing, so that σ₀ = σ / √(Σ c²) is at least the base
    missing = math.floor((sigma / base) ** 2) - _squares(strides[:-1])
    if missing < 1:
        return None
    strides[-1] = min(strides[-1], math.isqrt(missing))
    return strides


def _exponential(x: Fraction) -> int:
    """2^BITS · exp(−x), x ≥ 0, within a few units: the series of a 2^−h-th of x, squared h times."""
    halvings = max(math.ceil(x), 1).bit_length() + 8
    guarded = BITS + halvings + 16
    small = (x.numerator << guarded) // (x.denominator << halvings)
    total = term = 1 << guarded
    n = 0
    while term:
        n += 1
        term = (term * small >> guarded) // n
        total += -term if n % 2 else term
    for _ in range(halvings):
        total = total * total >> guarded
    return total >> (guarded - BITS)


def thresholds(variance: Fraction) -> list[int]:
    """2¹⁵⁹ · P(|X| > k), rounded, k = 0, 1, … as long as P(|X| > k) ≥ 2^−TAIL_BITS.

    variance: σ₀², exact.
    """
    step = _exponential(1 / variance)  # exp(−2x) where weight k is exp(−k² x), x = 1 / 2σ₀²
    weight, ratio, weights = 1 << BITS, _exponential(1 / (2 * variance)), []
    while weight:
        weights.append(weight)
        weight, ratio = weight * ratio >> BITS, ratio * step >> BITS
    total = 2 * sum(weights) - weights[0]
    above, entries = total - weights[0], []
    for following in [*weights[1:], 0]:
        if above << TAIL_BITS < total:
            break
        entries.append(((above << FIRST + REST + 1) + total) // (2 * total))
        above -= 2 * following
    return entries
