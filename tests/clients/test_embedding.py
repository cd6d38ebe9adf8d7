"""Adapters on an embedding: token numbers go in, its weights lie turned, and PEFT draws the other factor."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers.models.gemma3.modeling_gemma3 import Gemma3TextScaledWordEmbedding as ScaledEmbedding

from fedcore import aggregate, lora, rules
from fedcore.clients import AdapterSettings, TrainingSettings, attach, evaluate, load, load_base, read, train
from fedcore.clients.adapter import only
from fedcore.clients.beside import added, beside
from fedcore.clients.core import train_core
from fedcore.clients.weights import AdaptedWeights
from fedcore.errors import LayoutError, TrainingError
from fedcore.updates import Update
from tests.oracles import delta as dense

SETTINGS = AdapterSettings(rank=4, alpha=8.0, target_modules=("embed_tokens", "q_proj"))
STEPS = TrainingSettings(steps=4, batch_size=4, sequence_length=32)
EMBEDDING = "base_model.model.model.embed_tokens"


@pytest.fixture
def embedded(base):
    """The tiny base with an initial adapter on its embedding and its queries: (base, initial update)."""
    return base, attach(base, SETTINGS, seed=0)


def filled(initial, seed, size=0.05):
    draw = np.random.default_rng(seed)
    tensors = {n: np.float32(size * draw.standard_normal(t.shape)) for n, t in initial.tensors.items()}
    return Update.from_tensors(
        tensors, scaling=initial.scaling, client_id=f"c{seed}", base=initial.base, adapter_config=initial.adapter_config
    )


def as_peft_draws(initial):
    """The adapter as PEFT itself begins it: of an embedding A is 0 and B is drawn."""
    pair, tensors = initial.modules[EMBEDDING], dict(initial.tensors)
    tensors[pair.a] = np.zeros_like(tensors[pair.a])
    tensors[pair.b] = np.random.default_rng(0).standard_normal(tensors[pair.b].shape).astype(np.float32)
    return Update.from_tensors(tensors, scaling=initial.scaling, base=initial.base)


def logits(base, ids=None):
    with torch.no_grad():
        return base.model(input_ids=torch.arange(3, 19)[None] if ids is None else ids).logits.double().numpy()


def test_the_initial_adapter_is_b_zero_and_a_drawn_under_the_seed(embedded, texts, tiny_directory):
    base, initial = embedded
    for pair in initial.modules.values():
        assert not initial.tensors[pair.b].any()
        assert (initial.tensors[pair.a] != 0).mean() > 0.99
    assert evaluate(base, texts, []) == evaluate(load_base(tiny_directory, device="cpu"), texts, [])
    again, other = attach(base, SETTINGS, seed=0), attach(base, SETTINGS, seed=1)
    name = initial.modules[EMBEDDING].a
    assert again.digest() == initial.digest()
    assert not np.array_equal(other.tensors[name], initial.tensors[name])


def test_it_trains_evaluates_and_aggregates(embedded, texts):
    base, initial = embedded
    before, updates = evaluate(base, texts, []).loss, []
    for i in range(2):
        load(base, initial)
        train(base, texts[i::2], TrainingSettings(steps=20, batch_size=4, sequence_length=32), seed=i)
        updates.append(read(base, client_id=f"c{i}", num_examples=1))
        same = [name for name, tensor in updates[-1].tensors.items() if np.array_equal(tensor, initial.tensors[name])]
        assert same == []
    load(base, aggregate(updates, rules.Mean()).update)
    assert evaluate(base, texts, []).loss < before - 0.05
    base.check_unchanged()


def test_the_embedding_alone_lowers_the_loss_with_a_frozen(base, texts):
    attach(base, AdapterSettings(rank=4, alpha=8.0, target_modules=("embed_tokens",)), seed=0)
    before = evaluate(base, texts, []).loss
    with only(base, ("b",)):
        train(base, texts, TrainingSettings(steps=30, batch_size=4, sequence_length=32), seed=0)
    assert evaluate(base, texts, []).loss < before - 0.05


STARTS = {
    "flora": lambda update, initial: lora.FLoRA().aggregate([update], None, initial).update,
    "fedsa_lora": lambda update, initial: lora.FedSALoRA().aggregate([update], None, initial).update,
    "median of 0": lambda update, initial: aggregate([initial], rules.Median(), reference=initial).update,
    "peft": lambda update, initial: as_peft_draws(initial),
}


@pytest.mark.parametrize("name", STARTS)
def test_every_start_whose_change_is_zero_trains(embedded, texts, name):
    base, initial = embedded
    start = STARTS[name](filled(initial, 1), initial)
    pair = start.modules[EMBEDDING]
    assert [start.tensors[factor].any() for factor in (pair.a, pair.b)] == [name != "peft", name == "peft"]
    if name == "flora":
        # drawn as `attach` draws it: the others are of inputs of 64 numbers
        widest = {module: np.abs(start.tensors[pair.a]).max() for module, pair in start.modules.items()}
        assert all(0.9 < size * (1 if module == EMBEDDING else 8) < 1 for module, size in widest.items())
        assert 0.9 < np.abs(initial.tensors[pair.a]).max() < 1
    load(base, start)
    train(base, texts, STEPS, seed=0)


@pytest.mark.parametrize("cycle", [("b", "a"), ("b", "b")])
def test_one_factor_at_a_time_trains_as_in_rolora_and_ffa_lora(embedded, texts, cycle):
    base, before = embedded
    for factor in cycle:
        with only(base, (factor,)):
            train(base, texts, STEPS, seed=0)
        after = read(base, client_id="c", num_examples=1)
        moved = {name for name, tensor in after.tensors.items() if not np.array_equal(tensor, before.tensors[name])}
        assert moved == {getattr(pair, factor) for pair in before.modules.values()}
        before = after


def test_a_side_adapter_adds_what_peft_would(embedded):
    base, initial = embedded
    one = filled(initial, 1)
    load(base, one)
    # as many tokens as the vocabulary has: numbers of tokens could be multiplied there as if they were values
    vocabulary = one.modules[EMBEDDING].d_in
    for ids in (torch.arange(3, 19)[None], torch.randperm(vocabulary)[None]):
        load(base, one)
        expected = logits(base, ids)
        load(base, initial)
        assert np.abs(logits(base, ids) - expected).max() > 1e-2
        with beside(base, lora.FLoRA().aggregate([one]).side):
            np.testing.assert_allclose(logits(base, ids), expected, atol=2e-5 * np.abs(expected).max())


def test_clients_train_and_evaluate_beside_a_side_adapter(embedded, texts):
    base, initial = embedded
    result = lora.FedExLoRA().aggregate([filled(initial, 1), filled(initial, 2)], None, initial)
    load(base, result.update)
    alone = evaluate(base, texts, []).loss
    with beside(base, result.side):
        assert evaluate(base, texts, []).loss != alone
        train(base, texts, STEPS, seed=0)
    base.check_unchanged()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scaled", [False, True])
def test_what_is_added_has_the_dtype_and_the_scale_of_the_layer(dtype, scaled):
    """Gemma multiplies its embeddings by √d: then PEFT multiplies what its adapter adds, and so must we."""
    torch.manual_seed(0)
    layer = ScaledEmbedding(30, 12, 0, 8.0) if scaled else torch.nn.Embedding(30, 12)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["0"])
    model, ids = get_peft_model(torch.nn.Sequential(layer.to(dtype)), config), torch.randint(30, (2, 7))
    wrapped = model.base_model.model[0]
    a, b = (factor["default"] for factor in (wrapped.lora_embedding_A, wrapped.lora_embedding_B))
    torch.nn.init.normal_(a)
    torch.nn.init.normal_(b)
    expected, core, name = model(ids), torch.linalg.inv(torch.randn(4, 4)), "base_model.model.0"
    # the same Δ with a core between its factors, beside an adapter that adds nothing and on the layer itself
    factors = (torch.linalg.inv(core) @ a.detach(), 2.0 * b.detach(), core)
    torch.nn.init.zeros_(b)
    for where, base in ((name, model), ("0", torch.nn.Sequential(layer))):
        with added(SimpleNamespace(model=base), {where: factors}, "core"):
            found = base(ids)
        assert found.dtype == expected.dtype == dtype
        # in bf16 what is added is rounded, and so is the sum
        step = (2**-8 if dtype == torch.bfloat16 else 1e-5) * float(expected.detach().abs().max())
        torch.testing.assert_close(found, expected, rtol=0, atol=2 * step)
    wrong = {name: (torch.ones(4, 31), factors[1], core)}
    message = rf"core: module {name} is 12 × 31, the base has 12 × 30"
    with pytest.raises(LayoutError, match=message), added(SimpleNamespace(model=model), wrong, "core"):
        pass


def test_a_core_trains_on_an_embedding(embedded, texts):
    base, initial = embedded
    method = lora.FedSB()
    fixed = method.fixed(filled(initial, 4))
    zero = {pair.b: np.zeros((pair.d_out, pair.rank), np.float32) for pair in fixed.modules.values()}
    start = Update.from_tensors(dict(fixed.tensors) | zero, scaling=fixed.scaling)
    update = train_core(base, texts, STEPS, 0, start, fixed, client_id="c0")
    assert dense.dense(update, EMBEDDING).any()
    method.aggregate([update], reference=fixed)


def test_base_weights_are_turned_and_frlora_starts_at_the_base(embedded, texts):
    base, initial = embedded
    weights = AdaptedWeights(base)
    layer = dict(base.model.named_modules())[EMBEDDING].get_base_layer()
    np.testing.assert_array_equal(weights[EMBEDDING], layer.weight.numpy().T)
    expected = logits(base)
    start, side = lora.FRLoRA().restart(initial, weights)
    load(base, start)
    assert np.abs(logits(base) - expected).max() > 1e-2
    with beside(base, side):
        np.testing.assert_allclose(logits(base), expected, atol=1e-4 * np.abs(expected).max())


def test_a_frozen_partner_of_zeros_is_what_a_missing_gradient_is_blamed_on(embedded, texts):
    base, initial = embedded
    load(base, as_peft_draws(initial))
    with only(base, ("b",)), pytest.raises(TrainingError, match=r"embed_tokens\.lora_embedding_B .* step 0.*_A is all"):
        train(base, texts, STEPS, seed=0, client_id="c1")
