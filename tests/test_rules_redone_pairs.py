"""How many pairs a certified selection forms again: none that it could do without."""

from __future__ import annotations

import numpy as np
import pytest

from fedcore.rules import MultiKrum
from fedcore.rules.geometry import Geometry
from fedcore.rules.statistics import Statistics
from tests.cohorts import executor_of
from tests.oracles import rules as oracle


def test_many_clear_cases_redo_nothing():
    rows = np.random.default_rng(0).standard_normal((12, 300)).astype(np.float32)
    statistics = Statistics(executor_of(rows))
    MultiKrum(2).decide(Geometry(statistics), None)
    assert statistics.redone == 0


def test_equal_attackers_cost_one_redone_pair_each():
    """Who sends one row many times ties with itself everywhere: it is known to be equal, and in no doubt."""
    rows = np.random.default_rng(0).standard_normal((30, 400)).astype(np.float32)
    rows *= np.linspace(1, 2, 30, dtype=np.float32)[:, None]
    rows[20:] = rows[:20].mean(0) + np.float32(0.1)
    for m in range(1, 12):
        statistics = Statistics(executor_of(rows))
        found = MultiKrum(10, m).decide(Geometry(statistics), None).selected
        assert found == oracle.multi_krum_rows(rows, 10, m)
        assert statistics.redone <= 10


@pytest.mark.parametrize(("step", "most"), [(1.7e-5, 24), (0.0, 2 * 39)])
def test_pairs_are_formed_again_until_the_selection_is_certain(step, most):
    """40 rows whose scores lie a step apart: a quarter of the pairs of two tells those apart, a tie takes all."""
    length = (1 + 3e-5 * np.arange(40)).astype(np.float32)
    length[20:] += np.float32(step - 3e-5)
    rows = np.diag(length)
    statistics = Statistics(executor_of(rows))
    found = MultiKrum(5, 20).decide(Geometry(statistics), None)
    assert found.selected == oracle.multi_krum_rows(rows, 5, 20)
    assert most // 2 < statistics.redone <= most
