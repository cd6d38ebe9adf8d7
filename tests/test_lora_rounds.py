"""What clients start the next round from, at their own rank, in their own dtype: nothing is lost or counted twice."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fedcore as fc
from fedcore import lora
from fedcore.dtypes import round_from_float64, to_float64
from fedcore.errors import LayoutError
from tests.oracles import delta as dense

#: module -> (d_out, d_in)
SHAPES = {"up": (70, 96), "down": (96, 66)}


def adapter(seed, client, rank=4, examples=1, dtype="float32", shapes=SHAPES, scale=2.0, **fixed) -> fc.Update:
    """fixed: "a" as module -> matrix, whose first rows are A."""
    rng, tensors = np.random.default_rng(seed), {}
    for module, (d_out, d_in) in shapes.items():
        a = fixed["a"][module][:rank] if "a" in fixed else rng.standard_normal((rank, d_in))
        for name, values in (("A", a), ("B", rng.standard_normal((d_out, rank)))):
            tensors[f"{module}.lora_{name}.weight"] = round_from_float64(np.asarray(values, np.float64), dtype)
    scaling = dict.fromkeys(shapes, scale)
    return fc.Update.from_tensors(tensors, num_examples=examples, client_id=client, scaling=scaling)


def as_client(update, client, examples=1):
    return fc.Update.from_tensors(dict(update.tensors), num_examples=examples, client_id=client, scaling=update.scaling)


def product(update, module):
    """s · B · A, or 0 where there is no update or module."""
    if update is None or module not in update.modules:
        return 0.0
    pair = update.modules[module]
    return pair.scale * to_float64(update.tensors[pair.b]) @ to_float64(update.tensors[pair.a])


def target(updates, module, side=None, reference=None):
    """side + Σ p_i Δ_i; who lacks the module counts with the reference."""
    total = sum(u.num_examples for u in updates)
    held = [u if module in u.modules else reference for u in updates]
    return product(side, module) + sum(
        u.num_examples / total * product(h, module) for u, h in zip(updates, held, strict=True)
    )


def off(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


def untrained(result, updates):
    """What clients send in the next round if none of them trains."""
    return [as_client(result.start_of(u.client_id), u.client_id, u.num_examples) for u in updates]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("ranks", [(4, 8, 16, 64), (8, 8, 8)])
def test_rounds_without_training_lose_nothing_with_error_feedback(ranks, dtype):
    method = lora.FlexLoRA(error_feedback=True)
    updates = [adapter(i, f"c{i}", r, i + 1, dtype) for i, r in enumerate(ranks)]
    goal = {module: target(updates, module) for module in SHAPES}
    side = None
    for number in range(1, 5):
        result = method.aggregate(updates, side=side, number=number)
        updates, side = untrained(result, updates), result.side
        for module in SHAPES:
            assert off(target(updates, module, side), goal[module]) < 2e-6
            report = result.report["modules"][module]
            assert report["residual"] < 2e-6
            for update in updates:
                own = off(product(update, module) + product(side, module), goal[module])
                reported = report.get("starts", {}).get(update.client_id, report["residual"])
                assert reported == pytest.approx(own, rel=1e-2, abs=2e-6)
                assert len(set(ranks)) > 1 or own < 2e-6
                assert update.modules[module].rank == ranks[int(update.client_id[1:])]


def test_a_rank_below_the_clients_holds_for_their_starts_and_counts_nothing_twice():
    updates = [adapter(i, f"c{i}", 8, i + 1) for i in range(4)]
    result = lora.FlexLoRA(rank=2, error_feedback=True).aggregate(updates)
    for module in SHAPES:
        for update in updates:
            start = result.start_of(update.client_id)
            assert start.modules[module].rank == 2
            assert off(product(start, module) + product(result.side, module), target(updates, module)) < 2e-6


EXACT = {
    "flexlora": (lora.FlexLoRA(error_feedback=True), False),
    "flora": (lora.FLoRA(), False),
    "fedex_lora": (lora.FedExLoRA(), False),
    "ffa_lora": (lora.FFALoRA(), True),
}


@pytest.mark.parametrize("name", EXACT)
def test_reported_residuals_are_those_of_the_rounded_factors(name):
    method, frozen = EXACT[name]
    fixed = {"a": {m: np.random.default_rng(9).standard_normal((8, d[1])) for m, d in SHAPES.items()}} if frozen else {}
    for dtype in ("float32", "float16", "bfloat16"):
        updates = [adapter(i, f"c{i}", 8, i + 1, dtype, **fixed) for i in range(3)]
        result = method.aggregate(updates)
        for module in SHAPES:
            held = target(untrained(result, updates), module, result.side)
            true = off(held, target(updates, module))
            assert result.report["modules"][module]["residual"] == pytest.approx(
                true, rel=1e-3 if true > 1e-6 else 0.25
            )
            assert true < (2e-6 if method.traits.side else 5e-3)


def test_terms_that_cancel_hide_neither_norm_nor_residual():
    rng = np.random.default_rng(0)
    b, a = rng.standard_normal((70, 3)), rng.standard_normal((3, 96))
    b[:, 1], a[1] = -3e4 * b[:, 0], a[0] / 0.3
    b[:, 0] *= 1e5
    tensors = {"m.lora_A.weight": np.float32(a), "m.lora_B.weight": np.float32(b)}
    update = fc.Update.from_tensors(tensors, client_id="c0", scaling={"m": 1.0})
    report = lora.FedIT().aggregate([update]).report["modules"]["m"]
    assert report["norm"] == pytest.approx(np.linalg.norm(product(update, "m")), rel=1e-9)
    assert report["residual"] < 1e-9


@pytest.mark.parametrize("rule", [fc.rules.Mean(), fc.rules.Median()])
@pytest.mark.parametrize("same", [True, False])
def test_rules_report_residuals_of_the_rounded_factors(rule, same):
    updates = [adapter(0 if same else i, f"c{i}", 4, 1, "bfloat16") for i in range(3)]
    result = fc.aggregate(updates, rule)
    for module in SHAPES:
        rows = np.stack([product(u, module) for u in updates])
        goal = rows.mean(0) if rule == fc.rules.Mean() else np.median(rows.astype(np.float32).astype(float), 0)
        true, report = off(product(result.update, module), goal), result.report["modules"][module]
        assert true > 1e-3
        assert report["residual"] == pytest.approx(true, rel=2e-3)
        assert report["least"] <= true * (1 + 1e-6)
        assert true <= report["most"] * (1 + 1e-6)


def referenced(**fixed):
    """(clients of rank 4 that trained one module, their reference of rank 16 with both)."""
    reference = adapter(50, "global", 16, **fixed)
    return [adapter(i, f"c{i}", 4, i + 1, shapes={"down": SHAPES["down"]}, **fixed) for i in range(2)], reference


@pytest.mark.parametrize(
    "name", ["fedit", "flexlora", "flora", "fedex_lora", "hetlora", "raflora", "randomized_sketch"]
)
def test_a_module_that_nobody_trained_stays_as_it_was(name):
    updates, reference = referenced()
    result = lora.METHODS[name]().aggregate(updates, reference=reference)
    for key in ("up.lora_A.weight", "up.lora_B.weight"):
        assert result.update.tensors[key].tobytes() == reference.tensors[key].tobytes()
    assert result.update.modules["up"].scale == reference.modules["up"].scale
    assert result.report["modules"]["up"] == pytest.approx(
        dict.fromkeys(("norm", "held"), np.linalg.norm(product(reference, "up")))
        | {"rank": 16, "residual": 0, "without_side": 0, "side_rank": 0}
    )


def test_a_client_without_a_module_counts_with_all_of_a_wider_reference():
    rng = np.random.default_rng(5)
    fixed = {"a": {m: np.float32(rng.standard_normal((16, d[1]))) for m, d in SHAPES.items()}}
    reference = adapter(50, "global", 16, **fixed)
    small = adapter(0, "c0", 4, **fixed)
    other = adapter(1, "c1", 4, 9, shapes={"down": SHAPES["down"]}, **fixed)
    goal = {m: target([small, other], m, reference=reference) for m in SHAPES}
    result = lora.FFALoRA().aggregate([small, other], reference=reference)
    for module in SHAPES:
        assert off(product(result.update, module), goal[module]) < 1e-6
        assert result.update.modules[module].rank == 16
    flex = lora.FlexLoRA().aggregate([small, other], reference=reference).update
    assert flex.modules["up"].rank == 16
    assert off(product(flex, "up"), dense.truncated(goal["up"], 16)) < 1e-6
    exact = lora.FlexLoRA(error_feedback=True).aggregate([small, other], reference=reference)
    following = untrained(exact, [small, other])
    again = target(following, "up", exact.side, exact.update)
    assert off(again, goal["up"]) < 2e-6
    for method in (lora.HetLoRA(), lora.FedExLoRA()):  # ranks that no client of this round has can still be trained
        wide = method.aggregate([small, other], reference=reference).update.tensors
        assert np.array_equal(wide["down.lora_A.weight"][4:], reference.tensors["down.lora_A.weight"][4:])
        assert not wide["down.lora_B.weight"][:, 4:].any()
    shared = lora.FedSALoRA().aggregate([small, other], reference=reference).update
    assert np.array_equal(shared.tensors["down.lora_A.weight"], fixed["a"]["down"])


def test_a_residual_of_mixed_ranks_is_as_wide_as_what_it_is_made_of():
    """What every client sent and what each starts from, at their own ranks."""
    updates = [adapter(0, "c0", 4), adapter(1, "c1", 2)]
    result = lora.FedExLoRA().aggregate(updates)
    for module in SHAPES:
        assert result.side.modules[module].rank == result.report["modules"][module]["side_rank"] == (4 + 2) + (4 + 2)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_fed_sb_takes_cores_that_were_rounded_to_the_clients_dtype_and_no_others(dtype):
    estimate = adapter(50, "estimate")
    fixed = lora.FedSB().fixed(estimate)
    narrow = fc.Update.from_tensors(
        {n: round_from_float64(to_float64(t), dtype) for n, t in fixed.tensors.items()}, scaling=fixed.scaling
    )
    rng, clients, cores = np.random.default_rng(1), [], []
    for i in range(3):
        cores.append(rng.standard_normal((4, 4)))
        tensors = {
            p.b: round_from_float64(to_float64(narrow.tensors[p.b]) @ cores[i], dtype) for p in fixed.modules.values()
        }
        clients.append(fc.Update.from_tensors(dict(narrow.tensors) | tensors, scaling=fixed.scaling, client_id=f"c{i}"))
    for reference in (fixed, narrow):
        result = lora.FedSB().aggregate(clients, reference=reference)
        for module in SHAPES:
            limit = {"float32": 1e-6, "float16": 2e-3, "bfloat16": 2e-2}[dtype]
            assert off(product(result.update, module), target(clients, module)) < limit
    other = adapter(3, "odd", dtype=dtype)
    tensors = {p.a: narrow.tensors[p.a] for p in narrow.modules.values()}
    odd = fc.Update.from_tensors(dict(other.tensors) | tensors, scaling=fixed.scaling, client_id="odd")
    with pytest.raises(LayoutError, match=r"client 'odd'.*no product"):
        lora.FedSB().aggregate([*clients, odd], reference=narrow)


@settings(deadline=None, max_examples=15)
@given(
    st.lists(st.tuples(st.sampled_from([1, 2, 4]), st.integers(1, 9)), min_size=1, max_size=5),
    st.integers(4, 12),
    st.integers(4, 12),
    st.sampled_from(["float32", "float16", "bfloat16"]),
    st.integers(0, 99),
)
def test_any_cohort_keeps_its_coefficients_and_its_mean(clients, d_out, d_in, dtype, seed):
    """The clients' examples are the coefficients; T comes back from the next round's clients if nobody trains."""
    shapes = {"m": (d_out, d_in)}
    updates = [
        adapter([seed, i], f"c{i}", r, n, dtype, shapes, scale=8 / np.sqrt(r)) for i, (r, n) in enumerate(clients)
    ]
    goal = target(updates, "m")
    for method in (lora.FlexLoRA(error_feedback=True), lora.FLoRA(), lora.FedExLoRA()):
        result = method.aggregate(updates)
        assert result.coefficients == {u.client_id: u.num_examples for u in updates}
        assert result.report["divisor"] == sum(n for _, n in clients)
        assert off(target(untrained(result, updates), "m", result.side), goal) < 3e-6
    best = lora.FlexLoRA().aggregate(updates)
    for update in updates:
        kept, rank = product(best.start_of(update.client_id), "m"), update.modules["m"].rank
        unit = {"float32": 1e-6, "float16": 2e-3, "bfloat16": 2e-2}[dtype]
        # the rest is orthogonal to a truncation, within the rounding of its factors
        assert np.abs(kept.T @ (goal - kept)).max() <= 4 * unit * np.linalg.norm(goal) ** 2
        assert off(kept, goal) == pytest.approx(off(dense.truncated(goal, rank), goal), abs=unit)


def test_a_result_has_the_count_of_those_that_count_and_none_where_one_of_them_never_said_it():
    said = [adapter(seed, f"c{seed}", rank=4 - seed, examples=10) for seed in range(4)]
    silent = [replace(update, counted=i != 2) for i, update in enumerate(said)]
    many = [replace(update, num_examples=2**39) for update in said]
    for cohort, weights, examples, counted in [
        (said, None, 40, True),
        (silent, None, 40, False),
        (many, [1, 1, 1, 1], 2**40, False),
    ]:
        found = lora.FlexLoRA().aggregate(cohort, weights)
        assert (found.update.num_examples, found.update.counted) == (examples, counted)
        own = [found.starts[update.client_id].counted for update in cohort[1:]]
        assert own == [update.counted for update in cohort[1:]]
