"""Krum and Multi-Krum select what fp64 selects, always."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedcore import ops
from fedcore.errors import NonFiniteError, RuleError
from fedcore.rules import Krum, MultiKrum
from fedcore.rules.geometry import Geometry
from fedcore.rules.statistics import Statistics
from tests.cohorts import WrongWithinBound, decided, executor_of
from tests.oracles import rules as oracle


def selected(rule, rows, executor=None) -> list[int]:
    values = rule.decide(Geometry(Statistics(executor or executor_of(rows))), None).values
    return [int(i) for i in np.flatnonzero(values)]


@st.composite
def cohorts(draw):
    """Small integers, so that ties and duplicates are common."""
    n, d = draw(st.integers(3, 9)), draw(st.integers(1, 12))
    values = draw(st.lists(st.integers(-3, 3), min_size=n * d, max_size=n * d))
    rows = np.array(values, np.float32).reshape(n, d)
    for i in range(draw(st.integers(0, 2))):
        rows[draw(st.integers(0, n - 1))] = rows[i]
    return rows * np.float32(draw(st.sampled_from([1.0, 1e-3, 1e20])))


@settings(deadline=None, max_examples=80)
@given(cohorts(), st.data())
def test_selects_as_the_oracle_does_with_ties_and_duplicates(rows, data):
    n = len(rows)
    for neighbors, largest in (("paper", (n - 3) // 2), ("byzfl", (n - 1) // 2)):
        f = data.draw(st.integers(0, largest))
        m = data.draw(st.integers(1, n - f))
        assert selected(Krum(f, neighbors), rows) == oracle.multi_krum_rows(rows, f, 1, neighbors)
        expected = oracle.multi_krum_rows(rows, f, m, neighbors)
        assert selected(MultiKrum(f, m, neighbors), rows) == expected
        assert selected(MultiKrum(f, m, neighbors), rows, executor_of(rows, WrongWithinBound)) == expected


def near_tie(seed: int) -> list[np.ndarray]:
    """Cohorts on both sides of a tie for the best score, as close as fp32 gets, with an attacker far away."""
    rng = np.random.default_rng(seed)
    rows = (rng.standard_normal(48) + 1e-2 * rng.standard_normal((7, 48))).astype(np.float32)
    rows[6] += 50
    first, second = np.argsort(oracle.krum_scores(rows, 1), kind="stable")[:2]
    towards = rows[first] + (rng.standard_normal(48) * 0.1).astype(np.float32)

    def moved(t: float) -> np.ndarray:
        result = rows.copy()
        result[first] = rows[first] + np.float32(t) * (towards - rows[first])
        return result

    def ahead(t: float) -> bool:
        scores = oracle.krum_scores(moved(t), 1)
        return bool(scores[first] <= scores[second])

    low, high = np.float32(0), np.float32(1)
    assert not ahead(high)
    while (middle := np.float32((low + high) / 2)) not in (low, high):
        low, high = (middle, high) if ahead(middle) else (low, middle)
    return [moved(low), moved(high)]


def test_near_ties_by_bisection_are_decided_as_in_fp64():
    agreed = redone = 0
    for seed in range(50):
        for rows in near_tie(seed):
            statistics = Statistics(executor_of(rows, WrongWithinBound))
            found = Krum(1).decide(Geometry(statistics), None).values
            agreed += np.flatnonzero(found).tolist() == oracle.multi_krum_rows(rows, 1, 1)
            redone += statistics.redone > 0
    assert agreed == 100
    assert redone > 80, "the ties are not near enough to be in doubt"


def test_small_updates_on_large_weights_where_an_uncentred_gram_picks_an_attacker():
    """The Gram trick without a centre in fp32 loses distances of 1e-5 beside weights of 0.02 (and selects by noise)."""
    disagreed = 0
    for seed in range(10):
        rng = np.random.default_rng(seed)
        rows = (0.02 * rng.standard_normal(4000) + 1e-5 * rng.standard_normal((10, 4000))).astype(np.float32)
        rows[8:] += (1e-5 * 3 * rng.standard_normal((2, 4000))).astype(np.float32)
        choice = selected(Krum(2), rows)
        assert choice == oracle.multi_krum_rows(rows, 2, 1)
        assert choice[0] < 8
        gram = rows @ rows.T
        naive = np.diag(gram)[:, None] + np.diag(gram)[None, :] - 2 * gram
        disagreed += int(np.sort(naive, 1)[:, 1:7].sum(1).argmin()) != choice[0]
    assert disagreed > 0, "the example is too easy to show the failure"


def test_a_squared_distance_of_less_than_half_is_not_lost_beside_large_rows():
    rng = np.random.default_rng(1)
    rows = np.tile(rng.standard_normal(10_000).astype(np.float32) * 30, (5, 1))
    rows += (np.sqrt(0.2 / 10_000) * rng.standard_normal(rows.shape)).astype(np.float32)
    lower, upper = Geometry(Statistics(executor_of(rows))).intervals()
    true = oracle.squared_distances(rows)
    assert (lower <= true).all()
    assert (true <= upper).all()
    assert (upper - lower).max() < 1e-3 * true.max()


def test_result_is_the_selected_row_bit_for_bit_and_the_plain_mean_for_multi_krum():
    rows = np.random.default_rng(0).standard_normal((9, 1000)).astype(np.float32)
    rows[4] += 50
    (row,) = oracle.multi_krum_rows(rows, 2, 1)
    assert Krum(2)(rows).tobytes() == rows[row].tobytes()
    kept = oracle.multi_krum_rows(rows, 2, 7)
    assert 4 not in kept
    assert MultiKrum(2)(rows).tobytes() == ops.weighted_sum(rows[kept], np.ones(7), 7.0).tobytes()


def test_weights_do_not_move_a_robust_rule():
    rows = np.random.default_rng(0).standard_normal((7, 64)).astype(np.float32)
    lies = [1e30, float("nan"), -1, 0, 1, 1, 1]
    for rule in (Krum(1), MultiKrum(1)):
        assert rule(rows, lies).tobytes() == rule(rows).tobytes()


@settings(deadline=None, max_examples=25)
@given(st.permutations(range(7)), st.integers(0, 2**32 - 1))
def test_permuting_clients_permutes_the_selection(order, seed):
    rows = np.random.default_rng(seed).standard_normal((7, 20)).astype(np.float32)
    before, after = selected(MultiKrum(2), rows), selected(MultiKrum(2), rows[list(order)])
    assert sorted(order[i] for i in after) == before


def test_half_precision_rows_and_torch():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    rows = torch.from_numpy(np.random.default_rng(0).standard_normal((7, 500)).astype(np.float32)).bfloat16()
    found = Krum(1)(rows)
    assert isinstance(found, torch.Tensor)
    (row,) = oracle.multi_krum_rows(rows.double().numpy(), 1, 1)
    assert torch.equal(found, rows[row].float())


@pytest.mark.parametrize(
    ("rule", "n", "text"),
    [
        (Krum(3), 8, "largest f for n=8 is 2"),
        (Krum(0), 1, "even f=0 needs n of at least 3"),
        (Krum(0), 2, "even f=0 needs n of at least 3"),
        (Krum(4, "byzfl"), 8, "largest f for n=8 is 3"),
        (MultiKrum(3), 8, "largest f for n=8 is 2"),
        (MultiKrum(1, m=8), 8, "at most n − f = 7"),
    ],
)
def test_f_too_large_says_the_largest(rule, n, text):
    with pytest.raises(RuleError, match=text):
        rule(np.zeros((n, 4), np.float32))


@pytest.mark.parametrize("f", [-1, 1.0, "2", None, True])
def test_f_must_be_a_count(f):
    with pytest.raises(RuleError, match="expected a whole number"):
        Krum(f)
    with pytest.raises(RuleError, match="expected a whole number"):
        MultiKrum(f)


def test_bad_conventions_are_refused():
    with pytest.raises(RuleError, match="neighbors='flwr'"):
        Krum(1, "flwr")
    with pytest.raises(RuleError, match="got m=0"):
        MultiKrum(1, m=0)
    with pytest.raises(RuleError, match="pre-aggregation"):
        Krum(1).then(Krum(1))


def test_smallest_cohorts():
    assert Krum(0, "byzfl")(np.ones((1, 3), np.float32)).tolist() == [1, 1, 1]
    rows = np.array([[0], [1], [5]], np.float32)
    assert Krum(0)(rows) == [0]  # the two closest tie: the lowest row


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_non_finite_row_is_named(value):
    rows = np.random.default_rng(0).standard_normal((7, 50)).astype(np.float32)
    rows[5, 33] = value
    with pytest.raises(NonFiniteError, match=r"row 5.*column 33") as caught:
        Krum(1)(rows)
    assert (caught.value.row, caught.value.column) == (5, 33)


def test_flowers_convention_counts_at_least_one_neighbor_and_weights_what_it_selected():
    rows = np.random.default_rng(0).standard_normal((6, 64)).astype(np.float32)
    squares = oracle.squared_distances(rows)
    for f, k in ((1, 3), (3, 1), (5, 1)):
        scores = [np.cumsum(np.sort(np.delete(squares[i], i))[:k])[-1] for i in range(6)]
        assert selected(Krum(f, "flower"), rows) == [int(np.argmin(scores))]
    counts = np.array([5, 1, 7, 2, 9, 3])
    rule = MultiKrum(1, 3, "flower", weighted=True)
    kept = oracle.multi_krum_rows(rows, 1, 3)
    found = rule(rows, counts)
    np.testing.assert_allclose(found, oracle.weighted_mean(rows[kept], counts[kept]), rtol=1e-6, atol=1e-7)
    assert Krum(0, "flower")(rows[:1]).tobytes() == rows[0].tobytes()
    with pytest.raises(RuleError, match="f < n; the largest f for n=6 is 5"):
        Krum(6, "flower")(rows)


def test_a_tie_is_told():
    rows = np.zeros((6, 3), np.float32)
    reasons = decided(Krum(1), rows).reasons
    assert set(reasons) == {1, 2, 3, 4, 5}
    assert reasons[4] == "not selected: score 0 ties with that of row 0, and ties go to the lowest row"


def test_the_score_that_others_are_told_is_the_worst_selected():
    """Which need not be that of the last selected row: here the first one lies farthest out."""
    rows = np.array([[3], [0], [1], [-1], [2], [100], [7]], np.float32)
    found = decided(MultiKrum(1, 4), rows)
    scores = found.per_client["scores"]
    assert found.selected == [0, 1, 2, 4]
    assert scores[0] == scores[found.selected].max() > scores[4]
    assert found.reasons[5] == f"not selected: score {scores[5]:.4g}, the selected have at most {scores[0]:.4g}"
