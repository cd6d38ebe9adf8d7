"""The table of a discrete Gaussian and its sums of draws against the exact distribution, and the bound on the rest."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest

import fedcore as fc
from fedcore.errors import RangeError
from fedcore.gaussian_table import MOST_TERMS, GaussianTable, gaussian_table, thresholds
from fedcore.reference import discrete_gaussian as definition

KEY = bytes(range(60, 92))
SIGMAS = (0.5, math.sqrt(17), 129, 1e6)
#: what entries are multiples of: the bits of a shared word that are signs decide no tie
UNIT = 2**MOST_TERMS


def base(sigma) -> Fraction:
    """σ₀² of the table for σ, exact."""
    return Fraction(sigma) ** 2 / sum(int(c) ** 2 for c in gaussian_table(Fraction(sigma)).strides)


def spreads(sigma) -> list[float]:
    """s² of each step of the sum after the first draw."""
    strides, variance = [int(c) for c in gaussian_table(Fraction(sigma)).strides], base(sigma)
    before = [sum(c * c for c in strides[:i]) for i in range(1, len(strides))]
    return [float(variance * a / (a + c * c)) for a, c in zip(before, strides[1:], strict=True)]


def integers(table: GaussianTable) -> list[int]:
    """The entries as integers of 128 bits."""
    return [int(a) << 64 | int(b) for a, b in zip(table.first, table.second, strict=True)]


@pytest.mark.parametrize("sigma", [*SIGMAS, 10.5, 16])
def test_the_table_against_200_bits_of_mpmath(sigma):
    mpmath = pytest.importorskip("mpmath", reason="the oracle of the table is mpmath")
    variance, table = base(sigma), gaussian_table(Fraction(sigma))
    with mpmath.workprec(200):
        half = mpmath.mpf(variance.denominator) / (2 * variance.numerator)
        weights = [mpmath.exp(-half * k * k) for k in range(40 * math.ceil(variance**0.5))]
        total = 2 * mpmath.fsum(weights) - 1
        above = [2 * mpmath.fsum(weights[k + 1 :]) / total for k in range(len(table.first) + 1)]
        for entry, probability in zip(integers(table), above, strict=False):
            assert entry % UNIT == 0
            assert abs(entry - probability * 2**128) <= UNIT // 2 + 0.001
        assert above[len(table.first) - 1] >= 2.0**-106 > above[len(table.first)]


@pytest.mark.parametrize("sigma", [0.5, 4, 16, 45.25, 64])
def test_what_is_drawn_is_the_distribution(sigma):
    """The exact distribution of the sum that the table and the strides give, in integers, against that of σ."""
    mpmath = pytest.importorskip("mpmath", reason="the oracle of the distribution is mpmath")
    table = gaussian_table(Fraction(sigma))
    falling = [2**128, *integers(table), 0]
    magnitudes = [a - b for a, b in pairwise(falling)]
    one = [*(m // 2 for m in magnitudes[:0:-1]), magnitudes[0], *(m // 2 for m in magnitudes[1:])]
    assert sum(one) == 2**128
    total = np.array([1], object)
    for stride in table.strides:
        wide = np.zeros((len(one) - 1) * int(stride) + 1, object)
        wide[:: int(stride)] = one
        total = np.convolve(total, wide)
    with mpmath.workprec(200):
        half = 1 / (2 * mpmath.mpf(Fraction(sigma).numerator) ** 2 / Fraction(sigma).denominator ** 2)
        middle = len(total) // 2
        exact = [mpmath.exp(-half * k * k) for k in range(middle + 1)]
        scale = 2 * mpmath.fsum(exact) - 1
        bits = 128 * len(table.strides)
        gap = [abs(mpmath.mpf(int(total[middle + k])) / 2**bits - exact[k] / scale) for k in range(middle + 1)]
        distance = mpmath.fsum(gap) - gap[0] / 2  # both signs, halved
        assert distance < table.distance
        assert distance > table.distance / 2**40, "a bound so far off says nothing"
    assert table.distance < 2.0**-100


@pytest.mark.parametrize("sigma", [*SIGMAS, 3, 10.6, 11, 700.5, 65536, 3e7, 1e9])
def test_strides_are_smooth_enough(sigma):
    """Each step's s² is at least 3.7, so that 2 exp(−2π² s²) is below 2⁻¹⁰⁴; the table is short enough for C."""
    table = gaussian_table(Fraction(sigma))
    assert min(spreads(sigma), default=3.7) >= 3.7
    assert len(table.first) <= 127
    assert len(table.strides) <= MOST_TERMS
    assert table.first[-1] == 0
    assert table.strides.max() < 2**31  # kernels multiply by 32 bits
    assert fc.ops.discrete_gaussian_bits(sigma) > 100
    assert 2.0 ** -fc.ops.discrete_gaussian_bits(sigma) >= table.distance


def test_draws_that_share_a_word():
    """All first words of 5 bits of two draws and all shared ones, 2 bits for signs and 3 for ties: the sums are as far
    from those of independent draws as the bound says, P(both tie), and no further."""
    entries = [(27, 3), (27, 1), (14, 6), (6, 0), (0, 5)]
    table = GaussianTable(
        np.array([first << 59 for first, _ in entries], np.uint64),
        np.array([second << 61 for _, second in entries], np.uint64),
        np.array([1, 10]),
        0.0,
    )
    grid = np.indices((32, 32, 4, 8), np.uint64).reshape(4, -1)
    shared = grid[2] << np.uint64(62) | grid[3] << np.uint64(61 - MOST_TERMS)
    drawn = definition.samples([grid[0] << np.uint64(59), grid[1] << np.uint64(59)], shared, table)
    falling = [256, *(8 * first + second for first, second in entries), 0]
    sizes = [a - b for a, b in pairwise(falling)]
    one = {s * k: Fraction(size, 256 if k == 0 else 512) for k, size in enumerate(sizes) for s in (1, -1)}
    wanted = {a + 10 * b: p * q for a, p in one.items() for b, q in one.items()}
    values, counts = np.unique(drawn, return_counts=True)
    got = dict(zip(values.tolist(), counts.tolist(), strict=True))
    assert got.keys() <= wanted.keys()
    distance = sum(abs(Fraction(got.get(x, 0), grid.shape[1]) - p) for x, p in wanted.items()) / 2
    assert 0 < distance <= Fraction(4, 32) ** 2


def test_the_bound_in_exact_arithmetic():
    """A table's distance counts what is left out, rounding, two draws that tie and the steps of the sum."""
    for sigma in (4, 1000, 1e9):
        table = gaussian_table(Fraction(sigma))
        draws, entries = len(table.strides), len(table.first)
        rounding = draws * (Fraction(1, 2**106) + Fraction(entries + 1, 2**128 // (UNIT // 2)))
        ties = Fraction(math.comb(draws, 2) * entries**2, 2**128)
        steps = [math.exp(-2 * math.pi**2 * s) for s in spreads(sigma)]
        assert Fraction(table.distance) >= rounding + ties + sum(Fraction(2 * step) for step in steps)
        assert table.distance <= 1.001 * float(rounding + ties + sum(Fraction(2 * step) for step in steps))
    assert math.comb(MOST_TERMS, 2) * 127**2 < 2**21


def test_sigma_is_exact():
    """A float counts for its binary value; an int, a Fraction and a NumPy number are the same σ."""
    expected = fc.ops.discrete_gaussian(500, 4, KEY)
    for same in (4.0, Fraction(4), np.float32(4), np.int64(4)):
        assert (fc.ops.discrete_gaussian(500, same, KEY) == expected).all()
    assert thresholds(Fraction(0.1) ** 2 * 100) != thresholds(Fraction(1))


@pytest.mark.parametrize(("name", "value", "message"), [("MOST_ENTRIES", 20, "kernels"), ("TAIL_BITS", 90, "2\\^-100")])
def test_a_table_that_misses_its_bounds_is_an_error(monkeypatch, name, value, message):
    """Where the plan were wrong: an error, which `python -O` does not drop."""
    from fedcore import gaussian_table as module

    monkeypatch.setattr(module, "plan", lambda sigma: [1])
    monkeypatch.setattr(module, name, value)
    with pytest.raises(RangeError, match=message):
        module.gaussian_table.__wrapped__(Fraction(4))
