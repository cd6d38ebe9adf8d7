"""Side adapters, frozen factors and cores on a real NF4 base; and what folding into that base loses."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedcore import lora
from fedcore.clients.adapter import load, only
from fedcore.clients.beside import beside
from fedcore.clients.core import train_core
from fedcore.clients.settings import TrainingSettings
from fedcore.clients.training import train
from fedcore.errors import LayoutError
from fedcore.updates import Update
from tests.oracles import delta as dense

SETTINGS = TrainingSettings(steps=3, batch_size=2, sequence_length=16, learning_rate=1e-2)


def filled(initial, seed, size=0.02):
    """The adapter with B drawn, so that it changes what the model says."""
    rng, tensors = np.random.default_rng(seed), dict(initial.tensors)
    for pair in initial.modules.values():
        tensors[pair.b] = np.float32(size * rng.standard_normal((pair.d_out, pair.rank)))
    return Update.from_tensors(tensors, scaling=initial.scaling, base=initial.base, client_id=f"c{seed}")


def logits(base):
    with torch.no_grad():
        return base.model(input_ids=torch.arange(3, 19)[None]).logits.double().numpy()


def test_a_side_adapter_adds_what_the_adapter_itself_would(adapted):
    base, initial = adapted
    one, other = filled(initial, 1), filled(initial, 2)
    result = lora.FLoRA().aggregate([one, other])
    silent = logits(base)
    load(base, one)
    expected = logits(base)
    load(base, initial)
    with beside(base, lora.FLoRA().aggregate([one]).side):
        np.testing.assert_allclose(logits(base), expected, atol=2e-5 * np.abs(expected).max())
    np.testing.assert_array_equal(logits(base), silent)
    with beside(base, result.side):
        assert np.abs(logits(base) - silent).max() > 1e-3
    wrong = Update.from_tensors(
        {"no.lora_A.weight": np.ones((1, 4), np.float32), "no.lora_B.weight": np.ones((4, 1), np.float32)},
        scaling={"no": 1.0},
    )
    message = r"side adapter: module no is 4 × 4, the base has none of that name"
    with pytest.raises(LayoutError, match=message), beside(base, wrong):
        pass


@pytest.mark.parametrize("factor", ["a", "b"])
def test_frozen_factors_come_back_in_every_bit_and_the_others_move(adapted, texts, factor):
    from fedcore.clients.adapter import read

    base, initial = adapted
    start = filled(initial, 3)
    load(base, start)
    with only(base, (factor,)):
        train(base, texts, SETTINGS, seed=0)
    found = read(base, client_id="c", num_examples=1)
    for pair in start.modules.values():
        same = {name: np.array_equal(found.tensors[name], start.tensors[name]) for name in (pair.a, pair.b)}
        assert same == {pair.a: factor == "b", pair.b: factor == "a"}
    train(base, texts, SETTINGS, seed=0)
    after = read(base, client_id="c", num_examples=1)
    assert not any(np.array_equal(after.tensors[name], found.tensors[name]) for name in found.tensors)


def test_a_core_trains_between_fixed_factors_and_the_mean_of_cores_is_exact(adapted, texts):
    base, initial = adapted
    method = lora.FedSB()
    fixed = method.fixed(filled(initial, 4))
    zero = {pair.b: np.zeros((pair.d_out, pair.rank), np.float32) for pair in fixed.modules.values()}
    start = Update.from_tensors(
        dict(fixed.tensors) | zero, scaling=fixed.scaling, adapter_config=initial.adapter_config
    )
    updates = [train_core(base, texts[i::2], SETTINGS, i, start, fixed, client_id=f"c{i}") for i in range(2)]
    result = method.aggregate(updates, reference=fixed)
    for module in fixed.modules:
        expected = sum(len(texts[i::2]) / len(texts) * dense.dense(updates[i], module) for i in range(2))
        assert np.linalg.norm(expected) > 0
        np.testing.assert_allclose(dense.dense(result.update, module), expected, atol=1e-5 * np.linalg.norm(expected))
    load(base, updates[0])
    again = train_core(base, texts[::2], SETTINGS, 5, updates[0], fixed, client_id="c0")
    assert again.digest() != updates[0].digest()


@pytest.mark.parametrize(("size", "kept"), [(0.1, (0.5, 1.2)), (0.01, (-0.1, 0.1)), (0.001, (-0.01, 0.01))])
def test_folding_into_nf4_loses_the_update_and_a_side_adapter_does_not(adapted, size, kept):
    """The share of Δ that is left, ⟨W' − W, Δ⟩ / ‖Δ‖², at ‖Δ‖ / ‖W‖ = size, with bitsandbytes' own quantiser."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    base, initial = adapted
    shares = []
    update = filled(initial, 6)
    for module in update.modules:
        weight = dict(base.model.named_modules())[module].base_layer.weight
        before = dequantize_4bit(weight.data, weight.quant_state).double().numpy()
        delta = dense.dense(update, module)
        delta *= size * np.linalg.norm(before) / np.linalg.norm(delta)
        folded = quantize_4bit(
            torch.from_numpy(before + delta).float(), quant_type="nf4", compress_statistics=True, blocksize=64
        )
        after = dequantize_4bit(*folded).double().numpy()
        shares.append(float(np.sum((after - before) * delta) / np.sum(delta * delta)))
        pair = update.modules[module]
        tensors = {"m.lora_A.weight": update.tensors[pair.a], "m.lora_B.weight": update.tensors[pair.b]}
        ratio = np.linalg.norm(delta) / np.linalg.norm(dense.dense(update, module))
        scaled = Update.from_tensors(tensors, scaling={"m": pair.scale * ratio})
        side = lora.FLoRA().aggregate([scaled]).side
        ours = dense.dense(side, "m")
        assert np.sum(ours * delta) / np.sum(delta * delta) == pytest.approx(1, abs=1e-5)
    assert kept[0] < np.mean(shares) < kept[1], shares
