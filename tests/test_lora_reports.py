"""What a LoRA method reports is true of what it hands out, and whoever sent numbers of no use is named."""

from __future__ import annotations

import json

import numpy as np
import pytest

import fedcore as fc
from fedcore import lora
from fedcore.dtypes import round_from_float64, to_float64
from fedcore.errors import LayoutError, NonFiniteError, RangeError, WeightError
from tests.method_cohorts import SHAPES, adapter, alike, cores, frozen, mixed, shares

MIXED = [kind() for kind in lora.METHODS.values() if kind.traits.mixed]


def changed(update, dtype="float32", client=None, scale=None, **tensors):
    """The same in another dtype, of another client or scale, or with other tensors."""
    found = dict(update.tensors) | {name.replace("__", "."): values for name, values in tensors.items()}
    return fc.Update.from_tensors(
        {name: round_from_float64(to_float64(values), dtype) for name, values in found.items()},
        num_examples=update.num_examples,
        client_id=update.client_id if client is None else client,
        scaling=update.scaling if scale is None else dict.fromkeys(update.scaling, scale),
    )


def product(update, module):
    """s · B · A in fp64; 0 without an update."""
    if update is None:
        return 0.0
    pair = update.modules[module]
    return pair.scale * to_float64(update.tensors[pair.b]) @ to_float64(update.tensors[pair.a])


@pytest.mark.parametrize("method", [*MIXED, lora.FlexLoRA(error_feedback=True)], ids=repr)
def test_residuals_are_those_of_the_starts_that_clients_get(method):
    """In bf16, at mixed ranks, with a client that trained one module of three."""
    clients = mixed(**frozen("a")) if isinstance(method, lora.FFALoRA) else mixed()
    updates = [changed(update, "bfloat16") for update in clients]
    result = method.aggregate(updates)
    p = shares(updates) if method.traits.weighted else np.full(len(updates), 1 / len(updates))
    assert result.report["weighted"] == method.traits.weighted
    for module, report in result.report["modules"].items():
        goal = sum(w * product(u, module) for w, u in zip(p, updates, strict=True) if module in u.modules)
        size, side = np.linalg.norm(goal), product(result.side, module)
        starts = {u.client_id: product(result.start_of(u.client_id), module) for u in updates}
        held = sum(w * start for w, start in zip(p, starts.values(), strict=True)) + side
        assert report["held"] == pytest.approx(np.linalg.norm(held), rel=1e-6)
        assert report["residual"] == pytest.approx(np.linalg.norm(goal - held) / size, rel=1e-4, abs=2e-7)
        assert report.get("starts", starts).keys() == starts.keys()
        for client, value in report.get("starts", {}).items():
            assert value == pytest.approx(np.linalg.norm(goal - starts[client] - side) / size, rel=1e-4, abs=2e-7)
    json.dumps(result.report, allow_nan=False)


def test_a_client_gets_the_modules_that_it_did_not_train_and_their_bytes_are_counted():
    updates = mixed()
    result = lora.FlexLoRA().aggregate(updates)
    for update in updates:
        start = result.start_of(update.client_id)
        assert start.modules.keys() == SHAPES.keys()
        assert result.report["bytes"][update.client_id]["down"] == start.nbytes
    assert result.start_of("c9").modules["down"].rank == 2
    assert result.start_of("c9").modules["up"].rank == result.update.modules["up"].rank


def test_what_is_held_where_the_mean_is_nothing_shows():
    b, a = np.float32(np.eye(6, 1)), np.float32(np.eye(1, 5))
    one, other, zero = (
        fc.Update.from_tensors({"m.lora_A.weight": x, "m.lora_B.weight": y}, client_id=client, scaling={"m": 1.0})
        for client, x, y in (("c0", a, b), ("c1", a / 2, -2 * b), ("c2", a, 0 * b))
    )
    result = lora.FedIT().aggregate([one, other])
    report = result.report["modules"]["m"]
    assert (report["norm"], report["residual"], report["without_side"]) == (0.0, 1.0, 1.0)
    assert report["held"] == pytest.approx(np.linalg.norm(product(result.update, "m")))
    assert lora.FedIT().aggregate([zero]).report["modules"]["m"]["residual"] == 0.0


def opposites():
    """(B, A) and (−B, A), whose mean is 0 and whose rounding is not."""
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(shape).astype(np.float32) for shape in ((4, 40), (30, 4)))
    return [
        fc.Update.from_tensors({"m.lora_A.weight": a, "m.lora_B.weight": x}, client_id=c, scaling={"m": 2.0})
        for c, x in (("c0", b), ("c1", -b))
    ]


@pytest.mark.parametrize("feedback", [False, True])
def test_a_truncated_mean_that_cancels_is_a_fresh_adapter(feedback):
    engine = fc.aggregate(opposites(), fc.rules.Mean())
    method = lora.FlexLoRA(error_feedback=feedback).aggregate(opposites())
    for update in (engine.update, method.update):
        np.testing.assert_allclose(np.linalg.norm(update.tensors["m.lora_A.weight"], axis=1), 1.0, rtol=1e-6)
        assert not update.tensors["m.lora_B.weight"].any()
    assert method.side is None
    for report, names in ((engine.report, ("residual", "most", "least")), (method.report, ("held", "residual"))):
        assert [report["modules"]["m"][name] for name in ("norm", *names)] == [0.0] * (1 + len(names))
    assert fc.aggregate(opposites(), fc.rules.Mean(), rank="full").report["modules"]["m"]["norm"] == 0.0


@pytest.mark.parametrize("passes", [1, 2])
def test_nothing_is_the_best_that_can_be_made_of_a_mean_that_cancels(passes):
    report = lora.RandomizedSketch(passes=passes).aggregate(opposites()).report["modules"]["m"]
    assert (report["norm"], report["best"]) == (0.0, 0.0)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_fr_lora_restarts_in_the_clients_dtype_without_moving_the_model(dtype):
    rng, method = np.random.default_rng(3), lora.FRLoRA()
    weights = {module: rng.standard_normal(shape) for module, shape in SHAPES.items()}
    head = {"head.weight": np.ones((2, 3), np.float32)}
    start, side = method.restart(changed(adapter(0, "shape"), dtype, scale=2.0, **head), weights)
    assert set(start.layout.dtypes) == {dtype}
    assert start.dense == ("head.weight",)
    result = method.aggregate([changed(start, dtype, "c0")], reference=start, side=side)
    assert result.update.layout.dtypes == start.layout.dtypes
    for module, report in result.report["modules"].items():
        size = np.linalg.norm(product(start, module))
        assert np.linalg.norm(product(start, module) + product(side, module)) < 1e-9 * size
        # nobody trained: what is held is the rounding of the side adapter to fp32
        assert report["norm"] == 0.0
        assert report["held"] < 2e-7 * size


def test_a_method_that_weighs_clients_by_itself_takes_no_weights_and_says_its_own():
    updates = mixed()[:4]
    with pytest.raises(WeightError, match="hetlora weighs clients by itself; leave them out"):
        lora.HetLoRA().aggregate(updates, weights=[1.0, 1000.0, 1.0, 1.0])
    result = lora.HetLoRA().aggregate(updates)
    for module, report in result.report["modules"].items():
        norms = {update.client_id: np.linalg.norm(product(update, module)) for update in updates}
        assert report["shares"] == pytest.approx({client: norm / sum(norms.values()) for client, norm in norms.items()})
    assert set(result.coefficients.values()) == {1.0}


def with_head(update, value=1.0):
    return changed(update, head__weight=np.array([[1.0, 1.0, 1.0], [1.0, value, 1.0]], np.float32))


def test_nan_in_a_dense_tensor_is_the_clients_that_sent_it():
    good, bad = (with_head(update, value) for update, value in zip(alike(2), (1.0, np.nan), strict=True))
    for call in (
        lambda: lora.FedIT().aggregate([good, bad]),
        lambda: lora.FlexLoRA().aggregate([good, bad]),
        lambda: lora.HetLoRA().aggregate([good, bad]),
        lambda: lora.FedIT().message(bad, good),
        lambda: lora.RandomizedSketch().message(bad, good),
    ):
        with pytest.raises(NonFiniteError, match=r"client 'c1': tensor 'head.weight' holds NaN or Inf at element 4"):
            call()


@pytest.mark.parametrize("passes", [1, 2])
def test_a_sketch_that_fp32_cannot_hold_is_the_clients_that_sent_it(passes):
    start, good = adapter(50, "global"), adapter(0, "good")
    large = {name: values * np.float32(1e20) for name, values in good.tensors.items()}
    bad, method = changed(good, client="bad", **large), lora.RandomizedSketch(passes=passes)
    calls = [lambda: method.aggregate([good, bad]), lambda: method.message(bad, start)]
    if passes == 2:
        bases = method.bases(method.message(good, start), start)
        calls.append(lambda: method.message(bad, start, bases=bases))
    for call in calls:
        with pytest.raises(RangeError, match=r"client 'bad': its message '\w+.(range|core)' does not fit float32"):
            call()
    fixed = frozen("a")
    b = np.full((SHAPES["up"][0], 4), 1e35, np.float32)
    scaled = changed(adapter(1, "bad", **fixed), scale=1e6, **{"up.lora_B.weight": b})
    with pytest.raises(RangeError, match=r"client 'bad': its message 'up.lora_B.weight' does not fit float32"):
        lora.FFALoRA().message(scaled, adapter(50, "global", **fixed))


def test_nan_in_a_reference_or_side_adapter_excludes_no_client():
    good = alike(4)
    a = np.array(good[0].tensors["up.lora_A.weight"])
    a[1, 2] = np.nan
    bad = changed(good[0], **{"up.lora_A.weight": a})
    for who, call in (
        ("the reference", lambda: lora.FlexLoRA().aggregate(good, reference=bad)),
        ("the side adapter", lambda: lora.FLoRA().aggregate(good, side=bad)),
        ("the start", lambda: lora.FedIT().message(good[0], bad)),
        ("reference", lambda: fc.aggregate(good, fc.rules.NormClipping(1.0), reference=bad)),
        ("reference", lambda: fc.aggregate(good, fc.rules.SignMajority(0.5), reference=bad)),
    ):
        with pytest.raises(NonFiniteError, match=rf"{who}: tensor 'up.lora_A.weight' .* 12; repair {who}$"):
            call()


def test_fed_sb_takes_no_core_of_another_scale():
    clients, fixed = cores()
    method, other = lora.FedSB(), [changed(update, scale=3.0) for update in clients]
    for call in (lambda: method.message(other[0], fixed), lambda: method.aggregate(other, reference=fixed)):
        with pytest.raises(LayoutError, match=r"client 'c0': module 'down' has .*scale 3, expected .*4"):
            call()
