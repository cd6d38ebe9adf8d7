"""Linear methods from sums of messages alone, as masks leave them, against the same methods on all clients' factors."""

from __future__ import annotations

import numpy as np
import pytest

import fedcore as fc
from fedcore import lora
from fedcore.dtypes import round_from_float64
from fedcore.errors import FedcoreError, LayoutError, NonFiniteError, RuleError, WeightError
from fedcore.lora.combination import refusals
from tests.method_cohorts import SHAPES, adapter, alike, cores, frozen, held, mixed
from tests.oracles import delta as dense

#: case -> (method, clients, what the round started from, round)
CASES = {
    "fedit": (lora.FedIT(), lambda: alike(), lambda: adapter(50, "global"), 1),
    "ffa_lora": (lora.FFALoRA(), lambda: alike(**frozen("a")), lambda: adapter(50, "global", **frozen("a")), 1),
    "ffa_lora mixed": (lora.FFALoRA(), lambda: mixed(**frozen("a")), lambda: mixed(**frozen("a"))[0], 1),
    "rolora b": (lora.RoLoRA(), lambda: alike(**frozen("a")), lambda: adapter(50, "global", **frozen("a")), 1),
    "rolora a": (lora.RoLoRA(), lambda: alike(**frozen("b")), lambda: adapter(50, "global", **frozen("b")), 2),
    "fedsa_lora": (lora.FedSALoRA(), lambda: alike(), lambda: adapter(50, "global"), 1),
    "frlora": (lora.FRLoRA(), lambda: alike(), lambda: adapter(50, "global"), 1),
    "fedsvd": (lora.FedSVD(), lambda: alike(**frozen("a")), lambda: adapter(50, "global", **frozen("a")), 1),
    "fedsb": (lora.FedSB(), lambda: cores()[0], lambda: cores()[1], 1),
    "one pass": (lora.RandomizedSketch(size=5), lambda: mixed(), lambda: adapter(50, "global"), 3),
    "two passes": (lora.RandomizedSketch(size=5, passes=2), lambda: mixed(), lambda: adapter(50, "global"), 3),
}


def summed(updates, message):
    """(Σ w_i m_i, Σ w_i): all that a server sees."""
    sums: dict[str, np.ndarray] = {}
    for update in updates:
        for name, values in message(update).items():
            assert values.dtype == np.float32
            sums[name] = sums.get(name, 0.0) + update.num_examples * values.astype(np.float64)
    return sums, float(sum(update.num_examples for update in updates))


def finished(method, updates, start, number, **known):
    sums, weight = summed(updates, lambda update: method.message(update, start, number))
    if getattr(method, "passes", 1) == 2:
        bases = method.bases(sums, start)
        sums |= summed(updates, lambda update: method.message(update, start, number, bases))[0]
    return sums, method.finish(sums, weight, start, number=number, **known)


@pytest.mark.parametrize("case", CASES)
def test_sums_alone_give_what_all_factors_give(case):
    method, clients, begin, number = CASES[case]
    updates, start = clients(), begin()
    known = {"side": adapter(60, "side", scale=1.0)} if method.traits.side else {}
    sums, (found, side) = finished(method, updates, start, number, **known)
    expected = method.aggregate(updates, reference=start, number=number, **known)
    for module in SHAPES:
        goal = held(expected, module)
        value = dense.dense(found, module) + (0.0 if side is None else dense.dense(side, module))
        np.testing.assert_allclose(value, goal, atol=5e-6 * max(np.linalg.norm(goal), 1.0))
        pair = found.modules[module]
        assert pair.scale == start.modules[module].scale
    if method.traits.name in ("fedit", "rolora", "fedsa_lora"):
        assert all(found.tensors[name].tobytes() == expected.update.tensors[name].tobytes() for name in found.tensors)
    # what is billed is what a message weighs
    sizes = {name: 4 * values.size for name, values in sums.items() if name not in start.dense}
    billed = expected.report["bytes"]["c0"]["up"]
    assert sum(sizes.values()) == billed


def test_every_linear_method_can_be_finished_and_no_other():
    assert {method.traits.name for method, *_ in CASES.values()} == {
        name for name, kind in lora.METHODS.items() if kind.traits.linear
    }
    for name, kind in lora.METHODS.items():
        if not kind.traits.linear:
            for call in (
                lambda kind=kind: kind().message(adapter(0, "c0"), adapter(1, "global")),
                lambda kind=kind: kind().finish({}, 1.0, adapter(1, "global")),
            ):
                with pytest.raises(RuleError, match=f"{name}: .*sum of messages"):
                    call()


def test_sums_take_mixed_ranks_where_the_plan_says_so():
    for name, kind in lora.METHODS.items():
        method, fixed = kind(), frozen("a") if name == "ffa_lora" else {}
        if not method.traits.linear or name == "fedsb":
            continue
        taken = not refusals(method, mixed=True, masks=True)
        assert taken == (name in ("ffa_lora", "randomized_sketch"))
        try:
            found = method.message(adapter(3, "low", rank=2, **fixed), adapter(4, "global", **fixed))
        except LayoutError:
            found = None
        assert (found is not None) == taken


def test_sixteen_bits_and_dense_tensors_come_back_as_they_were():
    def narrow(update, client):
        tensors = {n: round_from_float64(t.astype(float), "bfloat16") for n, t in update.tensors.items()}
        tensors["head.weight"] = round_from_float64(np.full((2, 3), float(update.num_examples)), "bfloat16")
        return fc.Update.from_tensors(
            tensors, scaling=update.scaling, client_id=client, num_examples=update.num_examples
        )

    updates, start = [narrow(u, u.client_id) for u in alike(3)], narrow(adapter(50, "x"), "global")
    for method in (lora.FedIT(), lora.RandomizedSketch()):
        _, (found, _) = finished(method, updates, start, 1)
        expected = method.aggregate(updates).update
        assert found.layout == expected.layout
        assert found.tensors["head.weight"].tobytes() == expected.tensors["head.weight"].tobytes()


def test_what_does_not_fit_is_named():
    method, start, good = lora.FFALoRA(), adapter(50, "global", **frozen("a")), alike(1, **frozen("a"))[0]
    sums = method.message(good, start)
    lacking = {name: values for name, values in sums.items() if name != "up.lora_B.weight"}
    spoilt = sums | {"up.lora_B.weight": np.full_like(sums["up.lora_B.weight"], np.nan)}
    for call, kind, words in (
        (lambda: method.message(adapter(3, "odd"), start), LayoutError, ("client 'odd'", "A is frozen")),
        (
            lambda: lora.FedIT().message(adapter(3, "odd", rank=2), start),
            LayoutError,
            ("'odd'", "rank 2", "expected 4"),
        ),
        (lambda: lora.FedIT().message(adapter(3, "odd", modules=("up",)), start), LayoutError, ("'odd'", "missing")),
        (lambda: method.finish(lacking, 1.0, start), LayoutError, ("up.lora_B.weight", "missing")),
        (lambda: method.finish(sums | {"up.lora_B.weight": np.ones(3)}, 1.0, start), LayoutError, ("(3,)", "(24, 4)")),
        (lambda: method.finish(spoilt, 1.0, start), NonFiniteError, ("up.lora_B.weight", "NaN")),
        (lambda: method.finish(sums, 0.0, start), WeightError, ("weight", "0.0")),
        (lambda: lora.RandomizedSketch(size=3).message(good, start), LayoutError, ("'down'", "rank 4", "at least 4")),
        (lambda: lora.RandomizedSketch().message(good, start, bases={}), RuleError, ("passes = 1",)),
    ):
        with pytest.raises(kind) as error:
            call()
        assert isinstance(error.value, FedcoreError)
        for word in words:
            assert word in str(error.value), str(error.value)


def test_each_module_and_round_has_matrices_of_its_own():
    """Modules of one shape too: one error in common would not average out over them."""
    found = [
        lora.RandomizedSketch(size=5, seed=seed).matrices(module, number, 24, 10, 4)
        for module, number, seed in (("q", 1, 0), ("k", 1, 0), ("q", 2, 0), ("q", 1, 1), ("q", 1, 0))
    ]
    for k in range(2):
        drawn = [matrices[k].tobytes() for matrices in found]
        assert len(set(drawn)) == 4
        assert drawn[0] == drawn[4]


def test_sketch_columns_follow_the_rank():
    """As many columns as the rank leave far more than the best rank does; four times as many leave little more."""
    rng, shape = np.random.default_rng(0), (200, 260)
    updates = []
    for i in range(3):
        tensors = {
            f"m.lora_{x}.weight": np.float32(rng.standard_normal(s) * np.geomspace(1, 0.05, 40).reshape(d))
            for x, s, d in (("A", (40, shape[1]), (40, 1)), ("B", (shape[0], 40), (1, 40)))
        }
        updates.append(fc.Update.from_tensors(tensors, scaling={"m": 1.0}, client_id=f"c{i}"))
    report = lora.RandomizedSketch().aggregate(updates).report
    assert report["modules"]["m"]["residual"] < 1.2 * report["modules"]["m"]["best"]
    few = lora.RandomizedSketch(size=40).aggregate(updates).report["modules"]["m"]
    assert few["residual"] > 1.5 * few["best"]
    assert report["bytes"]["c0"]["up"] == 4 * (160 * 200 + 200 * 260)
    with pytest.raises(LayoutError, match=r"'m' has rank 40.*at least 40"):
        lora.RandomizedSketch(size=39).aggregate(updates)
