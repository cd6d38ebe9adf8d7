"""Tails of the hypergeometric and binomial distributions, and of random graphs, as base-2 logarithms.

Sums of all terms over a table of log-factorials: no Chernoff bound, no simulation. Results are rounded up by 1e-6 bits,
far above what fp64 can lose here, so that a bound that is met is met.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np

from fedcore.errors import PrivacyError

_UP = 1e-6
#: sizes of sets whose chances are found together
_SIZES = 256


@cache
def _log2_factorials(most: int) -> np.ndarray:
    return np.concatenate([[0.0], np.cumsum(np.log2(np.arange(1, most + 1, dtype=np.float64)))])


def _table(most: int) -> np.ndarray:
    return _log2_factorials(1 << max(10, (most + 1).bit_length()))


def log2_sum(terms: np.ndarray | list[float]) -> float:
    """log2 of the sum of numbers that are given by their log2, at most 0 being kept: a bound on a chance."""
    values = np.asarray(terms, np.float64)
    largest = float(values.max(initial=-math.inf))
    if largest == -math.inf:
        return -math.inf
    return min(0.0, largest + math.log2(float(np.exp2(values - largest).sum())))


def log2_choose(n: int, k: int) -> float:
    """log2 of the binomial coefficient; −inf where there is no way to choose."""
    if not 0 <= k <= n:
        return -math.inf
    table = _table(n)
    return float(table[n] - table[k] - table[n - k])


def hypergeometric(population: int, marked: int, drawn: int, least: int) -> float:
    """log2 P[X >= least] of X marked ones among `drawn` of `population`, drawn without replacement; `marked` in all.

    Raises PrivacyError unless 0 <= marked <= population.
    """
    return float(hypergeometrics(population, np.array([marked]), drawn, least)[0])


def hypergeometrics(population: int, marked: np.ndarray, drawn: int, least: int) -> np.ndarray:
    """`hypergeometric` for each number of marked ones."""
    if ((marked < 0) | (marked > population)).any():
        raise PrivacyError(f"marked: got {marked.min()} to {marked.max()}, expected from 0 to {population}")
    table, x = _table(population), np.arange(max(least, 0), drawn + 1)
    marked = marked[:, None]
    left, others = marked - x, population - marked - drawn + x  # that are not drawn
    ways = table[marked] - table[x] - table[np.maximum(left, 0)]
    ways += table[population - marked] - table[drawn - x] - table[np.maximum(others, 0)]
    ways[(left < 0) | (others < 0)] = -np.inf
    largest = ways.max(1, initial=-np.inf)
    there = largest > -np.inf
    sums = np.full(len(ways), -np.inf)
    sums[there] = largest[there] + np.log2(np.exp2(ways[there] - largest[there, None]).sum(1))
    return np.minimum(0.0, sums - log2_choose(population, drawn) + _UP)


def binomial(trials: int, chance: float, least: int) -> float:
    """log2 P[X >= least] of X successes in independent trials."""
    if least <= 0 or chance >= 1:
        return 0.0
    if least > trials or chance <= 0:
        return -math.inf
    table, x = _table(trials), np.arange(least, trials + 1)
    terms = table[trials] - table[x] - table[trials - x] + x * math.log2(chance) + (trials - x) * math.log2(1 - chance)
    return min(0.0, log2_sum(terms) + _UP)


def gap_in_circle(clients: int, removed: int, width: int) -> float:
    """log2 of a bound on the chance that `width` neighbours on a random circle are all removed, anywhere on it.

    The graph that joins each client to the `width` before and the `width` after it stays connected without the removed
    ones unless this happens, at two places even (Bell et al. 2020, on Harary graphs).
    """
    if removed < width:
        return -math.inf
    chance = log2_choose(removed, width) - log2_choose(clients, width)
    return min(0.0, math.log2(clients) + chance + _UP)


def least_closed(clients: int, corrupt: int, drawn: int, threshold: int, most: float) -> int:
    """The least size that a closed set of honest clients can have, but for a chance of 2**most.

    Each client draws `drawn` others; a set is closed if each of its members drew at least `threshold` that are in the
    set or corrupt. Draws are independent, so a set of s is closed with chance q**s, q a hypergeometric tail, and there
    are C(honest, s) of them: the sum over all smaller sizes is at most 2**most.
    """
    honest, total, table = clients - corrupt, -math.inf, _table(clients)
    for first in range(1, honest + 1, _SIZES):
        sizes = np.arange(first, min(first + _SIZES, honest + 1))
        ways = table[honest] - table[sizes] - table[honest - sizes]
        terms = ways + sizes * hypergeometrics(clients - 1, corrupt + sizes - 1, drawn, threshold)
        totals = np.logaddexp2.accumulate(np.concatenate([[total], terms]))[1:]
        if (totals > most).any():
            return int(sizes[np.argmax(totals > most)])
        total = totals[-1]
    return honest
