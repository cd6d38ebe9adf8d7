"""load_base: NF4 with double quantisation, the repacking trap shut, weights that never change, errors that name "
"things."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from bitsandbytes.functional import has_avx512bf16
from bitsandbytes.nn import Linear4bit

from fedcore.clients import AdapterSettings, TrainingSettings, attach, evaluate, load_base, make_base, train
from fedcore.clients.hub import line
from fedcore.errors import ConfigError, FormatError, LayoutError, MissingError, TrainingError

STEPS = TrainingSettings(steps=3, batch_size=4, sequence_length=32)


def layers_of(base):
    return {name: module for name, module in base.model.named_modules() if isinstance(module, Linear4bit)}


def test_linear_layers_are_nf4_with_double_quantisation_and_the_rest_is_fp32(base):
    layers = layers_of(base)
    assert len(layers) == 14
    for name, layer in layers.items():
        assert (layer.weight.quant_state.quant_type, layer.weight.quant_state.nested) == ("nf4", True), name
    others = {name: p.dtype for name, p in base.model.named_parameters() if p.dtype != torch.uint8}
    assert others
    assert set(others.values()) == {torch.float32}
    assert not any(p.requires_grad for p in base.model.parameters())


def test_the_inference_path_is_shut_in_every_layer(tiny_directory, monkeypatch):
    # whatever this CPU can do, bitsandbytes believes that it has avx512_bf16
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: True)
    layers = layers_of(load_base(tiny_directory, device="cpu"))
    assert [name for name, layer in layers.items() if layer.support_avx512bf16_for_cpu] == []


def test_a_local_base_is_loaded_without_the_network(tiny_directory, monkeypatch):
    def refuse(*_):
        raise AssertionError("loading a local directory reached for the network")

    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert load_base(tiny_directory, device="cpu").name == "tiny"


def test_the_digest_repeats_and_tells_bases_apart(tiny_directory, base, tiny_settings, texts, tmp_path):
    assert load_base(tiny_directory, device="cpu").digest == base.digest
    assert load_base(tiny_directory, quantization="none", device="cpu").digest != base.digest
    other = make_base(tmp_path / "other", {"a": texts}, replace(tiny_settings, rounds=1), seed=1)
    assert load_base(other, device="cpu").digest != base.digest


def test_training_and_evaluation_leave_the_digest_as_it_was(base, texts):
    evaluate(base, texts, [])
    attach(base, AdapterSettings(rank=4), seed=0)
    evaluate(base, texts, [])
    train(base, texts, STEPS, seed=0)
    evaluate(base, texts, [])
    base.check_unchanged()


@pytest.mark.parametrize("what", ["weight", "absmax", "nested", "norm"])
def test_any_changed_bit_of_the_frozen_base_is_noticed(base, what):
    layer = base.model.model.layers[0].self_attn.q_proj
    state = layer.weight.quant_state
    norm = base.model.model.norm.weight
    changed = {"weight": layer.weight.data, "absmax": state.absmax, "nested": state.state2.absmax, "norm": norm.data}
    changed[what].view(-1).view(torch.uint8)[0] ^= 1
    with pytest.raises(TrainingError, match="base tiny: its frozen weights hash to"):
        base.check_unchanged()


@pytest.mark.skipif(
    not has_avx512bf16(), reason="this CPU has no avx512_bf16, so bitsandbytes has no path that could repack"
)
def test_the_trap_is_real_and_what_falls_into_it_raises(base, texts):
    attach(base, AdapterSettings(rank=4), seed=0)
    for layer in layers_of(base).values():
        layer.support_avx512bf16_for_cpu = True
    evaluate(base, texts, [])
    with pytest.raises(TrainingError, match="base tiny"):
        base.check_unchanged()
    with pytest.raises(TrainingError, match=r"q_proj.weight was repacked|repacked for inference"):
        train(base, texts, STEPS, seed=0)


def test_a_layer_whose_inputs_nf4_decodes_wrongly_is_refused_by_name(tiny_settings, texts, tmp_path):
    odd = make_base(tmp_path / "odd", {"a": texts}, replace(tiny_settings, hidden=96, rounds=1, local_steps=1), seed=0)
    with pytest.raises(
        LayoutError, match=r"layer model\.layers\.0\.self_attn\.q_proj has 96 inputs, expected a multiple of 64"
    ):
        load_base(odd, device="cpu")
    assert evaluate(load_base(odd, quantization="none", device="cpu"), texts, []).loss > 0


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(MissingError, match="no such directory"):
        load_base(tmp_path / "nothing")
    with pytest.raises(MissingError, match="no such directory"):
        load_base("./nothing")
    with pytest.raises(MissingError, match=rf"no config\.json in it \(looked at {tmp_path}\); give a directory"):
        load_base(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(MissingError, match="cannot be loaded"):
        load_base(tmp_path)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub that cannot be reached, and its empty cache: (folder of the cache, names that it was asked for)."""
    asked = []

    def unreachable(_, name, **more):
        asked.append(name)
        raise ConnectionError("no route to host")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", unreachable)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub", asked


def cached(cache, directory, name="someone/tiny"):
    """Put a model into the hub's cache as its client would."""
    folder = cache / f"models--{name.replace('/', '--')}"
    shutil.copytree(directory, folder / "snapshots" / ("c" * 40))
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("c" * 40)
    return folder / "snapshots" / ("c" * 40)


def test_a_mistyped_name_says_where_it_was_looked_for_and_the_hub_is_asked_once(hub, tmp_path):
    with pytest.raises(MissingError) as caught:
        load_base("nobase", folder=tmp_path)
    assert str(caught.value) == (
        f"model nobase: no such directory (looked at {tmp_path}/nobase), and it is not in the hub's cache and the hub "
        "cannot be reached (no route to host); correct the path or the hub name"
    )
    with pytest.raises(MissingError, match=f"looked at {Path.cwd()}/no/base"):
        load_base("no/base")
    assert hub[1] == ["nobase", "no/base"]


def test_the_hub_says_itself_what_is_wrong_with_a_name(monkeypatch):
    for name, said in (("no base", "it is no name that the hub could have"), ("a/b", "HF_HUB_OFFLINE is set")):
        with pytest.raises(MissingError, match=said):
            load_base(name)


def test_a_model_in_the_hubs_cache_is_loaded_without_asking_the_hub(hub, tiny_directory, base):
    cache, asked = hub
    directory = cached(cache, tiny_directory)
    assert load_base("someone/tiny", device="cpu").digest == base.digest
    assert asked == []
    (directory / "model.safetensors").unlink()
    with pytest.raises(MissingError, match=r"in the hub's cache in part, and the hub cannot be reached") as caught:
        load_base("someone/tiny", device="cpu")
    assert "\n" not in str(caught.value)


def test_what_the_cache_lacks_comes_from_the_hub(hub, tiny_directory, base, monkeypatch):
    cache, _ = hub

    def found(_, name, **more):
        cached(cache, tiny_directory, name)

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", found)
    assert load_base("someone/tiny", device="cpu").digest == base.digest


def test_a_name_in_a_configuration_is_relative_to_its_folder(tiny_directory):
    assert load_base("tiny", device="cpu", folder=tiny_directory.parent).name == "tiny"


def test_a_long_message_of_a_library_is_cut_between_words():
    address = "https://example.org/" + "a" * 60
    said = line(OSError("no luck\n" + f"at {address} " * 9))
    assert "\n" not in said
    assert len(said) < 310
    assert said.removesuffix(" ...").split(address)[-1] in ("", " at")


@pytest.mark.parametrize(("name", "old", "new"), [("model.safetensors", None, None), ("tokenizer.json", "BPE", "BPX")])
def test_a_damaged_file_is_one_line(tiny_directory, tmp_path, name, old, new):
    damaged = shutil.copytree(tiny_directory, tmp_path / "damaged")
    data = (damaged / name).read_bytes()
    (damaged / name).write_bytes(data[: len(data) // 2] if old is None else data.replace(old.encode(), new.encode()))
    with pytest.raises(FormatError, match=r"damaged: it cannot be loaded .*; fetch it again") as caught:
        load_base(damaged, device="cpu")
    assert "\n" not in str(caught.value)


def test_unknown_settings_are_refused(tiny_directory):
    with pytest.raises(ConfigError, match="quantization: got 'int3'"):
        load_base(tiny_directory, quantization="int3")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="device: got 'abacus'"):
        load_base(tiny_directory, device="abacus")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
def test_on_a_gpu_it_trains_in_bf16_and_the_digest_holds(tiny_directory, texts):
    base = load_base(tiny_directory, device="cuda")
    attach(base, AdapterSettings(rank=4), seed=0)
    before = evaluate(base, texts, []).loss
    train(base, texts, replace(STEPS, steps=10), seed=0)
    assert evaluate(base, texts, []).loss < before
    base.check_unchanged()


def test_nothing_is_said_on_the_way(tiny_directory, tmp_path):
    code = (
        "from fedcore.clients import *\n"
        f"base = load_base({str(tiny_directory)!r}, device='cpu')\n"
        "attach(base, AdapterSettings(rank=2), seed=0)\n"
        "train(base, ['Some text.'] * 9, TrainingSettings(steps=2, batch_size=2, sequence_length=16), seed=0)\n"
        "evaluate(base, ['Some text. ' * 900], [])\n"
        "base.check_unchanged()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
