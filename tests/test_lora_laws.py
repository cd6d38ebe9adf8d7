"""What holds of LoRA methods as a family: exactness, fixed points, the gauge, weights, bytes, dtypes."""

from __future__ import annotations

import numpy as np
import pytest

import fedcore as fc
from fedcore import lora
from tests.method_cohorts import (
    RANK,
    SHAPES,
    adapter,
    alike,
    assert_close,
    cores,
    frozen,
    held,
    mean_delta,
    mixed,
    regauged,
    shares,
    start,
)
from tests.oracles import delta as dense

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
