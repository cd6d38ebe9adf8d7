"""The rank that a rule's result has in delta space, ranks that no Δ has, and adapters added to base weights."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

import fedcore as fc
from fedcore.dtypes import round_from_float64, to_float64
from fedcore.errors import DTypeError, LayoutError, RuleError, ShapeError
from tests.oracles import delta as dense
from tests.test_lora_rounds import SHAPES, adapter, off, product, target

RANKS = (4, 8, 16, 64)
MEAN = fc.rules.Mean()


def clients(dtype="float32", ranks=RANKS):
    return [adapter(i, f"c{i}", r, i + 1, dtype, scale=16 / np.sqrt(r)) for i, r in enumerate(ranks)]


@pytest.mark.parametrize("rule", [MEAN, fc.rules.Median()])
def test_the_result_has_the_rank_that_was_asked_for(rule, tmp_path):
    updates = clients()
    for rank in (None, 2, 20, 66):
        result = fc.aggregate(updates, rule, rank=rank)
        for module in SHAPES:
            rows = np.stack([product(u, module) for u in updates])
            whole = target(updates, module) if rule == MEAN else np.median(rows, 0)
            kept = dense.truncated(whole, rank or 64)
            assert result.update.modules[module].rank == (rank or 64)
            assert off(product(result.update, module), whole) == pytest.approx(off(kept, whole), abs=2e-6)
            assert result.report["modules"][module]["residual"] == pytest.approx(off(kept, whole), abs=2e-6)
        result.update.to_peft(tmp_path / str(rank))
        assert fc.Update.from_peft(tmp_path / str(rank)).digest() == result.update.digest()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("ranks", [(4, 8, 16), RANKS])
def test_full_rank_truncates_nothing(ranks, dtype):
    """The stacked factors, as they are while their rank fits Δ; the result is a client like another."""
    updates = clients(dtype, ranks)
    for rule in (MEAN, fc.rules.NormClipping(20.0)):
        result = fc.aggregate(updates, rule, rank="full")
        share = np.array([result.coefficients[u.client_id] for u in updates]) / result.report["divisor"]
        for module, shape in SHAPES.items():
            goal = sum(w * product(u, module) for w, u in zip(share, updates, strict=True))
            pair, report = result.update.modules[module], result.report["modules"][module]
            assert pair.rank == min(sum(ranks), *shape)
            assert report["core"] == ("stacked" if sum(ranks) <= min(shape) else "qr")
            true = off(product(result.update, module), goal)
            assert true < (1e-6 if dtype == "float32" else 1e-2)
            assert report["residual"] == pytest.approx(true, rel=1e-2, abs=1e-6)
            assert report["norm"] == pytest.approx(np.linalg.norm(goal))
    assert result.report["law"].startswith("stacked factors, rounded")
    assert fc.aggregate([*updates, result.update], MEAN).update.modules.keys() == SHAPES.keys()


def test_one_client_at_full_rank_is_itself_and_at_another_rank_is_truncated():
    (update,) = clients(ranks=(8,))
    for rank in (None, "full", 8, np.int64(8)):
        assert fc.aggregate([update], MEAN, rank=rank).update.digest() == update.digest()
    low = fc.aggregate([update], MEAN, rank=3).update
    assert off(product(low, "up"), dense.truncated(product(update, "up"), 3)) < 1e-6


def test_ranks_that_make_no_sense_are_named():
    updates = clients()
    for arguments, kind, words in (
        ({"rank": 0}, RuleError, "rank: got 0"),
        ({"rank": True}, RuleError, "rank: got True"),
        ({"rank": np.True_}, RuleError, "rank: got np.True_"),
        ({"rank": 4.0}, RuleError, "rank: got 4.0"),
        ({"rank": -(10**5000)}, RuleError, "rank: got a negative integer of 16610 bits, expected a whole number"),
        ({"rank": "all"}, RuleError, "'full'"),
        ({"rank": 67}, LayoutError, "module 'down': got rank 67, expected at most 66"),
        ({"rank": 4, "space": "parameters"}, RuleError, "space='parameters'"),
    ):
        with pytest.raises(kind, match=words):
            fc.aggregate(updates, MEAN, **arguments)
    for arguments in ({"rank": "full"}, {"rank": 2, "dense": True}):
        with pytest.raises(RuleError, match="dense=True"):
            fc.aggregate(updates, fc.rules.Median(), **arguments)


def test_a_rank_above_the_smaller_side_is_refused_of_clients_and_of_a_reference():
    def tall(client, shapes=((9, 10), (6, 9))):
        tensors = {f"m.lora_{x}.weight": np.ones(s, np.float32) for x, s in zip("AB", shapes, strict=True)}
        return fc.Update.from_tensors(tensors, client_id=client, scaling={"m": 1.0})

    good = tall("good", ((4, 10), (6, 4)))
    transposed = tall("odd", ((10, 4), (4, 10)))
    for updates, reference in (
        ([good, tall("odd")], None),
        ([good, transposed], None),
        ([good], tall("odd")),
        ([good], transposed),
    ):
        with pytest.raises(LayoutError, match=r"(client 'odd'|reference): module 'm' has rank (9|10).*smaller side"):
            fc.aggregate(updates, fc.rules.NormClipping(1.0), reference=reference)
        with pytest.raises(LayoutError, match=r"(client 'odd'|the reference): module 'm' has rank (9|10)"):
            fc.lora.FlexLoRA().aggregate(updates, reference=reference)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_merged_weights_are_rounded_once(dtype):
    update, side = clients(dtype, (8, 4))
    weight = round_from_float64(np.random.default_rng(3).standard_normal(SHAPES["up"]), dtype)
    merged = fc.lora.merge(weight, "up", update, side)
    goal = to_float64(weight) + product(update, "up") + product(side, "up")
    expected = to_float64(round_from_float64(goal, dtype))
    if dtype == "float32":
        np.testing.assert_allclose(merged, expected, rtol=1e-5, atol=1e-5)
    else:
        assert np.mean(to_float64(merged) == expected) > 0.99
    assert merged.dtype == weight.dtype


def test_torch_weights_come_back_as_torch():
    torch = pytest.importorskip("torch")
    (update,) = clients("float32", (8,))
    weight = torch.randn(SHAPES["up"], dtype=torch.bfloat16)
    merged = fc.lora.merge(weight, "up", update)
    assert merged.dtype == torch.bfloat16
    np.testing.assert_allclose(merged.double(), weight.double() + product(update, "up"), rtol=2**-8, atol=1e-3)


@pytest.mark.parametrize("shape", [(12, 12), (12, 20)])
def test_weights_that_lie_turned_get_the_turned_change(shape):
    """GPT-2's Conv1D; on square weights nothing but the config tells."""
    plain, side = (adapter(i, f"c{i}", 4, shapes={"m": shape}) for i in range(2))
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "fan_in_fan_out": True}
    turned = fc.Update.from_tensors(plain.tensors, scaling=plain.scaling, adapter_config=config)
    weight = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    change = product(plain, "m") + product(side, "m")
    np.testing.assert_allclose(fc.lora.merge(weight, "m", plain, side), weight + change, atol=1e-5)
    found = fc.lora.merge(np.ascontiguousarray(weight.T), "m", turned, side)
    np.testing.assert_allclose(found, weight.T + change.T, atol=1e-5)
    if shape[0] != shape[1]:
        with pytest.raises(ShapeError, match=r"module 'm': its base weights are \(12, 20\), expected \(20, 12\)"):
            fc.lora.merge(weight, "m", turned)


@pytest.mark.parametrize("tokens", [12, 30])
def test_an_embedding_is_merged_as_peft_merges_it(tokens):
    """Its weights are (tokens, d_out), whatever fan_in_fan_out says of the other layers."""
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Embedding(tokens, 12), torch.nn.Linear(12, 12))
    weights = [layer.weight.detach().clone() for layer in model]
    model = peft.get_peft_model(model, peft.LoraConfig(r=4, lora_alpha=8, target_modules=["0", "1"]))
    for name, parameter in model.named_parameters():
        if "lora" in name:
            torch.nn.init.normal_(parameter)
    state, config = peft.get_peft_model_state_dict(model), model.peft_config["default"].to_dict()
    factors = {name: tensor.clone() for name, tensor in state.items() if "lora" in name}
    update = fc.Update.from_tensors(factors, adapter_config=config)
    side = fc.Update.from_tensors(factors, scaling={name: -0.5 * s for name, s in update.scaling.items()})
    merged = [layer.weight.detach() for layer in model.merge_and_unload()]
    for i, (weight, expected) in enumerate(zip(weights, merged, strict=True)):
        module = f"base_model.model.{i}"
        torch.testing.assert_close(fc.lora.merge(weight, module, update), expected, rtol=1e-5, atol=1e-5)
        half = fc.lora.merge(weight, module, update, side)
        torch.testing.assert_close(half, (weight + expected) / 2, rtol=1e-5, atol=1e-5)
    with_conv1d = fc.Update.from_tensors(factors, adapter_config=config | {"fan_in_fan_out": True})
    found = fc.lora.merge(weights[0], "base_model.model.0", with_conv1d)
    torch.testing.assert_close(found, merged[0], rtol=1e-5, atol=1e-5)
    with pytest.raises(ShapeError, match=r"\(12, 31\), expected \(\d+, 12\), as an embedding stores"):
        fc.lora.merge(torch.zeros(12, 31), "base_model.model.0", update)


class Packed(np.ndarray):
    """Quantised weights as bitsandbytes holds them: in a dtype that is the caller's choice (bnb_4bit_quant_storage)."""

    quant_state = object()


def test_a_quantised_base_is_refused_by_name():
    (update,) = clients("float32", (8,))
    for dtype in (np.uint8, np.int8, ml_dtypes.float8_e4m3fn):
        with pytest.raises(DTypeError, match=r"module 'up': its base weights are (u?int8|float8).*beside"):
            fc.lora.merge(np.zeros(SHAPES["up"], dtype), "up", update)
    with pytest.raises(DTypeError, match=r"module 'up': its base weights are float32.*quantised.*beside"):
        fc.lora.merge(np.zeros(SHAPES["up"], np.float32).view(Packed), "up", update)
    with pytest.raises(LayoutError, match="module 'other' is missing"):
        fc.lora.merge(np.zeros(SHAPES["up"], np.float32), "other", update)
    with pytest.raises(ShapeError, match="base"):
        fc.lora.merge(np.zeros((3, 4), np.float32), "up", update)


def test_clients_that_cancel_leave_no_side_adapter():
    """What error feedback finds of T = 0 is rounding, which is no direction."""
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((4, 30)).astype("f4"), rng.standard_normal((20, 4)).astype("f4")
    updates = [
        fc.Update.from_tensors(
            {"m.lora_A.weight": a, "m.lora_B.weight": sign * b}, client_id=str(sign), num_examples=1, scaling={"m": 1.0}
        )
        for sign in (1, -1)
    ]
    assert fc.lora.FlexLoRA(error_feedback=True).aggregate(updates).side is None
