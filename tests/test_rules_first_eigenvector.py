"""The first eigenvector is the first: against all eigenvectors, and where the start of a search is orthogonal to it."""

from __future__ import annotations

import numpy as np
import pytest

from fedcore.rules import SpectralFilter, first_eigenvector
from fedcore.rules.first_eigenvector import DENSE

find = first_eigenvector.first_eigenvector


@pytest.fixture
def whole(monkeypatch) -> list[int]:
    """One entry for each time that all eigenvectors of a matrix as large as those searched in were taken."""
    taken, eigh = [], np.linalg.eigh

    def counted(matrix):
        if len(matrix) > DENSE:
            taken.append(len(matrix))
        return eigh(matrix)

    monkeypatch.setattr(np.linalg, "eigh", counted)
    return taken


def spread(n: int, d: int = 60, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(n, d))
    rows -= rows.mean(0)
    return rows @ rows.T / n


def check(matrix: np.ndarray) -> tuple[float, np.ndarray]:
    values = np.linalg.eigvalsh(matrix)
    size = max(abs(values[0]), abs(values[-1]))
    value, vector = find(matrix)
    assert value == pytest.approx(values[-1], rel=2e-9, abs=1e-13 * size)
    assert np.linalg.norm(vector) == pytest.approx(1)
    assert np.linalg.norm(matrix @ vector - value * vector) <= 2e-10 * size
    return value, vector


@pytest.mark.parametrize("n", [300, 1200])
def test_it_is_that_of_all_eigenvectors(n, whole):
    for matrix in (spread(n), spread(n, 2 * n, 1)):
        _, vector = check(matrix)
        assert not whole
        assert abs(vector @ np.linalg.eigh(matrix)[1][:, -1]) == pytest.approx(1)
        whole.clear()


@pytest.mark.parametrize("n", [1, 2, 3, DENSE, DENSE + 1])
def test_small_ones(n):
    check(spread(n))
    check(np.diag(np.arange(n, 0.0, -1)))


def test_the_same_bits_each_time():
    matrix = spread(400)
    one, other = find(matrix), find(matrix.copy())
    assert one[0] == other[0]
    assert one[1].tobytes() == other[1].tobytes()


def test_eight_large_diagonals_do_not_hide_a_larger_eigenvalue():
    matrix = np.zeros((1001, 1001))
    matrix[np.arange(8), np.arange(8)] = 100 + np.arange(8)
    matrix[50:950, 50:950] = 1.0
    assert check(matrix)[0] == pytest.approx(900)


def test_eight_loud_rows_do_not_hide_where_the_others_spread():
    rows = np.zeros((1004, 6), np.float32)
    for i in range(4):
        rows[2 * i, i], rows[2 * i + 1, i] = 10 + i, -10 - i
    rows[8:504, 4], rows[504:1000, 4] = 1.0, -1.0
    _, decision = SpectralFilter(f=100).explained(rows)
    assert decision.details["first_eigenvalue"] == pytest.approx(992 / 1004)


def test_a_first_eigenvector_that_the_start_holds_nothing_of_is_found(whole):
    """Whoever knows the start can send such rows; then all eigenvectors are taken."""
    n = 400
    matrix = spread(n)
    matrix[:2] = matrix[:, :2] = 0.0
    second = np.linalg.eigvalsh(matrix)[-1]
    start = np.cos(np.arange(n) * (np.arange(n) + 1.0))
    hidden = np.zeros(n)
    hidden[:2] = np.array([start[1], -start[0]]) / np.hypot(start[0], start[1])
    matrix += 1.01 * second * np.outer(hidden, hidden)
    searched, _ = first_eigenvector._search(matrix)
    assert searched == pytest.approx(second)
    value, vector = check(matrix)
    assert whole == [n]
    assert value == pytest.approx(1.01 * second)
    assert abs(vector @ hidden) == pytest.approx(1)


@pytest.mark.parametrize("equal", [2, 8, 40, 200])
def test_equal_first_eigenvalues(equal, whole):
    n = 500
    frame = np.linalg.qr(np.random.default_rng(1).normal(size=(n, n)))[0]
    values = np.linspace(0, 0.9, n)
    values[:equal] = 1.0
    check((frame * values) @ frame.T)
    assert not whole


def test_first_eigenvalues_that_nearly_meet(whole):
    """As those of a filtered cohort do."""
    n = 500
    frame = np.linalg.qr(np.random.default_rng(1).normal(size=(n, n)))[0]
    for gap in (1e-3, 1e-6, 1e-9, 1e-12):
        values = np.linspace(0, 0.9, n)
        values[:3] = 1.0, 1 - gap, 1 - 2 * gap
        check((frame * values) @ frame.T)
    assert not whole


def test_no_spread_at_all():
    for n in (1, 5, 400):
        assert find(np.zeros((n, n)))[0] == 0
    assert not SpectralFilter(100)(np.zeros((300, 4), np.float32)).any()


@pytest.mark.parametrize("exponent", [-900, 900])
def test_sizes_whose_squares_leave_fp64(exponent):
    matrix = spread(300)
    value, vector = find(matrix)
    scaled, same = find(np.ldexp(matrix, exponent))
    assert scaled == np.ldexp(value, exponent)
    assert same.tobytes() == vector.tobytes()


def test_a_search_that_does_not_converge_is_given_up(monkeypatch, whole):
    monkeypatch.setattr(first_eigenvector, "MOST_STEPS", 10)
    check(spread(400, 800))
    assert whole == [400]
