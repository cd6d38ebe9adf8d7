"""attach, read, load: what PEFT would do in silence is checked here, and what leaves is what PEFT loads."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from transformers import GPT2Config, GPT2LMHeadModel

from fedcore.clients import AdapterSettings, TrainingSettings, attach, evaluate, load, load_base, read, train
from fedcore.clients.weights import AdaptedWeights
from fedcore.dtypes import round_from_float64
from fedcore.errors import ConfigError, LayoutError
from fedcore.updates import Update

Q = "base_model.model.model.layers.0.self_attn.q_proj"


def rebuilt(update, tensors, **changes):
    given = {"scaling": update.scaling, "base": update.base} | changes
    return Update.from_tensors(tensors, **given)


def filled(update, seed=0):
    draw = np.random.default_rng(seed)
    tensors = {name: draw.standard_normal(t.shape).astype(np.float32) for name, t in update.tensors.items()}
    return rebuilt(update, tensors, adapter_config=update.adapter_config)


def test_the_initial_adapter_changes_nothing(adapted, texts, tiny_directory):
    base, initial = adapted
    for pair in initial.modules.values():
        assert not initial.tensors[pair.b].any()
        assert initial.tensors[pair.a].any()
    assert evaluate(base, texts, []) == evaluate(load_base(tiny_directory, device="cpu"), texts, [])


def test_the_seed_decides_the_adapter_and_torch_keeps_its_state(base):
    before = torch.random.get_rng_state()
    first, again = (attach(base, AdapterSettings(rank=4), seed=3).digest() for _ in range(2))
    other = attach(base, AdapterSettings(rank=4), seed=4).digest()
    assert first == again != other
    assert torch.equal(torch.random.get_rng_state(), before)


def test_attaching_again_replaces_the_adapter(adapted):
    base, _ = adapted
    again = attach(base, AdapterSettings(rank=2), seed=0)
    assert {pair.rank for pair in again.modules.values()} == {2}
    assert sum(isinstance(module, PeftModel) for module in base.model.modules()) == 1
    base.check_unchanged()


def test_weights_of_a_layer_that_stores_them_transposed_are_turned():
    """GPT-2's Conv1D holds (d_in, d_out)."""
    model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_positions=8, n_embd=16, n_layer=1, n_head=2))
    held = model.transformer.h[0].attn.c_attn.weight.detach().clone()
    config = LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True, task_type="CAUSAL_LM")
    weights = AdaptedWeights(SimpleNamespace(model=get_peft_model(model, config)))
    (name,) = weights
    assert weights[name].shape == (48, 16)
    assert np.array_equal(weights[name], held.T.numpy())


def test_names_are_those_of_peft_files_in_canonical_order(adapted):
    base, initial = adapted
    peft_names = get_peft_model_state_dict(base.model, save_embedding_layers=False)
    assert list(initial.tensors) == sorted(peft_names)
    assert len(initial.modules) == 14
    assert initial.base == base.digest


def test_the_configuration_is_canonical_and_tells_no_path(adapted, tiny_directory):
    _, initial = adapted
    targets = initial.adapter_config["target_modules"]
    assert targets == sorted(targets)
    assert len(targets) == 14
    assert str(tiny_directory.parent) not in json.dumps(initial.adapter_config)
    assert initial.adapter_config["base_model_name_or_path"] == "tiny"


@pytest.mark.parametrize(("rslora", "scale"), [(False, 2.0), (True, 4.0)])
def test_scales(base, rslora, scale):
    initial = attach(base, AdapterSettings(rank=4, alpha=8.0, rslora=rslora), seed=0)
    assert set(initial.scaling.values()) == {scale}


def test_what_is_loaded_is_read_back_bit_for_bit(adapted):
    base, initial = adapted
    sent = filled(initial)
    load(base, sent)
    got = read(base, client_id="b", num_examples=7)
    assert (got.client_id, got.num_examples) == ("b", 7)
    assert got.digest() == sent.digest()
    assert Update.from_bytes(got.to_bytes()).digest() == sent.digest()


def test_an_update_is_a_copy(adapted, texts):
    base, initial = adapted
    digest = initial.digest()
    train(base, texts, TrainingSettings(steps=2, batch_size=2, sequence_length=16), seed=0)
    assert initial.digest() == digest != read(base, client_id="", num_examples=1).digest()


def test_narrow_tensors_are_loaded_exactly(adapted):
    base, initial = adapted
    wide = filled(initial)
    bf16 = rebuilt(initial, {n: round_from_float64(t.astype(np.float64), "bfloat16") for n, t in wide.tensors.items()})
    load(base, bf16)
    got = read(base, client_id="", num_examples=1).tensors[f"{Q}.lora_A.weight"]
    expected = torch.from_numpy(wide.tensors[f"{Q}.lora_A.weight"].copy()).bfloat16().float().numpy()
    assert np.array_equal(got, expected)


def without(tensors, module):
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(f"{module}.")}


def test_a_missing_module_is_named_and_nothing_is_written(adapted):
    base, initial = adapted
    scaling = {module: scale for module, scale in initial.scaling.items() if module != Q}
    with pytest.raises(LayoutError, match=r"q_proj\.lora_A\.weight: the update does not have it"):
        load(base, rebuilt(initial, without(filled(initial).tensors, Q), scaling=scaling))
    assert read(base, client_id="", num_examples=1).digest() == initial.digest()


def test_an_unknown_key_is_named(adapted):
    base, initial = adapted
    extra = dict(filled(initial).tensors) | {"base_model.model.lm_head.weight": np.zeros((2, 2), np.float32)}
    with pytest.raises(
        LayoutError, match=r"tensor base_model\.model\.lm_head\.weight: the attached adapter has no such"
    ):
        load(base, rebuilt(initial, extra))


def test_a_misshapen_tensor_is_named(adapted):
    base, initial = adapted
    tensors = dict(initial.tensors)
    tensors[f"{Q}.lora_A.weight"] = np.zeros((4, 65), np.float32)
    with pytest.raises(LayoutError, match=r"q_proj\.lora_A\.weight: got shape \(4, 65\), expected \(4, 64\)"):
        load(base, rebuilt(initial, tensors))


def test_another_scale_is_named(adapted):
    base, initial = adapted
    with pytest.raises(LayoutError, match=r"q_proj: the update's scale is 3\.0, expected 2\.0"):
        load(base, rebuilt(initial, initial.tensors, scaling=initial.scaling | {Q: 3.0}))


@pytest.mark.parametrize("other", ["0" * 64, "organisation/other-model"])
def test_an_update_of_another_base_is_refused(adapted, other):
    base, initial = adapted
    with pytest.raises(LayoutError, match="belongs to base"):
        load(base, rebuilt(initial, initial.tensors, base=other))
    load(base, rebuilt(initial, initial.tensors, base="/somewhere/else/tiny"))
    load(base, rebuilt(initial, initial.tensors, base=None))


def test_a_base_without_an_adapter_says_so(base):
    with pytest.raises(LayoutError, match=r"has no adapter; call fedcore\.clients\.attach first"):
        read(base, client_id="", num_examples=1)


def test_settings_that_fit_no_layer_are_refused(base):
    with pytest.raises(ConfigError, match="adapter: "):
        attach(base, AdapterSettings(target_modules=("no_such_layer",)), seed=0)


def test_a_written_adapter_loads_with_peft_on_a_fresh_base_and_gives_the_same_logits(
    adapted, texts, tiny_directory, tmp_path
):
    base, _ = adapted
    train(base, texts, TrainingSettings(steps=4, batch_size=4, sequence_length=32), seed=0)
    read(base, client_id="a", num_examples=3).to_peft(tmp_path / "adapter")
    fresh = load_base(tiny_directory, device="cpu")
    loaded = PeftModel.from_pretrained(fresh.model, tmp_path / "adapter").eval()
    ids = torch.arange(1, 40).view(3, 13)
    with torch.no_grad():
        bare = load_base(tiny_directory, device="cpu").model(input_ids=ids).logits
        ours, theirs = base.model(input_ids=ids).logits, loaded(input_ids=ids).logits
    assert torch.equal(ours, theirs)
    assert not torch.equal(ours, bare)
