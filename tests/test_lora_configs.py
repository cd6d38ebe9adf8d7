"""What PEFT reads of a result whose modules no client has all of: the clients' settings, laid out over its modules."""

from __future__ import annotations

import numpy as np
import pytest

from fedcore import Update, aggregate
from fedcore.errors import LayoutError
from fedcore.lora import FlexLoRA
from fedcore.rules import Krum, Mean
from tests.delta_cohorts import SHAPES, adapter
from tests.oracles import delta as dense
from tests.test_lora_modules import without

CONFIG = {
    "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 3, "lora_alpha": 6, "lora_dropout": 0.25, "use_rslora": False,
    "fan_in_fan_out": True, "alora_invocation_tokens": [7], "layer_replication": [[0, 1], [0, 1]],
    "layers_to_transform": [0], "layers_pattern": "layers", "exclude_modules": ["tiny"],
}  # fmt: skip


def configured(update: Update, **settings: object) -> Update:
    config = CONFIG | {"target_modules": sorted(update.modules)} | settings
    return Update.from_tensors(
        update.tensors, client_id=update.client_id, scaling=update.scaling, adapter_config=config
    )


def two(**settings: object) -> list[Update]:
    rng = np.random.default_rng(0)
    lacking = {"c0": "up", "c1": "down"}
    return [configured(without(adapter(rng, who), module), **settings) for who, module in lacking.items()]


@pytest.mark.parametrize("way", [lambda c: aggregate(c, Mean()).update, lambda c: FlexLoRA().aggregate(c).update])
def test_settings_stay_and_modules_are_laid_out_anew(way):
    found = way(two())
    assert found.modules.keys() == SHAPES.keys()
    laid_out = ("target_modules", "layers_to_transform", "layers_pattern", "exclude_modules")
    for key in CONFIG.keys() - {*laid_out, "r", "lora_alpha"}:
        assert found.adapter_config[key] == CONFIG[key]
    assert [found.adapter_config[key] for key in laid_out] == [sorted(SHAPES), None, None, None]


@pytest.mark.parametrize("space", ["delta", "parameters"])
def test_the_config_is_of_a_client_that_counts(space):
    """The first one by name, which does not count, says something else."""
    rng = np.random.default_rng(1)
    updates = [configured(adapter(rng, f"c{i}", scale=2.0), task_type="CAUSAL_LM") for i in range(6)]
    far = adapter(rng, "c0", scale=2.0)
    far = far.with_tensors({name: 1e3 * np.asarray(tensor) for name, tensor in far.tensors.items()})
    updates[0] = configured(far, task_type="SEQ_CLS", lora_dropout=0.5)
    found = aggregate(updates, Krum(1), space=space)
    assert found.coefficients["c0"] == 0
    config = found.update.adapter_config
    assert (config["task_type"], config["lora_dropout"]) == ("CAUSAL_LM", CONFIG["lora_dropout"])


def test_lacking_a_module_of_an_adapter_that_was_taken_out_of_the_base_is_refused():
    """PiSSA starts at the base's leading triplets, so where there is no module Δ is no 0; the reference has it."""
    with pytest.raises(LayoutError, match=r"client 'c0': lacks module 'up', .*'pissa'.* reference"):
        aggregate(two(init_lora_weights="pissa"), Mean())
    reference = configured(adapter(np.random.default_rng(9), "r"), init_lora_weights="pissa")
    found = aggregate(two(init_lora_weights="pissa"), Mean(), reference=reference).update
    assert found.adapter_config["init_lora_weights"] == "pissa"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("begun", [True, "pissa"])
def test_peft_loads_it_and_computes_the_mean_of_what_clients_add(begun, tmp_path, monkeypatch):
    peft = pytest.importorskip("peft")
    torch = pytest.importorskip("torch")
    from tests.test_updates_peft import llama, logits

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    llama().save_pretrained(tmp_path / "base")
    shared = {"r": 2, "lora_alpha": 8, "task_type": "CAUSAL_LM", "init_lora_weights": begun}

    def trained(name: str, targets: list[str]) -> Update:
        from transformers import AutoModelForCausalLM

        base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
        model = peft.get_peft_model(base, peft.LoraConfig(**shared, target_modules=targets))
        for key, parameter in model.named_parameters():
            if "lora_" in key:
                torch.nn.init.normal_(parameter, std=0.3)
        model.save_pretrained(tmp_path / name)
        return Update.from_peft(tmp_path / name)

    clients = [trained("c0", ["q_proj", "v_proj"]), trained("c1", ["o_proj", "v_proj"])]
    start = trained("start", ["q_proj", "v_proj", "o_proj"]) if begun == "pissa" else None
    found = aggregate(clients, Mean(), reference=start).update
    found.to_peft(tmp_path / "out")
    loaded = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "out").eval()

    # PEFT takes the same part out of the base for the start, which holds every module
    whole = ["q_proj", "v_proj", "o_proj"]
    expected = peft.get_peft_model(llama(), peft.LoraConfig(**shared, target_modules=whole)).unload()
    for name, weight in expected.named_parameters():
        module = f"base_model.model.{name.removesuffix('.weight')}"
        if module in found.modules:
            weight.data += torch.from_numpy(dense.dense(found, module)).float()
            held = [client if module in client.modules else start for client in clients]
            mean = sum(dense.dense(client, module) for client in held if client is not None) / 2
            best = dense.truncated(mean, 2)
            np.testing.assert_allclose(dense.dense(found, module), best, atol=1e-5 * np.linalg.norm(mean))
    np.testing.assert_allclose(logits(loaded), logits(expected.eval()), atol=2e-4)
