"""The table of a discrete Gaussian and its sums of draws against the exact distribution, and the bound on the rest."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest

import fedcore as fc
from fedcore.errors import RangeError
from fedcore.gaussian_table import BLOCK, MOST_HEADS, MOST_TERMS, TIES, GaussianTable, gaussian_table, thresholds

KEY = bytes(range(60, 92))
SIGMAS = (0.5, math.sqrt(17), 129, 1e6)
#: bits of an entry
BITS = 159


def base(sigma) -> Fraction:
    """σ₀² of the table for σ, exact."""
    return Fraction(sigma) ** 2 / sum(int(c) ** 2 for c in gaussian_table(Fraction(sigma)).strides)


def spreads(sigma) -> list[float]:
    """s² of each step of the sum after the first draw."""
    strides, variance = [int(c) for c in gaussian_table(Fraction(sigma)).strides], base(sigma)
    before = [sum(c * c for c in strides[:i]) for i in range(1, len(strides))]
    return [float(variance * a / (a + c * c)) for a, c in zip(before, strides[1:], strict=True)]


def integers(table: GaussianTable) -> list[int]:
    """The entries as integers of 159 bits."""
    pairs = zip(table.first.tolist(), table.rest.tolist(), strict=True)
    return [first << 127 | high << 64 | low for first, (high, low) in pairs]


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
            assert abs(entry - probability * 2**BITS) <= 0.501
        assert above[len(table.first) - 1] >= 2.0**-106 > above[len(table.first)]


@pytest.mark.parametrize("sigma", [0.5, 4, 16, 45.25, 64])
def test_what_is_drawn_is_the_distribution(sigma):
    """The exact distribution of the sum that the table and the strides give, in integers, against that of σ."""
    mpmath = pytest.importorskip("mpmath", reason="the oracle of the distribution is mpmath")
    table = gaussian_table(Fraction(sigma))
    falling = [2**BITS, *integers(table), 0]
    magnitudes = [a - b for a, b in pairwise(falling)]
    one = [*magnitudes[:0:-1], 2 * magnitudes[0], *magnitudes[1:]]
    assert sum(one) == 2 ** (BITS + 1)
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
        bits = (BITS + 1) * len(table.strides)
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
    assert len(table.first) <= 254
    assert np.count_nonzero(table.first) <= MOST_HEADS
    assert (table.first % 2 == 0).all()
    assert len(table.strides) <= MOST_TERMS
    assert table.first[-1] == 0
    assert table.strides.max() < 2**31  # kernels multiply by 32 bits
    assert fc.ops.discrete_gaussian_bits(sigma) > 100
    assert 2.0 ** -fc.ops.discrete_gaussian_bits(sigma) >= table.distance


def test_the_bound_in_exact_arithmetic():
    """A table's distance counts what is left out, rounding, more ties than words for them and the steps of the sum."""
    for sigma in (4, 1000, 1e9):
        table = gaussian_table(Fraction(sigma))
        draws, entries = len(table.strides), len(table.first)
        rounding = draws * (Fraction(1, 2**106) + Fraction(entries + 1, 2 ** (BITS + 1)))
        words = len(set(table.first.tolist()))
        many = Fraction(BLOCK * draws * words, 2**31) ** (TIES + 1) / math.factorial(TIES + 1)
        steps = [math.exp(-2 * math.pi**2 * s) for s in spreads(sigma)]
        assert Fraction(table.distance) >= rounding + many + sum(Fraction(2 * step) for step in steps)
        assert table.distance <= 1.001 * float(rounding + many + sum(Fraction(2 * step) for step in steps))
    worst = Fraction(BLOCK * MOST_TERMS * (MOST_HEADS + 1), 2**31) ** (TIES + 1) / math.factorial(TIES + 1)
    assert worst < Fraction(1, 2**106)


def test_more_ties_than_words_are_as_rare_as_that():
    """The bound beside the exact chance that more than TIES of BLOCK draws are one of `words` first words."""
    for words in (1, 26, 127):
        chance = Fraction(words, 2**31)
        terms = [math.comb(BLOCK, k) * chance**k * (1 - chance) ** (BLOCK - k) for k in range(TIES + 1, TIES + 4)]
        bound = (BLOCK * chance) ** (TIES + 1) / math.factorial(TIES + 1)
        assert sum(terms) <= bound <= 2 * sum(terms)


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
