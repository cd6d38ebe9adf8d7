"""Every LoRA method against the dense fp64 formula of its paper, on modules that are not square."""

from __future__ import annotations

import numpy as np
import pytest

import fedcore as fc
from fedcore import lora
from fedcore.dtypes import to_float64
from fedcore.errors import LayoutError
from tests.method_cohorts import (
    RANK,
    SHAPES,
    adapter,
    alike,
    assert_close,
    frozen,
    held,
    mean_delta,
    mixed,
    parts,
    shares,
    start,
)
from tests.oracles import delta as dense
from tests.oracles import lora as oracle


def test_fedit_is_the_product_of_means_and_each_mean_has_the_bits_of_weighted_sum():
    updates = alike()
    result = lora.FedIT().aggregate(updates)
    engine = fc.aggregate(updates, fc.rules.Mean(), space="parameters").update
    for module in SHAPES:
        assert_close(held(result, module), oracle.fedit(parts(updates, module), shares(updates)))
        missed = np.linalg.norm(held(result, module) - mean_delta(updates, module))
        assert result.report["modules"][module]["residual"] == pytest.approx(
            missed / np.linalg.norm(mean_delta(updates, module)), rel=1e-5
        )
    assert all(result.update.tensors[name].tobytes() == engine.tensors[name].tobytes() for name in engine.tensors)


def test_flexlora_is_the_best_rank_r_for_every_client_at_once():
    updates = mixed()
    result = lora.FlexLoRA().aggregate(updates)
    for update in updates:
        start = result.start_of(update.client_id)
        assert update.scaling.items() <= start.scaling.items()
        for module, pair in update.modules.items():
            expected = dense.truncated(mean_delta(updates, module), pair.rank)
            assert start.modules[module].rank == pair.rank
            assert_close(dense.dense(start, module), expected, mean_delta(updates, module))
    low = lora.FlexLoRA(rank=2).aggregate(updates).update
    assert_close(dense.dense(low, "up"), dense.truncated(mean_delta(updates, "up"), 2), mean_delta(updates, "up"))


def test_the_residual_of_a_truncation_is_orthogonal_to_it():
    result = lora.FlexLoRA(rank=2, error_feedback=True).aggregate(alike())
    for module in SHAPES:
        kept, side = dense.dense(result.update, module), dense.dense(result.side, module)
        assert np.abs(kept.T @ side).max() < 1e-5 * np.linalg.norm(kept) * np.linalg.norm(side)
        assert np.abs(kept @ side.T).max() < 1e-5 * np.linalg.norm(kept) * np.linalg.norm(side)


def test_error_feedback_counts_what_the_last_round_lost():
    first, second = alike(), [adapter(20 + i, f"c{i}") for i in range(3)]
    method = lora.FlexLoRA(rank=2, error_feedback=True)
    side = method.aggregate(first).side
    result = method.aggregate(second, side=side, number=2)
    for module in SHAPES:
        total = mean_delta(second, module) + dense.dense(side, module)
        assert_close(held(result, module), total)
        assert_close(dense.dense(result.update, module), dense.truncated(total, 2), total)


def test_rank_partition_keeps_what_its_truncation_loses_for_the_next_round():
    first, second = mixed()[:4], [adapter(20 + i, f"c{i}", r, 8.0 / r) for i, r in enumerate((4, 1, 2, 3))]
    method = lora.RaFLoRA(error_feedback=True)
    side = None
    for number, updates in ((1, first), (2, second)):
        result = method.aggregate(updates, side=side, number=number)
        for module in SHAPES:
            # at the smaller side nothing is truncated away
            total = oracle.rank_partition(parts(updates, module), shares(updates), min(SHAPES[module]))
            total = total + (0.0 if side is None else dense.dense(side, module))
            starts = sum(p * start(result, u, module) for p, u in zip(shares(updates), updates, strict=True))
            assert_close(starts + dense.dense(result.side, module), total)
        side = result.side
    # without feedback a side adapter joins what is truncated
    alone = lora.RaFLoRA().aggregate(second, side=result.side)
    assert alone.side is None
    assert not np.allclose(held(alone, "up"), held(lora.RaFLoRA().aggregate(second), "up"))


def test_what_truncating_a_rules_choice_loses_rides_beside_it():
    """The rule says who counts and how much; the method makes the same truncation and keeps what it loses."""
    updates = [adapter(i, f"c{i}") for i in range(7)]
    chosen = fc.aggregate(updates, fc.rules.MultiKrum(1, 3))
    counted = [u for u in updates if chosen.coefficients[u.client_id]]
    weights = {u.client_id: chosen.coefficients[u.client_id] for u in counted}
    result = lora.FlexLoRA(error_feedback=True).aggregate(counted, weights)
    assert len(counted) == 3
    for module in SHAPES:
        mean = sum(dense.dense(u, module) for u in counted) / 3
        assert_close(dense.dense(result.update, module), dense.dense(chosen.update, module), mean)
        assert_close(held(result, module), mean)


@pytest.mark.parametrize("method", [lora.FLoRA(), lora.FedExLoRA()])
def test_side_adapters_add_up_over_rounds_and_stay_within_the_smaller_side(method):
    side, total = None, dict.fromkeys(SHAPES, 0.0)
    for number in (1, 2, 3):
        updates = [adapter(10 * number + i, f"c{i}") for i in range(4)]
        result = method.aggregate(updates, side=side, number=number)
        for module, shape in SHAPES.items():
            total[module] = total[module] + mean_delta(updates, module)
            adapted = dense.dense(result.update, module) if method != lora.FLoRA() else 0.0
            assert_close(dense.dense(result.side, module) + adapted, total[module])
            assert result.side.modules[module].rank <= min(shape)
            total[module] = total[module] - adapted
        side = result.side


def test_hetlora_weighs_padded_factors_by_norm_and_hands_out_slices():
    updates = mixed()[:4]
    result = lora.HetLoRA().aggregate(updates)
    for module in SHAPES:
        b, a = oracle.hetlora(parts(updates, module))
        assert_close(held(result, module), b @ a)
        for update in updates:
            r = update.modules[module].rank
            assert_close(dense.dense(result.start_of(update.client_id), module), b[:, :r] @ a[:r], b @ a)


@pytest.mark.parametrize("lam", [1e-6, 0.5])
def test_lora_fair_is_the_regularised_least_squares_correction(lam):
    updates = alike()
    result = lora.LoRAFAIR(lam).aggregate(updates)
    for module in SHAPES:
        expected = oracle.fair(parts(updates, module), shares(updates), lam)
        assert_close(held(result, module), expected)
        assert (
            result.report["modules"][module]["residual"]
            < lora.FedIT().aggregate(updates).report["modules"][module]["residual"]
        )


def test_frlora_restarts_and_its_change_joins_the_side_adapter():
    rng = np.random.default_rng(3)
    weights = {module: rng.standard_normal(shape) for module, shape in SHAPES.items()}
    start, side = lora.FRLoRA().restart(adapter(0, "shape"), weights)
    for module in SHAPES:
        assert_close(dense.dense(start, module), dense.truncated(weights[module], RANK))
        assert_close(dense.dense(side, module), -dense.dense(start, module))
    updates = alike()
    result = lora.FRLoRA().aggregate(updates, reference=start, side=side)
    assert all(result.update.tensors[n].tobytes() == start.tensors[n].tobytes() for n in start.tensors)
    for module in SHAPES:
        mean = oracle.fedit(parts(updates, module), shares(updates))
        assert_close(held(result, module), dense.dense(side, module) + mean)


def test_frlora_restarts_from_base_weights_of_every_module_alone():
    weights = {module: np.ones(shape) for module, shape in SHAPES.items()}
    others = {module: weights[module] for module in ("up", "edge")}
    for wrong, state in (
        ({"down": weights["down"].T}, r"has shape \(30, 7\)"),
        ({"down": np.ones(7)}, r"has shape \(7,\)"),
        ({}, "is missing"),
    ):
        with pytest.raises(LayoutError, match=rf"^weights: module 'down' {state}, expected \(7, 30\); give its"):
            lora.FRLoRA().restart(adapter(0, "shape"), others | wrong)


def test_fedsvd_gives_orthonormal_rows_of_a():
    a = lora.FedSVD().aggregate(alike(**frozen("a"))).update
    for module in SHAPES:
        rows = to_float64(a.tensors[f"{module}.lora_A.weight"])
        np.testing.assert_allclose(rows @ rows.T, np.eye(RANK), atol=1e-6)


def test_fedsa_shares_a_and_leaves_b_where_it_is():
    updates = mixed()
    result = lora.FedSALoRA().aggregate(updates)
    p = shares(updates)
    for update in updates:
        start = result.start_of(update.client_id)
        for module, pair in update.modules.items():
            assert start.tensors[pair.b].tobytes() == update.tensors[pair.b].tobytes()
            for j in range(pair.rank):
                have = [i for i, u in enumerate(updates) if module in u.modules and u.modules[module].rank > j]
                rows = [updates[i].tensors[pair.a][j].astype(float) for i in have]
                expected = np.average(rows, axis=0, weights=p[have])
                np.testing.assert_allclose(start.tensors[pair.a][j], expected, rtol=1e-5, atol=1e-6)
        assert not any(result.update.tensors[pair.b].any() for pair in result.update.modules.values())


def test_rank_partition_weighs_each_slice_by_who_has_it():
    updates = mixed()[:4]
    result = lora.RaFLoRA().aggregate(updates)
    for update in updates:
        for module, pair in update.modules.items():
            expected = oracle.rank_partition(parts(updates, module), shares(updates), pair.rank)
            assert_close(dense.dense(result.start_of(update.client_id), module), expected, mean_delta(updates, module))
    same = alike()
    for module in SHAPES:
        assert_close(held(lora.RaFLoRA().aggregate(same), module), held(lora.FlexLoRA().aggregate(same), module))


@pytest.mark.parametrize("passes", [1, 2])
def test_sketches_are_linear_and_their_sum_is_the_papers_approximation(passes):
    updates, method = mixed(), lora.RandomizedSketch(size=5, passes=passes, seed=7)
    result = method.aggregate(updates, number=2)
    for module, (d_out, d_in) in SHAPES.items():
        mean = mean_delta(updates, module)
        rank = result.update.modules[module].rank
        omega, psi = method.matrices(module, 2, d_out, d_in, rank)
        expected = oracle.sketched(mean, omega, psi if passes == 1 else None, rank)
        assert_close(held(result, module), expected, mean)
        report = result.report["modules"][module]
        best = np.linalg.norm(mean - dense.truncated(mean, rank)) / np.linalg.norm(mean)
        assert report["best"] == pytest.approx(best, abs=1e-7)
        assert report["residual"] > report["best"] - 1e-6
    assert not np.allclose(method.matrices("up", 1, 24, 10, 4)[0], method.matrices("up", 2, 24, 10, 4)[0])
    whole = lora.RandomizedSketch(size=64, passes=passes).aggregate(updates)
    for module in SHAPES:
        assert_close(held(whole, module), held(lora.FlexLoRA().aggregate(updates), module), mean_delta(updates, module))


def test_means_of_factors_at_one_rank_count_what_each_scale_makes_of_b():
    """FedEx-LoRA: the sum is right whatever B̄ is, as its residual lies beside; clients start from B̄ itself."""
    updates = [adapter(i, f"c{i}", scale=scale) for i, scale in enumerate((2.0, 1.0, 0.5))]
    result = lora.FedExLoRA().aggregate(updates)
    for module, pair in result.update.modules.items():
        b = sum(u.scaling[module] / pair.scale * to_float64(u.tensors[pair.b]) for u in updates) / len(updates)
        assert_close(result.update.tensors[pair.b], b)
        a = sum(to_float64(u.tensors[pair.a]) for u in updates) / len(updates)
        assert_close(result.update.tensors[pair.a], a)
