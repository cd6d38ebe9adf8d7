"""Every LoRA method against the dense fp64 formula of its paper, on modules that are not square, and its laws."""

from __future__ import annotations

import numpy as np
import pytest

import fedcore as fc
from fedcore import lora
from fedcore.dtypes import to_float64
from tests.oracles import delta as dense
from tests.oracles import lora as oracle

#: module -> (d_out, d_in): wide, tall, and one whose smaller side is the rank
SHAPES = {"up": (24, 10), "down": (7, 30), "edge": (4, 9)}
RANK = 4


def adapter(seed, client, rank=RANK, scale=2.0, examples=1, modules=SHAPES, **fixed) -> fc.Update:
    """A client's adapter; scales differ by module. fixed: "a" or "b" as module -> matrix, shared between clients."""
    rng = np.random.default_rng(seed)
    tensors, scaling = {}, {}
    for m, (module, (d_out, d_in)) in enumerate(SHAPES.items()):
        a, b = rng.standard_normal((rank, d_in)), rng.standard_normal((d_out, rank))
        a = fixed["a"][module][:rank] if "a" in fixed else a
        b = fixed["b"][module] if "b" in fixed else b
        if module in modules:
            tensors[f"{module}.lora_A.weight"], tensors[f"{module}.lora_B.weight"] = np.float32(a), np.float32(b)
            scaling[module] = scale * (1 + m)
    return fc.Update.from_tensors(tensors, num_examples=examples, client_id=client, scaling=scaling)


def frozen(which, seed=99):
    rng = np.random.default_rng(seed)
    shape = {"a": lambda d: (RANK, d[1]), "b": lambda d: (d[0], RANK)}[which]
    return {which: {module: np.float32(rng.standard_normal(shape(d))) for module, d in SHAPES.items()}}


def alike(n=5, **fixed):
    """Clients of one rank and scale, with 1, 2, 3, ... examples."""
    return [adapter(i, f"c{i}", examples=i + 1, **fixed) for i in range(n)]


def mixed(**fixed):
    """Ranks 1 to 4 with a scale each, as alpha / r gives it, and a client that trained one module alone."""
    ranks = (4, 1, 2, 3)
    clients = [adapter(i, f"c{i}", r, 8.0 / r, i + 1, **fixed) for i, r in enumerate(ranks)]
    return [*clients, adapter(9, "c9", 2, 1.0, 2, modules=("down",), **fixed)]


def cores(n=4):
    """(clients of Fed-SB, the fixed factors)."""
    fixed = lora.FedSB().fixed(adapter(50, "estimate"))
    rng, clients = np.random.default_rng(1), []
    for i in range(n):
        tensors = dict(fixed.tensors)
        for module in SHAPES:
            name = f"{module}.lora_B.weight"
            tensors[name] = np.float32(fixed.tensors[name] @ rng.standard_normal((RANK, RANK)))
        clients.append(fc.Update.from_tensors(tensors, scaling=fixed.scaling, client_id=f"c{i}", num_examples=i + 1))
    return clients, fixed


def parts(updates, module):
    """[(s, B, A)] of the clients that have a module."""
    found = []
    for update in updates:
        if module in update.modules:
            pair = update.modules[module]
            found.append((pair.scale, *(to_float64(update.tensors[name]) for name in (pair.b, pair.a))))
    return found


def shares(updates):
    counts = np.array([update.num_examples for update in updates], float)
    return counts / counts.sum()


def mean_delta(updates, module):
    """Σ p_i Δ_i; 0 for who lacks the module."""
    p = shares(updates)
    return sum(w * dense.dense(u, module) for w, u in zip(p, updates, strict=True) if module in u.modules)


def held(result, module):
    """What a client of the highest rank holds: adapter and side."""
    beside = dense.dense(result.side, module) if result.side and module in result.side.modules else 0.0
    return dense.dense(result.update, module) + beside


def start(result, update, module):
    """What a client starts from; the global adapter of a module that it does not train."""
    own = result.start_of(update.client_id)
    return dense.dense(own if module in own.modules else result.update, module)


def assert_close(found, expected, scale=None):
    size = np.linalg.norm(expected if scale is None else scale)
    np.testing.assert_allclose(found, expected, atol=2e-6 * size, rtol=0)


#: method -> (clients, reference): cohorts on which it is exact
EXACT = {
    "ffa_lora": (lora.FFALoRA(), lambda: (alike(**frozen("a")), None), 1),
    "ffa_lora mixed": (lora.FFALoRA(), lambda: (mixed(**frozen("a")), None), 1),
    "rolora b": (lora.RoLoRA(), lambda: (alike(**frozen("a")), None), 1),
    "rolora a": (lora.RoLoRA(), lambda: (alike(**frozen("b")), None), 2),
    "flora": (lora.FLoRA(), lambda: (alike(), None), 1),
    "flora mixed": (lora.FLoRA(), lambda: (mixed(), None), 3),
    "fedex": (lora.FedExLoRA(), lambda: (alike(), None), 1),
    "flexlora with feedback": (lora.FlexLoRA(error_feedback=True), lambda: (alike(), None), 1),
    "fedsvd": (lora.FedSVD(), lambda: (alike(**frozen("a")), None), 1),
    "fedsvd between": (lora.FedSVD(every=2), lambda: (alike(**frozen("a")), None), 1),
    "fedsb": (lora.FedSB(), lambda: cores(), 1),
}


@pytest.mark.parametrize("case", EXACT)
def test_exact_methods_hold_the_mean_of_the_true_updates(case):
    method, cohort, number = EXACT[case]
    updates, reference = cohort()
    result = method.aggregate(updates, reference=reference, number=number)
    for module in SHAPES:
        expected = mean_delta(updates, module)
        assert_close(held(result, module), expected)
        report = result.report["modules"][module]
        assert report["norm"] == pytest.approx(np.linalg.norm(expected), rel=1e-6)
        started = sum(w * start(result, u, module) for w, u in zip(shares(updates), updates, strict=True))
        side = held(result, module) - dense.dense(result.update, module)
        for name, value in (("residual", started + side), ("without_side", started)):
            missed = np.linalg.norm(expected - value) / np.linalg.norm(expected)
            assert report[name] == pytest.approx(missed, abs=1e-6)
        # slices of the frozen A lose what the others' further ranks learned, and that is said
        assert (report["residual"] < 1e-6) == (case != "ffa_lora mixed")


@pytest.mark.parametrize("case", EXACT)
def test_one_client_is_a_fixed_point_of_every_exact_method(case):
    method, cohort, number = EXACT[case]
    updates, reference = cohort()
    one = updates[:1]
    result = method.aggregate(one, weights=[0.3], reference=reference, number=number)
    for module in SHAPES:
        assert_close(held(result, module), dense.dense(one[0], module))


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
        assert start.scaling == update.scaling
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


def regauged(update, seed):
    """The same Δ from (B M, M⁻¹ A), in fp32."""
    rng, tensors = np.random.default_rng(seed), {}
    for pair in update.modules.values():
        m = rng.standard_normal((pair.rank, pair.rank)) + 3 * np.eye(pair.rank)
        tensors[pair.b] = np.float32(update.tensors[pair.b] @ m)
        tensors[pair.a] = np.float32(np.linalg.solve(m, update.tensors[pair.a].astype(float)))
    return fc.Update.from_tensors(
        tensors, scaling=update.scaling, client_id=update.client_id, num_examples=update.num_examples
    )


def gauge_moves(method, module="up"):
    updates = alike()
    moved = [regauged(update, i) for i, update in enumerate(updates)]
    one, other = (held(method.aggregate(u), module) for u in (updates, moved))
    return np.linalg.norm(one - other) / np.linalg.norm(mean_delta(updates, module))


def test_delta_space_results_do_not_depend_on_the_gauge_and_means_of_factors_do():
    for method in (lora.FlexLoRA(), lora.FLoRA(), lora.FedExLoRA(), lora.RandomizedSketch(size=6)):
        assert gauge_moves(method) < 1e-5
    for method in (lora.FedIT(), lora.HetLoRA(), lora.LoRAFAIR()):
        assert gauge_moves(method) > 0.01


def test_weights_count_and_a_module_that_a_client_lacks_is_its_reference():
    updates = mixed()
    given = dict(zip((u.client_id for u in updates), (3.0, 1.0, 0.5, 2.0, 4.0), strict=True))
    p = np.array(list(given.values())) / sum(given.values())
    result = lora.FLoRA().aggregate(updates, weights=given)
    assert result.coefficients == given
    assert result.report["divisor"] == sum(given.values())
    up = sum(w * dense.dense(u, "up") for w, u in zip(p, updates, strict=True) if "up" in u.modules)
    assert_close(dense.dense(result.side, "up"), up)
    reference = adapter(77, "global")
    result = lora.FLoRA().aggregate(updates, weights=given, reference=reference)
    assert_close(dense.dense(result.side, "up"), up + p[-1] * dense.dense(reference, "up"))


def test_bytes_are_those_of_the_factors_that_travel():
    def traffic(method, updates, **known):
        return method.aggregate(updates, **known).report["bytes"]["c0"]

    size = sum(d_out * RANK for d_out, _ in SHAPES.values()) * 4, sum(d * RANK for _, d in SHAPES.values()) * 4
    b, a, both = *size, sum(size)
    assert traffic(lora.FedIT(), alike()) == {"up": both, "down": both}
    assert traffic(lora.FFALoRA(), alike(**frozen("a"))) == {"up": b, "down": b}
    assert traffic(lora.RoLoRA(), alike(**frozen("b")), number=2) == {"up": a, "down": a}
    assert traffic(lora.FedSALoRA(), alike()) == {"up": a, "down": a}
    assert traffic(lora.FedSVD(), alike(**frozen("a"))) == {"up": b, "down": both}
    assert traffic(lora.FedSVD(every=2), alike(**frozen("a"))) == {"up": b, "down": b}
    assert traffic(lora.FLoRA(), alike(2)) == {
        "up": both,
        "down": 4 * sum(min(2 * RANK, *d) * sum(d) for d in SHAPES.values()),
    }
    clients, fixed = cores()
    assert traffic(lora.FedSB(), clients, reference=fixed) == dict.fromkeys(("up", "down"), 4 * 3 * RANK**2)


def test_dense_tensors_are_averaged_and_results_are_peft_adapters(tmp_path):
    updates = []
    for i, update in enumerate(alike(3)):
        tensors = dict(update.tensors) | {"head.weight": np.full((2, 2), np.float32(i))}
        updates.append(fc.Update.from_tensors(tensors, scaling=update.scaling, client_id=f"c{i}", num_examples=i + 1))
    result = lora.FedExLoRA().aggregate(updates)
    assert result.update.tensors["head.weight"] == pytest.approx(np.full((2, 2), 8 / 6))
    result.update.to_peft(tmp_path / "global")
    result.side.to_peft(tmp_path / "side")
    assert fc.Update.from_peft(tmp_path / "side").scaling == dict.fromkeys(SHAPES, 1.0)
    assert fc.Update.from_peft(tmp_path / "global").digest() == result.update.digest()


def test_bf16_factors_come_back_as_bf16_and_the_side_adapter_holds_what_they_round_away():
    updates = [update.quantize("bfloat16") for update in alike()]
    tensors = [{n: np.asarray(t) for n, t in u.tensors.items()} for u in updates]
    updates = [
        fc.Update.from_tensors(
            {n: fc.bf16((t.view(np.uint32) >> 16).astype(np.uint16)) for n, t in named.items()},
            scaling=u.scaling,
            client_id=u.client_id,
        )
        for named, u in zip(tensors, updates, strict=True)
    ]
    result = lora.FedExLoRA().aggregate(updates)
    assert set(result.update.layout.dtypes) == {"bfloat16"}
    assert set(result.side.layout.dtypes) == {"float32"}
    assert all(report["residual"] < 1e-6 for report in result.report["modules"].values())
