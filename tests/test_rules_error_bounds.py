"""Bounds of scores hold for sums as they round, not only as they are on paper: against exact fractions."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from fedcore.rules.selection import Scoring, _score_intervals, select
from fedcore.rules.shrinking import ShrinkingSums, choose_one_by_one

ULP = 2.0**-52
#: others than rows 0 and 1 lie so far from each other
FAR = 100.0


class Known:
    """A geometry of these squared distances, known to a thousandth and, redone, far below what adding them rounds."""

    def __init__(self, square: np.ndarray):
        self.square, self.redone = square, 0
        self.clients, self.same = len(square), np.arange(len(square))

    def intervals(self) -> tuple[np.ndarray, np.ndarray]:
        return self.square * (1 - 1e-3), self.square * (1 + 1e-3)

    def redo(self, pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self.redone += len(pairs)
        return self.square[pairs[:, 0], pairs[:, 1]], np.full(len(pairs), 1e-300)


def tied() -> np.ndarray:
    """(5, 5): rows 0 and 1 have one score of three neighbours, 3 + 5 ulp; row 0's rounds up and row 1's down."""
    square = np.full((5, 5), FAR)
    square[0, 2:] = square[2:, 0] = 1 + ULP * np.array([1, 2, 2])
    square[1, 2:] = square[2:, 1] = 1 + ULP * np.array([0, 1, 4])
    np.fill_diagonal(square, 0)
    exact = [sum(map(Fraction, square[row, 2:])) for row in (0, 1)]
    rounded = [float(np.cumsum(np.sort(square[row, 2:]))[-1]) for row in (0, 1)]
    assert exact[0] == exact[1]
    assert rounded[0] > exact[0] > rounded[1]
    return square


@pytest.mark.parametrize("mean", [False, True])
def test_scores_that_tie_but_for_their_rounding_go_to_the_lowest_row(mean):
    geometry = Known(tied())
    found = select(geometry, Scoring(3, mean), 1)
    assert found.rows == [0]
    assert found.redone == geometry.redone > 0


def test_choices_one_by_one_that_tie_but_for_their_rounding_go_to_the_lowest_row():
    chosen, _, redone = choose_one_by_one(Known(tied()), lambda left: 3, 1)
    assert chosen == [0]
    assert redone > 0


@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize("neighbors", [2, 5, 30])
def test_score_intervals_hold_the_exact_score(neighbors, mean):
    rng, off = np.random.default_rng(neighbors), 0.0
    square = rng.uniform(1, 2, (40, 40))
    low, high = _score_intervals(square, square, Scoring(neighbors, mean))
    for i in range(40):
        near = sorted(map(Fraction, np.delete(square[i], i)))[:neighbors]
        exact = sum(near) / (neighbors if mean else 1)
        assert low[i] <= exact <= high[i]
        off = max(off, abs(float(Fraction((low[i] + high[i]) / 2) - exact)))
    assert off > 0
    assert (high - low <= 3 * (neighbors + 2) * ULP * high).all()


def test_sums_that_grew_and_shrank_doubt_what_was_lost_on_the_way():
    """2^-55 beside 1 is lost, and what is left when the 1 goes is told from it by the doubt alone."""
    small = 2.0**-55
    matrix = np.ones((4, 4))
    matrix[0, 1:] = matrix[1:, 0] = small, 2 * small, 1.0
    sums = ShrinkingSums(matrix, 2)
    assert sums.sums[0] == 3 * small
    assert sums.doubt[0] < ULP * small * 100
    sums.leave(2, 2)
    assert abs(Fraction(sums.sums[0]) - (1 + Fraction(small))) <= sums.doubt[0]
    sums.leave(3, 1)
    assert 0 < abs(Fraction(sums.sums[0]) - Fraction(small)) <= sums.doubt[0] < ULP * 4
