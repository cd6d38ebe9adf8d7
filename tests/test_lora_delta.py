"""Delta space against dense matrices in fp64: distances, norms, coefficients, truncated results."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedcore import Update, aggregate
from fedcore.dtypes import round_from_float64, to_float64
from fedcore.errors import NonFiniteError, RangeError
from fedcore.lora import FactorPasses
from fedcore.ops import lora_truncate
from fedcore.rules import Krum, Mean, MultiKrum, NormClipping
from fedcore.rules.geometry import Geometry
from fedcore.rules.statistics import Statistics
from tests.delta_cohorts import SHAPES, adapter, executor_of, mixed_cohort, near_cohort
from tests.oracles import delta as dense
from tests.oracles import rules as oracle


@pytest.mark.parametrize("with_reference", [True, False])
def test_distances_and_norms_are_those_of_the_dense_updates(with_reference):
    updates = mixed_cohort(0)
    reference = mixed_cohort(1)[0] if with_reference else None
    executor = executor_of(updates, reference, True)
    rows = dense.rows(updates)
    center = dense.row(reference) if reference else np.zeros(rows.shape[1])
    square, bound = executor.squared_norms()
    np.testing.assert_allclose(square, ((rows - center) ** 2).sum(1), rtol=1e-12)
    assert (bound < 1e-9 * square).all()
    lower, upper = Geometry(Statistics(executor)).intervals()
    true = oracle.squared_distances(rows)
    assert (lower <= true).all()
    assert (true <= upper).all()
    pairs = np.array([[0, 1], [2, 6], [3, 7]])
    value, error = executor.exact(pairs, None)
    expected = oracle.squared_distances(np.vstack((rows, center)))[pairs[:, 0], pairs[:, 1]]
    assert (np.abs(value - expected) <= error + 1e-13 * expected).all()
    assert (error < 1e-10 * expected).all()


def test_a_redo_is_sharper_than_the_gram_between_near_updates():
    clients, _ = near_cohort(0, change=1e-6)
    executor = executor_of(clients[:-1])
    lower, upper = Geometry(Statistics(executor)).intervals()
    value, error = executor.exact(np.array([[0, 1]]), None)
    true = oracle.squared_distances(dense.rows(clients[:2]))[0, 1]
    assert abs(value[0] - true) <= error[0] + 1e-9 * true
    assert lower[0, 1] <= true <= upper[0, 1]
    assert error[0] < (upper - lower)[0, 1] / 20


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**32 - 1), st.integers(0, 2))
def test_krum_selects_as_on_dense_updates(seed, f):
    for updates in (mixed_cohort(seed), near_cohort(seed)[0]):
        rows = dense.rows(updates)
        chosen = [int(c[1:]) for c, v in aggregate(updates, Krum(f)).coefficients.items() if v]
        assert chosen == oracle.multi_krum_rows(rows, f, 1)
        kept = [int(c[1:]) for c, v in aggregate(updates, MultiKrum(f)).coefficients.items() if v]
        assert kept == oracle.multi_krum_rows(rows, f, 7 - f)


def test_a_client_that_alone_counts_is_returned_bit_for_bit():
    updates = mixed_cohort(4)
    result = aggregate(updates, Krum(1))
    (chosen,) = [u for u in updates if result.coefficients[u.client_id]]
    assert result.update.scaling == chosen.scaling
    assert result.update.layout == chosen.layout
    assert all(result.update.tensors[name].tobytes() == chosen.tensors[name].tobytes() for name in chosen.tensors)
    assert all(report["residual"] == 0 for report in result.report["modules"].values())
    alone = aggregate(updates[:1], Mean())
    assert alone.update.digest() == updates[0].digest()


def test_the_mean_is_the_dense_mean_truncated_by_svd():
    updates = mixed_cohort(5)
    result = aggregate(updates, Mean())
    counts = [u.num_examples for u in updates]
    for module in SHAPES:
        mean = sum(c * dense.dense(u, module) for c, u in zip(counts, updates, strict=True)) / sum(counts)
        rank = max(u.modules[module].rank for u in updates)
        assert result.update.modules[module].rank == rank
        best = dense.truncated(mean, rank)
        found = dense.dense(result.update, module)
        np.testing.assert_allclose(found, best, atol=3e-6 * np.linalg.norm(mean))
        report = result.report["modules"][module]
        assert report["norm"] == pytest.approx(np.linalg.norm(mean))
        expected = np.linalg.norm(mean - best) / np.linalg.norm(mean)
        assert report["residual"] == pytest.approx(expected, abs=1e-7)
    head = oracle.weighted_mean(np.stack([u.tensors["head.weight"].ravel() for u in updates]), np.array(counts))
    np.testing.assert_allclose(result.update.tensors["head.weight"].ravel(), head, rtol=1e-6, atol=1e-7)
    assert result.update.scaling == updates[0].scaling


@pytest.mark.parametrize("following", [None, Mean(), Krum(1), MultiKrum(2)])
def test_clips_are_of_the_change_from_the_reference(following):
    clients, reference = near_cohort(2, change=0.02)
    bound = 3.0
    rule = NormClipping(bound) if following is None else NormClipping(bound).then(following)
    result = aggregate(clients, rule, reference=reference, weights=[1.0] * 7)
    formed = oracle.clipped(dense.rows(clients), dense.row(reference), bound)
    if following is None or following == Mean():
        rows = list(range(7))
    else:
        rows = oracle.multi_krum_rows(formed, following.f, 1 if isinstance(following, Krum) else 5)
    expected, start = formed[rows].mean(0), 0
    norms = np.linalg.norm(dense.rows(clients) - dense.row(reference), axis=1)
    stage = result.report if following is None else result.report["before"][0]
    assert stage["clipped"] == (norms > bound).sum() > 0
    for module in result.update.modules:
        d_out, d_in = SHAPES[module]
        part = expected[start : start + d_out * d_in].reshape(d_out, d_in)
        start += d_out * d_in
        best = dense.truncated(part, 3)
        np.testing.assert_allclose(dense.dense(result.update, module), best, atol=2e-5 * np.linalg.norm(part))
    np.testing.assert_allclose(result.update.tensors["head.weight"].ravel(), expected[start:], atol=1e-5)


def regauged(update: Update, rng: np.random.Generator) -> Update:
    """The same update in other factors: (B M, M⁻¹ A), here by powers of two and swaps, which fp32 takes exactly."""
    tensors = {name: np.array(t) for name, t in update.tensors.items()}
    for pair in update.modules.values():
        scale, order = 2.0 ** rng.integers(-8, 9, pair.rank), rng.permutation(pair.rank)
        tensors[pair.b] = (tensors[pair.b] * scale)[:, order].astype(np.float32)
        tensors[pair.a] = (tensors[pair.a] / scale[:, None])[order].astype(np.float32)
    return Update.from_tensors(
        tensors, num_examples=update.num_examples, client_id=update.client_id, scaling=update.scaling
    )


@pytest.mark.parametrize("rule", [Mean(), Krum(1), MultiKrum(2), NormClipping(2.0), NormClipping(2.0).then(Krum(1))])
def test_the_gauge_changes_nothing_in_delta_space(rule):
    rng = np.random.default_rng(0)
    updates, reference = near_cohort(3, change=0.05)
    other = [regauged(update, rng) for update in updates]
    before, after = (aggregate(u, rule, reference=reference) for u in (updates, other))
    for client, value in before.coefficients.items():
        assert after.coefficients[client] == pytest.approx(value, rel=1e-6)
    for module in SHAPES:
        expected = dense.dense(before.update, module)
        np.testing.assert_allclose(dense.dense(after.update, module), expected, atol=1e-5 * np.linalg.norm(expected))


def test_the_gauge_does_change_parameter_space():
    rng = np.random.default_rng(0)
    updates, reference = near_cohort(3, change=0.05)
    other = [regauged(update, rng) for update in updates]
    for rule in (Mean(), NormClipping(2.0)):
        before, after = (aggregate(u, rule, "parameters", reference=reference) for u in (updates, other))
        difference = dense.dense(before.update, "up") - dense.dense(after.update, "up")
        assert np.linalg.norm(difference) > 0.05 * np.linalg.norm(dense.dense(before.update, "up"))


def test_equal_updates_in_any_gauge_tie_and_go_to_the_lowest_row():
    """Whole numbers and unimodular M: B M and M⁻¹ A are exact, while what LAPACK makes of them rounds differently."""
    rng = np.random.default_rng(0)
    a, b = rng.integers(-4, 5, (3, 30)).astype(np.float32), rng.integers(-4, 5, (20, 3)).astype(np.float32)
    for seed in range(10):
        rng = np.random.default_rng(seed)
        updates = []
        for i in range(6):
            m = np.triu(rng.integers(-9, 10, (3, 3)), 1) + np.eye(3) if i < 4 else np.diag(rng.uniform(2, 3, 3))
            factors = {"m.lora_A.weight": np.linalg.inv(m) @ a, "m.lora_B.weight": b @ (m if i < 4 else m @ m)}
            tensors = {name: np.round(t, 6).astype(np.float32) for name, t in factors.items()}
            updates.append(Update.from_tensors(tensors, client_id=f"c{i}", scaling={"m": 0.5}))
        rows = dense.rows(updates)
        assert (rows[:4] == rows[0]).all()
        result = aggregate(updates, Krum(1))
        assert [client for client, value in result.coefficients.items() if value] == ["c0"]
        assert result.report["redone_pairs"] > 0


def test_factors_keep_their_dtype_and_round_once():
    rng = np.random.default_rng(0)
    updates = [adapter(rng, f"c{i}", dtype="bfloat16", head=True) for i in range(5)]
    result = aggregate(updates, Mean())
    assert set(result.update.layout.dtypes) == {"bfloat16"}
    rows = np.stack([to_float64(u.tensors["head.weight"]).ravel() for u in updates])
    expected = round_from_float64(rows.mean(0), "bfloat16")
    assert result.update.tensors["head.weight"].tobytes() == expected.tobytes()


def test_a_direction_without_weight_can_still_be_trained():
    """B = 0, as in a fresh adapter: A must not become 0 too, or no gradient ever reaches either."""
    rng = np.random.default_rng(0)
    updates = []
    for i in range(3):
        tensors = {name: np.array(t) for name, t in adapter(rng, "x").tensors.items()}
        for module in SHAPES:
            tensors[f"{module}.lora_B.weight"] *= np.float32(0)
        updates.append(Update.from_tensors(tensors, client_id=f"c{i}", scaling=dict.fromkeys(SHAPES, 2.0)))
    result = aggregate(updates, Mean()).update
    assert not result.tensors["up.lora_B.weight"].any()
    np.testing.assert_allclose(np.linalg.norm(result.tensors["up.lora_A.weight"], axis=1), 1, rtol=1e-6)


@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 12), st.integers(1, 12), st.integers(1, 15), st.integers(1, 15), st.booleans(), st.integers(0, 99)
)
def test_truncation_is_the_best_of_its_rank_balanced_and_canonical(d_out, d_in, stacked, rank, negative, seed):
    rng = np.random.default_rng(seed)
    b, a = rng.standard_normal((d_out, stacked)), rng.standard_normal((stacked, d_in))
    scale = -0.5 if negative else 3.0
    found = lora_truncate(b, a, np.ones(stacked), rank, scale=scale)[rank]
    product, best = scale * found.b @ found.a, dense.truncated(b @ a, rank)
    size = np.linalg.norm(b @ a)
    np.testing.assert_allclose(product, best, atol=1e-12 * size)
    assert found.residual == pytest.approx(np.linalg.norm(b @ a - best) / size, abs=1e-12)
    assert found.norm == pytest.approx(size)
    again = lora_truncate(b[:, ::-1], a[::-1], np.ones(stacked), rank, scale=scale)[rank]
    np.testing.assert_allclose(again.b, found.b, atol=1e-7 * np.abs(found.b).max())
    rank_of = min(rank, d_out, d_in, stacked)
    np.testing.assert_allclose(
        np.linalg.norm(found.a, axis=1)[:rank_of], np.linalg.norm(found.b, axis=0)[:rank_of], rtol=1e-9
    )


def test_non_finite_factors_are_named_by_client_and_tensor():
    rng = np.random.default_rng(0)
    updates = [adapter(rng, f"c{i}") for i in range(4)]
    tensors = {name: np.array(t) for name, t in updates[2].tensors.items()}
    tensors["down.lora_B.weight"][1, 2] = np.nan
    updates[2] = Update.from_tensors(tensors, client_id="c2", scaling=updates[2].scaling)
    for rule in (Mean(), Krum(0), NormClipping(1.0)):
        with pytest.raises(NonFiniteError, match=r"client 'c2': tensor 'down.lora_B.weight'.*element 5"):
            aggregate(updates, rule)


def test_a_result_that_does_not_fit_its_dtype_is_refused():
    big = {"m.lora_A.weight": np.full((1, 2), 6e4, np.float16), "m.lora_B.weight": np.full((2, 1), 6e4, np.float16)}
    one, two = (Update.from_tensors(big, client_id=c, scaling={"m": s}) for c, s in (("c0", 1e-9), ("c1", 1e9)))
    with pytest.raises(RangeError, match=r"tensor 'm.lora_A.weight'.*float16"):
        aggregate([one, two], Mean())


def test_passes_read_only_the_rows_that_count():
    updates = mixed_cohort(0, head=False)
    passes = FactorPasses(updates, [u.client_id for u in updates], len(updates))
    coefficients = np.array([1, 0, 2, 0, 0, 0, 0], np.float32)
    found = passes.combine(coefficients, 3.0)
    expected = (dense.dense(updates[0], "up") + 2 * dense.dense(updates[2], "up")) / 3
    assert found.modules["up"].rank == max(updates[i].modules["up"].rank for i in (0, 2))
    assert found.modules["up"].norm == pytest.approx(np.linalg.norm(expected))
