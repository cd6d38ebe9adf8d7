"""Against PEFT itself, on a small Llama made on the spot: its directories are read, it loads ours, the scales agree."""

import json

import numpy as np
import pytest

from fedcore.dtypes import to_float64
from fedcore.updates import Update

torch = pytest.importorskip("torch", reason="torch is an optional dependency")
transformers = pytest.importorskip("transformers", reason="transformers is an optional dependency")
peft = pytest.importorskip("peft", reason="peft is an optional dependency")

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def llama() -> torch.nn.Module:
    """A Llama of two layers, the same each time."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, tie_word_embeddings=False,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


def adapted(**config: object) -> "peft.PeftModel":
    """The Llama with an adapter whose factors, and whatever else is trained, are random."""
    settings = {"r": 4, "lora_alpha": 16, "target_modules": "all-linear"} | config
    model = peft.get_peft_model(llama(), peft.LoraConfig(**settings))
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def logits(model: torch.nn.Module) -> np.ndarray:
    with torch.no_grad():
        return model(torch.arange(12)[None]).logits.numpy()


def scales(model: torch.nn.Module) -> dict[str, float]:
    """What PEFT computed for each adapted module."""
    layers = {name: m for name, m in model.named_modules() if isinstance(m, peft.tuners.lora.LoraLayer)}
    return {name: layer.scaling["default"] for name, layer in layers.items()}


CASES = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "patterns": {
        "rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\..*": 3, "layers.1.mlp.up_proj": 3, r".*\.[ko]_proj": 5},
        "alpha_pattern": {
            "layers.0.self_attn.k_proj": 5,
            "proj": 99,
            "^model.layers.1.mlp.down_proj": 7,
            "v_proj": 1.5,
        },
    },
    "patterns and rslora": {
        "use_rslora": True,
        "rank_pattern": {"q_proj": 6},
        "alpha_pattern": {"mlp.(up|down)_proj": 1},
    },
    "embedding and head": {"target_modules": ["embed_tokens", "q_proj"], "modules_to_save": ["lm_head", "model.norm"]},
}


@pytest.mark.parametrize("case", CASES)
def test_its_directories_are_read_with_its_scales_and_ours_it_loads(tmp_path, case):
    model = adapted(**CASES[case])
    model.save_pretrained(tmp_path / "client", save_embedding_layers=False)
    update = Update.from_peft(tmp_path / "client")
    assert update.scaling == scales(model)
    state = peft.get_peft_model_state_dict(model, save_embedding_layers=False)
    assert update.tensors.keys() == state.keys()
    for name, tensor in state.items():
        np.testing.assert_array_equal(update.tensors[name], tensor.detach().numpy())
    assert ("base_model.model.lm_head.weight" in update.dense) == (case == "embedding and head")

    update.to_peft(tmp_path / "copy")
    # the same tensors without PEFT's config: what is needed is made from names, ranks and scales
    bare = Update.from_tensors(update.tensors, scaling=update.scaling)
    bare.to_peft(tmp_path / "bare")
    saved = json.loads((tmp_path / "bare" / "adapter_config.json").read_text())["modules_to_save"]
    assert saved == (["lm_head", "model.norm"] if update.dense else None)
    for name in ("copy", "bare"):
        loaded = peft.PeftModel.from_pretrained(llama(), tmp_path / name)
        assert scales(loaded) == pytest.approx(update.scaling, rel=1e-15)
        np.testing.assert_array_equal(logits(loaded), logits(model))
    assert not np.allclose(logits(model), logits(llama()))


@pytest.mark.parametrize("case", CASES)
def test_the_update_of_a_module_is_scale_b_a(tmp_path, case):
    model = adapted(**CASES[case])
    model.save_pretrained(tmp_path / "client", save_embedding_layers=False)
    update = Update.from_peft(tmp_path / "client")
    layers = dict(model.named_modules())
    for module, pair in update.modules.items():
        a, b = to_float64(update.tensors[pair.a]), to_float64(update.tensors[pair.b])
        assert (a.shape, b.shape) == ((pair.rank, pair.d_in), (pair.d_out, pair.rank))
        expected = layers[module].get_delta_weight("default").detach().double().numpy()
        delta = pair.scale * b @ a
        np.testing.assert_allclose(delta.T if "embedding" in pair.a else delta, expected, rtol=1e-5, atol=1e-6)


def test_other_ranks_and_scales_than_the_config_said_bring_it_in_line(tmp_path):
    model = adapted(rank_pattern={"q_proj": 2})
    model.save_pretrained(tmp_path / "client")
    update = Update.from_peft(tmp_path / "client")
    tensors, scaling = dict(update.tensors), dict(update.scaling)
    module = next(name for name in scaling if "layers.1" in name and "v_proj" in name)
    tensors[f"{module}.lora_A.weight"] = np.vstack([tensors[f"{module}.lora_A.weight"]] * 2)
    tensors[f"{module}.lora_B.weight"] = np.hstack([tensors[f"{module}.lora_B.weight"]] * 2)
    scaling[module] = 0.7
    changed = Update.from_tensors(tensors, scaling=scaling, adapter_config=update.adapter_config)
    assert changed.adapter_config["target_modules"] == update.adapter_config["target_modules"]
    changed.to_peft(tmp_path / "changed")
    assert Update.from_peft(tmp_path / "changed").scaling == scaling
    loaded = peft.PeftModel.from_pretrained(llama(), tmp_path / "changed")
    assert scales(loaded) == scaling
    same = Update.from_tensors(update.tensors, scaling=update.scaling, adapter_config=update.adapter_config)
    assert same.adapter_config == update.adapter_config


def test_a_config_object_of_peft_can_be_given(tmp_path):
    model = adapted(use_rslora=True, target_modules=["v_proj", "q_proj"])
    state = peft.get_peft_model_state_dict(model, save_embedding_layers=False)
    update = Update.from_tensors(state, adapter_config=model.peft_config["default"].to_dict(), client_id="c")
    assert update.scaling == scales(model)
    assert update.adapter_config["target_modules"] == ["q_proj", "v_proj"]
    update.to_peft(tmp_path / "out")
    np.testing.assert_array_equal(logits(peft.PeftModel.from_pretrained(llama(), tmp_path / "out")), logits(model))
    assert Update.from_bytes(update.to_bytes()).adapter_config == update.adapter_config


@pytest.mark.parametrize(
    "config", [{"use_dora": True}, {"target_parameters": ["mlp.gate_proj.weight"], "target_modules": []}]
)
def test_what_is_not_b_a_is_refused_by_name(tmp_path, config):
    adapted(**config).save_pretrained(tmp_path / "client")
    said = json.loads((tmp_path / "client" / "adapter_config.json").read_text())
    assert said[next(iter(config))]
    with pytest.raises(ValueError, match=r"lora_magnitude_vector|target_parameters is not supported"):
        Update.from_peft(tmp_path / "client")
