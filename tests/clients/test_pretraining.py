"""make_base: DiLoCo as published, the same bits under one seed, whole directories or none."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from adamw_steps import steps_of_adamw
from torch.nn.utils import parameters_to_vector

from fedcore import ops
from fedcore.clients import load_base, make_base, pretraining
from fedcore.clients.seeding import seeded
from fedcore.errors import ConfigError, ExistsError, ShapeError, StorageError, TrainingError
from fedcore.updates.file_lock import FileLock


@pytest.fixture
def silos(texts):
    return {"a": texts[::2], "b": texts[1::2]}


def weights_of(directory):
    return (
        parameters_to_vector(load_base(directory, quantization="none", device="cpu").model.parameters())
        .detach()
        .numpy()
    )


def test_the_same_seed_gives_the_same_files_and_torch_keeps_its_state(tiny_directory, silos, tiny_settings, tmp_path):
    before = torch.random.get_rng_state()
    again = make_base(tmp_path / "again", silos, tiny_settings, seed=0)
    for name in ("model.safetensors", "tokenizer.json", "config.json", "fedcore.json"):
        assert (again / name).read_bytes() == (tiny_directory / name).read_bytes(), name
    other = make_base(tmp_path / "other", silos, tiny_settings, seed=1)
    assert (other / "model.safetensors").read_bytes() != (again / "model.safetensors").read_bytes()
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_base_that_is_there_is_returned_and_one_from_other_input_replaced(silos, tiny_settings, tmp_path):
    settings, told = replace(tiny_settings, rounds=1), []

    def make(silos, settings, seed):
        told.clear()
        make_base(tmp_path / "base", silos, settings, seed, progress=lambda *args, **_: told.append(args))
        return len(told)

    assert make(silos, settings, 0) == 1
    assert make(silos, settings, 0) == 0
    assert make(silos, replace(settings, learning_rate=1e-3), 0) == 1
    assert make(silos | {"b": silos["b"][1:]}, settings, 0) == 1
    assert make(silos, settings, 1) == 1
    key = json.loads((tmp_path / "base" / "fedcore.json").read_text())
    (tmp_path / "base" / "fedcore.json").write_text(json.dumps(key | {"versions": {"torch": "1.0"}}))
    assert make(silos, settings, 1) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "base.lock"]


@pytest.mark.parametrize("text", [b'{"a": ', b'{"a": ' + b"[" * 100_000, b"\xff", b"[]"])
def test_a_base_whose_notes_are_damaged_is_made_again(tmp_path, text):
    (tmp_path / "fedcore.json").write_bytes(text)
    assert not pretraining._made_from(tmp_path, {})


def test_a_directory_of_someone_else_is_refused(silos, tiny_settings, tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(ExistsError, match="was not made by fedcore"):
        make_base(tmp_path, silos, tiny_settings, seed=0)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_failed_write_leaves_nothing_and_the_old_base_whole(silos, tiny_settings, tmp_path, monkeypatch):
    settings = replace(tiny_settings, rounds=1, local_steps=1)
    make_base(tmp_path / "base", silos, settings, seed=0)
    before = (tmp_path / "base" / "model.safetensors").read_bytes()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("transformers.PreTrainedTokenizerFast.save_pretrained", full)
    with pytest.raises(StorageError, match="No space left on device"):
        make_base(tmp_path / "base", silos, settings, seed=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "base.lock"]
    assert (tmp_path / "base" / "model.safetensors").read_bytes() == before


def test_of_two_that_make_one_base_the_first_stays_and_they_write_one_at_a_time(
    silos, tiny_settings, tmp_path, monkeypatch
):
    settings, base, found = replace(tiny_settings, rounds=1, local_steps=1), tmp_path / "cache" / "base", []
    train, begin = pretraining._diloco, pretraining.new_directory

    def beaten(*arguments):
        if not found:
            found.append("training")
            make_base(base, silos, settings, seed=0)
            found.append((base / "model.safetensors").stat().st_ino)
        train(*arguments)

    def held(path, **options):
        with pytest.raises(StorageError, match="held"):
            FileLock(path.with_name("base.lock"), busy="held")
        return begin(path, **options)

    monkeypatch.setattr(pretraining, "_diloco", beaten)
    monkeypatch.setattr(pretraining, "new_directory", held)
    make_base(base, silos, settings, seed=0)
    assert (base / "model.safetensors").stat().st_ino == found[1]
    assert sorted(path.name for path in base.parent.iterdir()) == ["base", "base.lock"]


def test_the_outer_step_is_nesterov_on_the_mean_change_by_the_engines_weighted_sum(
    silos, tiny_settings, tmp_path, monkeypatch
):
    means = []

    def recorded(rows, weights, divisor=None, **kwargs):
        result = real(rows, weights, divisor, **kwargs)
        expected = np.mean([np.asarray(row, np.float64) for row in rows], axis=0)
        assert np.allclose(result, expected, rtol=1e-6, atol=1e-12)
        assert len(rows) == 2
        means.append(np.array(result))
        return result

    real = ops.weighted_sum
    monkeypatch.setattr(pretraining.ops, "weighted_sum", recorded)
    settings = replace(tiny_settings, rounds=3, local_steps=2)
    directory = make_base(tmp_path / "base", silos, settings, seed=0)
    tokenizer = load_base(directory, quantization="none", device="cpu").tokenizer
    with seeded(0):
        theta = parameters_to_vector(pretraining._model(tokenizer, settings).parameters()).detach().double().numpy()
    velocity = np.zeros_like(theta)
    for mean in means:  # Sutskever et al., 2013, as torch.optim.SGD writes it
        velocity = settings.outer_momentum * velocity + mean
        theta = theta - settings.outer_learning_rate * (mean + settings.outer_momentum * velocity)
    assert len(means) == 3
    assert np.allclose(weights_of(directory), theta, atol=1e-6)


def test_the_rate_warms_up_once_and_falls_and_is_the_same_for_all_silos(silos, tiny_settings, tmp_path):
    with steps_of_adamw() as seen:
        make_base(tmp_path / "base", silos, replace(tiny_settings, rounds=2, local_steps=20), 0)
    rates = [step["lr"] for step in seen]
    # round by round, silo by silo
    first, second = rates[:20], rates[40:60]
    assert rates == [*first, *first, *second, *second]
    assert first[0] < first[1] == tiny_settings.learning_rate  # 5 % of the steps
    assert [*first[1:], *second] == sorted([*first[1:], *second], reverse=True)
    assert second[-1] == pytest.approx(0.1 * tiny_settings.learning_rate, rel=0.05)


def test_silos_go_on_with_their_own_moments_and_long_gradients_are_clipped(silos, tiny_settings, tmp_path):
    with steps_of_adamw() as seen:
        make_base(tmp_path / "base", silos, replace(tiny_settings, rounds=2, local_steps=2), 0)
    assert [step["before"] for step in seen] == [0, 1, 0, 1, 2, 3, 2, 3]
    assert max(step["norm"] for step in seen) <= 1.0 + 1e-4


def test_silos_of_the_same_texts_draw_their_own_batches(texts, tiny_settings, tmp_path, monkeypatch):
    drawn, inner = [], pretraining._inner

    def recorded(model, start, batches, *others):
        drawn.append(batches.clone())
        return inner(model, start, batches, *others)

    monkeypatch.setattr(pretraining, "_inner", recorded)
    make_base(tmp_path / "base", {"a": texts, "b": texts}, replace(tiny_settings, rounds=1, local_steps=2), 0)
    assert not torch.equal(*drawn)


def test_it_learns_and_says_how_far_it_is(silos, tiny_settings, tmp_path):
    told = []
    settings = replace(tiny_settings, rounds=5, local_steps=10, learning_rate=1e-2)
    make_base(
        tmp_path / "b",
        silos,
        settings,
        0,
        progress=lambda phase, done, total, **m: told.append((phase, done, total, m)),
    )
    assert [entry[:3] for entry in told] == [("pretraining", i, 5) for i in range(1, 6)]
    assert told[0][3]["tokens"] == 2 * 10 * 4 * 32
    assert told[-1][3]["loss"] < told[0][3]["loss"] - 0.5


def test_the_tokenizer_gives_every_text_back(tiny_directory):
    tokenizer = load_base(tiny_directory, device="cpu").tokenizer
    for text in ("def f(x):\n    return x\n", "naïve – ½ 漢字 🐍", "  two  spaces\t\n"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.eos_token_id is not None


def test_a_loss_that_is_not_finite_names_silo_round_and_rate(silos, tiny_settings, tmp_path):
    settings = replace(tiny_settings, learning_rate=1e30, local_steps=4)
    with pytest.raises(TrainingError, match=r"the loss of a in round 1 is (nan|inf).*learning_rate \(1e\+30\)"):
        make_base(tmp_path / "b", silos, settings, seed=0)
    assert list(tmp_path.iterdir()) == []


def test_settings_and_silos_that_cannot_work_are_refused(silos, tiny_settings, tmp_path):
    for settings, message in (
        (replace(tiny_settings, vocabulary=100), "vocabulary is 100, expected at least 257"),
        (replace(tiny_settings, heads=3), "hidden 64 over 3 heads"),
    ):
        with pytest.raises(ConfigError, match=message):
            make_base(tmp_path / "b", silos, settings, seed=0)
    with pytest.raises(ShapeError, match="silo empty has no text"):
        make_base(tmp_path / "b", silos | {"empty": []}, tiny_settings, seed=0)
    with pytest.raises(ShapeError, match="got no silo"):
        make_base(tmp_path / "b", {}, tiny_settings, seed=0)
    assert list(tmp_path.iterdir()) == []
