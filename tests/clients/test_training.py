"""train: it learns, repeats under its seed, and says so where a gradient is lost."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from adamw_steps import steps_of_adamw
from torch.optim.optimizer import register_optimizer_step_pre_hook

from fedcore.clients import AdapterSettings, TrainingSettings, attach, evaluate, load, read, train
from fedcore.clients.adapter import only
from fedcore.clients.packing import boundary, pack
from fedcore.errors import ShapeError, TrainingError
from fedcore.updates import Update

STEPS = TrainingSettings(steps=4, batch_size=4, sequence_length=32)


def trained(base, initial, texts, settings=STEPS, seed=0):
    load(base, initial)
    result = train(base, texts, settings, seed)
    return result, read(base, client_id="", num_examples=1)


def test_training_lowers_the_loss_on_its_own_texts(adapted, texts):
    base, _ = adapted
    before = evaluate(base, texts, []).loss
    result = train(base, texts, replace(STEPS, steps=30), seed=0)
    assert evaluate(base, texts, []).loss < before - 0.1
    assert result.tokens == 30 * 4 * 32
    assert result.parameters == 28


def test_every_parameter_of_the_adapter_moves(adapted, texts):
    base, initial = adapted
    _, update = trained(base, initial, texts)
    still = [name for name in update.tensors if np.array_equal(update.tensors[name], initial.tensors[name])]
    assert still == []


def test_the_same_seed_gives_the_same_bits(base, texts):
    initial = attach(base, AdapterSettings(rank=4, dropout=0.1), seed=0)
    torch.manual_seed(1)
    result, update = trained(base, initial, texts, seed=5)
    evaluate(base, texts, [])
    torch.manual_seed(2)
    before = torch.random.get_rng_state()
    again, repeated = trained(base, initial, texts, seed=5)
    assert result == again
    assert update.digest() == repeated.digest()
    assert torch.equal(torch.random.get_rng_state(), before)
    assert trained(base, initial, texts, seed=6)[1].digest() != update.digest()


def test_training_follows_an_evaluation_and_leaves_eval_mode(adapted, texts):
    base, initial = adapted
    evaluate(base, texts, [])
    _, update = trained(base, initial, texts)
    assert not base.model.training
    assert all(parameter.grad is None for parameter in base.model.parameters())
    assert update.digest() != initial.digest()
    base.check_unchanged()


def test_the_learning_rate_falls_along_a_cosine_from_the_first_step_and_weights_do_not_decay(adapted, texts):
    base, _ = adapted
    with steps_of_adamw() as seen:
        train(base, texts, replace(STEPS, learning_rate=0.01), seed=0)
    rates = [step["lr"] for step in seen]
    assert rates == pytest.approx([0.01 * (1 + math.cos(math.pi * k / 4)) / 2 for k in range(4)], rel=1e-12)
    assert rates[0] == 0.01
    assert {step["weight_decay"] for step in seen} == {0.0}


def distance(update, initial):
    return np.sqrt(sum(np.sum(np.square(t - initial.tensors[n], dtype=float)) for n, t in update.tensors.items()))


def test_the_proximal_term_adds_mu_times_the_way_from_the_global_adapter(adapted, texts):
    """Gradients of two steps, taken as the optimiser gets them, with and without the term on the same weights."""
    base, initial = adapted
    start = {n: p.detach().clone() for n, p in base.model.named_parameters() if p.requires_grad}
    seen = {}

    def watch(optimizer, arguments, keywords):
        named = {n: p for n, p in base.model.named_parameters() if p.requires_grad}
        seen[run].append({n: (p.detach().clone(), p.grad.clone()) for n, p in named.items()})

    hook = register_optimizer_step_pre_hook(watch)
    try:
        # one step is the same in both: at the global adapter the term is zero
        for run, mu in (("plain", 0.0), ("pulled", 3.0)):
            seen[run] = []
            trained(base, initial, texts, replace(STEPS, steps=2, proximal_mu=mu))
    finally:
        hook.remove()
    for (w, plain), (same, pulled) in zip(seen["plain"][0].values(), seen["pulled"][0].values(), strict=True):
        assert torch.equal(w, same)
        assert torch.equal(plain, pulled)
    for name, (w, plain) in seen["plain"][1].items():
        same, pulled = seen["pulled"][1][name]
        assert torch.equal(w, same)
        # A has no gradient in the first step, where B is 0
        assert (".lora_A." in name) == torch.equal(w, start[name])
        assert torch.allclose(pulled, plain + 3.0 * (w - start[name]), rtol=1e-5, atol=1e-8)


def test_a_strong_proximal_term_keeps_the_client_at_the_global_adapter(adapted, texts):
    base, initial = adapted
    settings = replace(STEPS, steps=40)
    moved = [
        distance(trained(base, initial, texts, replace(settings, proximal_mu=mu))[1], initial) for mu in (0.0, 1.0, 1e4)
    ]
    assert moved[0] > moved[1] > moved[2]
    assert moved[2] < 0.1 * moved[0]


def test_without_the_term_nothing_changes(adapted, texts):
    base, initial = adapted
    assert STEPS.proximal_mu == 0.0
    assert (
        trained(base, initial, texts)[1].digest()
        == trained(base, initial, texts, replace(STEPS, proximal_mu=0))[1].digest()
    )


def test_a_client_with_less_than_a_block_trains_on_repeats(adapted):
    base, _ = adapted
    assert train(base, ["One short line."], STEPS, seed=0).tokens == 4 * 4 * 32


@pytest.mark.parametrize("nothing", [[], ["", ""]])
def test_a_client_without_text_is_named(adapted, nothing):
    base, _ = adapted
    with pytest.raises(ShapeError, match=f"client c7: got {len(nothing)} texts with nothing in them"):
        train(base, nothing, STEPS, seed=0, client_id="c7")


def test_a_loss_that_is_not_finite_names_client_and_step(adapted, texts):
    base, initial = adapted
    broken = {name: np.full(t.shape, np.nan, np.float32) for name, t in initial.tensors.items()}
    load(base, Update.from_tensors(broken, scaling=initial.scaling))
    with pytest.raises(TrainingError, match="client c1: the loss of step 0 is nan"):
        train(base, texts, STEPS, seed=0, client_id="c1")
    assert not base.model.training


def test_a_layer_that_passes_no_gradient_is_found(adapted, texts):
    base, _ = adapted
    layer = base.model.base_model.model.model.layers[0].self_attn.o_proj
    hook = layer.register_forward_hook(lambda *args: args[2].detach())
    with pytest.raises(
        TrainingError, match=r"client c2: parameter .*layers\.0\.self_attn\..* got no gradient in step 0"
    ):
        train(base, texts, STEPS, seed=0, client_id="c2")
    hook.remove()
    train(base, texts, STEPS, seed=0)


def test_a_gradient_that_arrives_as_zeros_is_found(adapted, texts):
    # with B = 0 a frozen layer without gradient hands exact zeros down through its adapter
    base, _ = adapted
    frozen = base.model.base_model.model.model.layers[0].mlp.down_proj.base_layer
    frozen.register_forward_hook(lambda *args: args[2].detach())
    with pytest.raises(
        TrainingError,
        match=r"layers\.0\.mlp\.(gate|up)_proj\.lora_B\.weight got an all-zero gradient .*adapter\.target_modules",
    ):
        train(base, texts, STEPS, seed=0)


@pytest.mark.parametrize(("trains", "missing", "zero"), [(("a",), "A", "B"), (("a", "b"), "[AB]", "[AB]")])
def test_a_change_that_can_never_move_is_blamed_on_the_factor_of_zeros(adapted, texts, trains, missing, zero):
    base, initial = adapted
    if len(trains) == 2:
        zeros = {name: np.zeros_like(tensor) for name, tensor in initial.tensors.items()}
        load(base, Update.from_tensors(zeros, scaling=initial.scaling))
    what = rf"parameter \S+\.lora_{missing}\.weight got an all-zero gradient in step {len(trains) - 1}"
    with (
        only(base, trains),
        pytest.raises(TrainingError, match=rf"client c3: {what}, .*\.lora_{zero}\.weight is all zero"),
    ):
        train(base, texts, STEPS, seed=0, client_id="c3")


def test_a_starts_at_zero_where_b_does_not(adapted, texts):
    """The other way round is as good: the gradient that waits is that of the factor whose partner is 0."""
    base, initial = adapted
    tensors = {
        name: np.zeros_like(t) if "lora_A" in name else t + np.float32(0.1) for name, t in initial.tensors.items()
    }
    _, update = trained(base, Update.from_tensors(tensors, scaling=initial.scaling), texts)
    assert not any(np.array_equal(update.tensors[name], tensors[name]) for name in tensors)


def test_blocks_hold_each_text_once_before_any_comes_again(base, texts):
    tokenizer, end = base.tokenizer, boundary(base.tokenizer)
    size = 1 + sum(len(ids) + 1 for ids in tokenizer(texts)["input_ids"])
    blocks = pack(tokenizer, texts, size, 1, torch.Generator().manual_seed(0)).flatten()
    assert int((blocks == end).sum()) == len(texts) + 1
    ids = sorted(i for ids in tokenizer(texts)["input_ids"] for i in ids)
    assert sorted(i for i in blocks.tolist() if i != end) == ids


def test_blocks_keep_the_order_within_a_text(base):
    ids = base.tokenizer("Return every line.")["input_ids"]
    end = boundary(base.tokenizer)
    blocks = pack(base.tokenizer, ["Return every line."], 1, 2 * len(ids) + 3, torch.Generator().manual_seed(0))
    assert blocks.tolist() == [[end, *ids, end, *ids, end]]
