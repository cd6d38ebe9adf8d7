"""Adapters taken out of their base (PiSSA and its like): PEFT takes a part of the same rank and scale out again."""

from __future__ import annotations

import dataclasses
import inspect
import re

import numpy as np
import pytest

from fedcore import Accumulator, Update, aggregate
from fedcore.errors import LayoutError, RuleError
from fedcore.lora import FedSALoRA, FedSB, FFALoRA, FlexLoRA, FLoRA, FRLoRA, HetLoRA
from fedcore.rules import CenteredClipping, FLTrust, Krum, Mean, Median, NormClipping
from fedcore.updates.taken import FROM_BASE, FROM_GRADIENTS
from tests.delta_cohorts import SHAPES, adapter
from tests.oracles import delta as dense

#: how PEFT's layers are given another base weight
CHANGED = r"(get_base_layer\(\)|base_layer)\.weight(\.data)? = "


def taken(seed: int, rank: int = 3, scale: float = 2.0, begun: object = "pissa") -> Update:
    update = adapter(np.random.default_rng(seed), f"c{seed}", rank, scale)
    config = {"r": rank, "lora_alpha": scale * rank, "target_modules": sorted(SHAPES), "init_lora_weights": begun}
    return Update.from_tensors(
        update.tensors, client_id=update.client_id, scaling=update.scaling, adapter_config=config
    )


def like(update: Update) -> list[Update]:
    return [taken(seed, begun=update.adapter_config["init_lora_weights"]) for seed in (7, 8, 9)]


WAYS = {
    "mean": lambda updates: aggregate(updates, Mean()),
    "krum": lambda updates: aggregate([*updates, *like(updates[0])], Krum(1)),
    "median": lambda updates: aggregate(updates, Median()),
    "flexlora": FlexLoRA().aggregate,
    "flora": FLoRA().aggregate,
    "hetlora": HetLoRA().aggregate,
}


@pytest.mark.parametrize("begun", FROM_BASE)
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_ranks_and_scales_that_differ_are_refused(way, begun):
    for other, words in ((taken(1, 2, begun=begun), "rank 2, expected 3"), (taken(1, 3, 4.0, begun), "scale 4, expec")):
        with pytest.raises(LayoutError, match=rf"^client 'c1': module 'down' has {words}.*{begun!r}.*like client 'c0'"):
            way([taken(0, begun=begun), other])
        plain = [dataclasses.replace(u, adapter_config={}) for u in (taken(0), other)]
        aggregate(plain, Mean())


@pytest.mark.parametrize("given", ["reference", "server", "center"])
def test_so_are_those_of_a_reference(given):
    rule = {"reference": NormClipping(1.0), "server": FLTrust(), "center": CenteredClipping(1.0)}[given]
    options = {"reference": taken(5)} | {given: taken(6, 2)}
    with pytest.raises(LayoutError, match=rf"^{given}: module 'down' has rank 2, expected 3 .*like client 'c0'"):
        aggregate([taken(0), taken(1)], rule, **options)
    aggregate([taken(0), taken(1)], rule, **(options | {given: taken(6)}))


def test_of_a_start_that_no_rule_looks_at_too():
    with pytest.raises(LayoutError, match=r"^reference: module 'down' has rank 2, expected 3"):
        aggregate([taken(0), taken(1)], Mean(), reference=taken(6, 2))
    with pytest.raises(LayoutError, match=r"^the reference: module 'down' has rank 2, expected 3"):
        FlexLoRA().aggregate([taken(0), taken(1)], reference=taken(6, 2))


@pytest.mark.parametrize("rank", [2, 5, "full"])
def test_a_result_of_another_rank_is_refused(rank):
    updates = [taken(0), taken(1)]
    with pytest.raises(RuleError, match=rf"^rank: got {rank!r} for adapters begun by 'pissa'.* rank=None$"):
        aggregate(updates, Mean(), rank=rank)
    assert aggregate(updates, Mean(), rank=3).update.digest() == aggregate(updates, Mean()).update.digest()
    with pytest.raises(RuleError, match=r"^dense: got True for adapters begun by 'pissa'"):
        aggregate(updates, Median(), dense=True)


def test_a_rank_that_only_some_modules_have_is_refused():
    """As under PEFT's rank_pattern: a result of rank 4 would put modules of rank 8 on another rest."""
    wide, narrow = taken(0, 8), taken(0, 4)
    updates = []
    for client in ("c0", "c1"):
        tensors = {name: (wide if name.startswith("up") else narrow).tensors[name] for name in wide.tensors}
        config = wide.adapter_config | {"rank_pattern": {"down": 4, "tiny": 4}}
        updates.append(Update.from_tensors(tensors, client_id=client, scaling=wide.scaling, adapter_config=config))
    for rank in (4, 8):
        with pytest.raises(RuleError, match=rf"^rank: got {rank} for adapters begun by 'pissa'.* rank=None$"):
            aggregate(updates, Mean(), rank=rank)
    aggregate(updates, Mean())


def test_a_method_that_lowers_the_rank_is_refused():
    updates = [taken(0), taken(1)]
    with pytest.raises(LayoutError, match=r"^FlexLoRA\(rank=2.*module 'down'.* rank 2, expected 3 .*'pissa'"):
        FlexLoRA(rank=2).aggregate(updates)
    assert FlexLoRA(rank=3).aggregate(updates).update.modules["down"].rank == 3
    assert FLoRA().aggregate(updates).update.adapter_config["init_lora_weights"] == "pissa"


def test_every_initialisation_of_peft_that_changes_the_base_is_known():
    """PEFT's own source: each `<name>_init` of a LoRA layer that gives the base another weight."""
    layer = pytest.importorskip("peft.tuners.lora.layer").LoraLayer
    inits = {name.removesuffix("_init"): getattr(layer, name) for name in vars(layer) if name.endswith("_init")}
    changes = [name for name, init in inits.items() if re.search(CHANGED, inspect.getsource(init))]
    assert sorted(changes) == sorted((*FROM_BASE, FROM_GRADIENTS))


def test_an_adapter_of_zeros_alone_is_refused():
    """B = 0 is the base without what was taken out of it; a side adapter can hold it, as FLoRA's does."""
    with pytest.raises(LayoutError, match=r"^FedSALoRA\(\): module 'down' .*B = 0.*'pissa'"):
        FedSALoRA().aggregate([taken(0), taken(1)])


@pytest.mark.parametrize("rule", [NormClipping(1.0), CenteredClipping(1.0), NormClipping(1.0).then(Median())])
@pytest.mark.parametrize("space", ["delta", "parameters"])
def test_a_change_from_zero_is_refused(rule, space):
    with pytest.raises(LayoutError, match=r"^reference: missing.*'pissa'.*broadcast"):
        aggregate([taken(0), taken(1)], rule, space)
    aggregate([taken(0), taken(1)], rule, space, taken(5))


def test_a_server_stands_for_no_reference():
    """FLTrust looks at both: with the server's alone it would compare changes from zero."""
    with pytest.raises(LayoutError, match=r"^reference: missing.*'pissa'"):
        aggregate([taken(0), taken(1)], FLTrust(), server=taken(6))


def test_factors_made_for_a_plain_start_are_not_begun_by_pissa():
    weights = {module: np.ones(shape) for module, shape in SHAPES.items()}
    with pytest.raises(LayoutError, match=r"^initial: .*'pissa'"):
        FRLoRA().restart(taken(0), weights)
    with pytest.raises(LayoutError, match=r"^estimate: .*'pissa'"):
        FedSB().fixed(taken(0))


def test_so_is_a_message_of_another_rank():
    with pytest.raises(LayoutError, match=r"^client 'c1': module 'down' has rank 2, expected 3 .*like the start"):
        FFALoRA().message(taken(1, 2), taken(5))


def test_the_accumulator_refuses_what_differs():
    accumulator = Accumulator(Mean())
    accumulator.add(taken(0))
    with pytest.raises(LayoutError, match="client 'c1': module 'down' has rank 2, expected 3"):
        accumulator.add(taken(1, 2))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("begun", ["pissa", "olora", "OLoRA"])
def test_the_mean_of_trained_adapters_is_the_mean_of_models_up_to_truncation(begun, tmp_path, monkeypatch):
    """In PEFT: the result on the base that it takes its part out of, against the clients' own base weights in fp64."""
    peft = pytest.importorskip("peft")
    torch = pytest.importorskip("torch")
    from tests.test_updates_peft import llama, logits

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    settings = {"r": 3, "lora_alpha": 7, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": begun}

    def trained(seed: int) -> tuple[Update, dict[str, np.ndarray]]:
        model = peft.get_peft_model(llama(), peft.LoraConfig(**settings))
        torch.manual_seed(seed)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.data += 0.01 * torch.randn_like(parameter)
        model.save_pretrained(tmp_path / f"c{seed}")
        whole = peft.PeftModel.from_pretrained(llama(), tmp_path / f"c{seed}").merge_and_unload().named_parameters()
        return Update.from_peft(tmp_path / f"c{seed}"), {name: w.detach().double().numpy() for name, w in whole}

    clients = [trained(seed) for seed in (1, 2, 3)]
    # what is left of the base, and the target of the round on it
    rest = dict(peft.get_peft_model(llama(), peft.LoraConfig(**settings)).unload().named_parameters())
    found = aggregate([update for update, _ in clients], Mean()).update
    expected = llama()
    for name, weight in expected.named_parameters():
        module = f"base_model.model.{name.removesuffix('.weight')}"
        if module not in found.modules:
            continue
        left = rest[name].detach().double().numpy()
        mean = sum(whole[name] for _, whole in clients) / 3
        best = left + dense.truncated(mean - left, 3)
        assert np.linalg.norm(best - mean) < 0.1 * np.linalg.norm(mean)
        np.testing.assert_allclose(left + dense.dense(found, module), best, atol=1e-5 * np.linalg.norm(mean))
        weight.data = torch.from_numpy(best).float()
    found.to_peft(tmp_path / "out")
    loaded = peft.PeftModel.from_pretrained(llama(), tmp_path / "out").eval()
    np.testing.assert_allclose(logits(loaded), logits(expected.eval()), atol=1e-5)
    # untrained adapters give the base back
    fresh = peft.get_peft_model(llama(), peft.LoraConfig(**settings))
    fresh.save_pretrained(tmp_path / "fresh")
    same = [Update.from_peft(tmp_path / "fresh", client_id=name) for name in "ab"]
    aggregate(same, Mean()).update.to_peft(tmp_path / "base")
    loaded = peft.PeftModel.from_pretrained(llama(), tmp_path / "base").eval()
    np.testing.assert_allclose(logits(loaded), logits(llama()), atol=1e-5)
