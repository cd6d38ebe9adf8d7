"""Order rules on true updates: the statistic of dense Δ in each coordinate, formed in tiles, truncated or kept."""

from __future__ import annotations

import numpy as np
import pytest

import fedcore as fc
from fedcore.errors import BudgetError, NonFiniteError, RuleError
from fedcore.lora import order
from tests.delta_cohorts import SHAPES, adapter, mixed_cohort
from tests.method_cohorts import regauged
from tests.oracles import delta as dense

RULES = {
    "median": (fc.rules.Median(), lambda x: np.median(x, 0)),
    "trimmed mean": (fc.rules.TrimmedMean(2), lambda x: np.sort(x, 0)[2:-2].mean(0)),
    "mean around median": (fc.rules.MeanAroundMedian(1), lambda x: around(x, 1)),
    "buckets, then median": (fc.rules.Bucketing(1, seed=0).then(fc.rules.Median()), lambda x: np.median(x, 0)),
}


def around(rows, f):
    nearest = np.argsort(np.abs(rows - np.median(rows, 0)), 0)[: len(rows) - f]
    return np.take_along_axis(rows, nearest, 0).mean(0)


def stacked(updates, module):
    return np.stack([dense.dense(update, module).astype(np.float32).astype(float) for update in updates])


@pytest.fixture(params=[1 << 25, 1])
def tiles(request, monkeypatch):
    """All of a module in one tile, and one row of Δ in each."""
    monkeypatch.setattr(order, "TILE_BYTES", request.param)


@pytest.mark.parametrize("name", RULES)
def test_the_dense_result_is_the_statistic_of_the_dense_updates(name, tiles):
    updates, (rule, oracle) = mixed_cohort(3), RULES[name]
    result = fc.aggregate(updates, rule, space="delta", dense=True)
    for module in SHAPES:
        expected = oracle(stacked(updates, module))
        np.testing.assert_allclose(result.update.tensors[f"{module}.weight"], expected, rtol=1e-5, atol=1e-6)
    heads = np.stack([update.tensors["head.weight"] for update in updates]).astype(float)
    np.testing.assert_allclose(result.update.tensors["head.weight"], oracle(heads), rtol=1e-5, atol=1e-6)
    assert not result.update.modules


def test_the_result_is_truncated_to_the_clients_rank_and_says_what_that_lost(tiles):
    updates = mixed_cohort(4)
    result = fc.aggregate(updates, fc.rules.Median())
    for module in SHAPES:
        median = np.median(stacked(updates, module), 0)
        rank = max(update.modules[module].rank for update in updates)
        kept = dense.truncated(median, rank)
        np.testing.assert_allclose(dense.dense(result.update, module), kept, atol=1e-5 * np.linalg.norm(median))
        report = result.report["modules"][module]
        assert report["norm"] == pytest.approx(np.linalg.norm(median), rel=1e-6)
        lost = np.linalg.norm(median - kept) / np.linalg.norm(median)
        assert report["residual"] == pytest.approx(lost, abs=1e-6)
    assert result.update.scaling == updates[0].scaling
    assert result.coefficients == {}


def test_a_minority_moves_no_coordinate_out_of_the_honest_range_and_no_gauge_moves_any():
    rng = np.random.default_rng(0)
    honest = [adapter(rng, f"c{i}") for i in range(4)]
    far = [adapter(rng, f"d{i}", scale=1e4) for i in range(3)]
    found = fc.aggregate([*honest, *far], fc.rules.Median(), dense=True).update
    for module in SHAPES:
        rows, value = stacked(honest, module), found.tensors[f"{module}.weight"]
        assert (value <= rows.max(0) + 1e-5).all()
        assert (value >= rows.min(0) - 1e-5).all()
    moved = fc.aggregate([regauged(u, i) for i, u in enumerate([*honest, *far])], fc.rules.Median(), dense=True).update
    for module in SHAPES:
        np.testing.assert_allclose(
            moved.tensors[f"{module}.weight"], found.tensors[f"{module}.weight"], rtol=1e-3, atol=1e-3
        )


def test_bulyan_and_sign_majority_run_on_true_updates():
    updates = mixed_cohort(5, n=8)
    reference = mixed_cohort(6)[0]
    voted = fc.aggregate(updates, fc.rules.SignMajority(0.5), reference=reference, dense=True).update
    for module in SHAPES:
        center = dense.dense(reference, module)
        expected = center + 0.5 * np.sign(np.sign(stacked(updates, module) - center).sum(0))
        np.testing.assert_allclose(voted.tensors[f"{module}.weight"], expected, atol=1e-5)
    bulyan = fc.aggregate(updates, fc.rules.Bulyan(1), dense=True)
    rows = [int(c[1:]) for c in bulyan.report["selected"]]
    for module in SHAPES:
        chosen = stacked([updates[row] for row in rows], module)
        value = bulyan.update.tensors[f"{module}.weight"]
        assert ((value <= chosen.max(0) + 1e-5) & (value >= chosen.min(0) - 1e-5)).all()


def test_from_files_it_is_the_same_and_takes_room_for_a_dense_delta(tmp_path):
    updates = [adapter(np.random.default_rng(i), f"c{i}", head=True) for i in range(5)]
    for update in updates:
        update.to_peft(tmp_path / update.client_id)
    opened = [fc.Update.open(tmp_path / update.client_id) for update in updates]
    one = fc.aggregate(opened, fc.rules.Median(), memory="1GB").update
    assert one.digest() == fc.aggregate(updates, fc.rules.Median()).update.digest()
    with pytest.raises(BudgetError, match="LoRA factors"):
        fc.aggregate(opened, fc.rules.Median(), memory="1MB")


def test_what_it_refuses_is_named():
    updates = mixed_cohort(7)
    for rule, space in ((fc.rules.Mean(), "delta"), (fc.rules.Median(), "parameters")):
        with pytest.raises(RuleError, match="dense: got True"):
            fc.aggregate(updates[:1], rule, space=space, dense=True)
    a = np.array(updates[0].tensors["up.lora_A.weight"])
    a[0, 0] = np.inf
    bad = fc.Update.from_tensors(
        dict(updates[0].tensors) | {"up.lora_A.weight": a}, scaling=updates[0].scaling, client_id="bad"
    )
    with pytest.raises(NonFiniteError, match=r"client 'bad'.*up.lora_A.weight"):
        fc.aggregate([*updates, bad], fc.rules.Median())
    left = fc.aggregate([*updates, bad], fc.rules.Median(), on_nonfinite="exclude")
    assert left.update.digest() == fc.aggregate(updates, fc.rules.Median()).update.digest()
