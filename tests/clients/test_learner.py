"""The real clients behind the seam of the rounds: what QLoRALearner checks beside training."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedcore.clients import core, evaluation, training
from fedcore.errors import ConfigError, TrainingError
from fedcore.federation.config_file import parse_config
from fedcore.federation.data import Client, Texts
from fedcore.federation.learner import QLoRALearner
from fedcore.federation.simulation import run_arms
from fedcore.updates import Update

CONFIG = """
[model]
source = "{directory}"
device = "cpu"
[adapter]
rank = 2
[training]
batch_size = 2
sequence_length = 16
"""


def test_a_base_that_changes_while_a_client_trains_is_found_before_its_update_counts(
    tiny_directory, texts, monkeypatch
):
    client = Client("client-0", tuple(texts), {"": len(texts)})
    config = parse_config(CONFIG.format(directory=tiny_directory), "c.toml")
    learner = QLoRALearner(config, Texts((client,), (), tuple(texts[:2]), ()), lambda *_, **__: None)
    assert learner.train(learner.initial(), client, 1, 0).num_examples == len(texts)
    real = training.train

    def writes_to_the_base(base, *arguments, **options):
        result = real(base, *arguments, **options)
        write_to(base)
        return result

    monkeypatch.setattr(training, "train", writes_to_the_base)
    with pytest.raises(TrainingError, match="its frozen weights hash to"):
        learner.train(learner.initial(), client, 1, 0)


def write_to(base):
    with torch.no_grad():
        base.model.get_input_embeddings().weight[0, 0] += 1


@pytest.mark.parametrize(("module", "name"), [(core, "train_core"), (evaluation, "evaluate")])
def test_a_base_that_changes_in_the_training_of_a_core_or_in_evaluation_is_found(
    tiny_directory, texts, monkeypatch, module, name
):
    client = Client("client-0", tuple(texts), {"": len(texts)})
    config = parse_config(CONFIG.format(directory=tiny_directory), "c.toml")
    learner = QLoRALearner(config, Texts((client,), (), tuple(texts[:2]), ()), lambda *_, **__: None)
    start, result = learner.initial(), object()

    def run():
        if name == "evaluate":
            return learner.evaluate(start)
        return learner.train(start, client, 1, 0, trains=("core",), fixed=start)

    monkeypatch.setattr(module, name, lambda base, *_, **__: result)
    assert run() is result
    monkeypatch.setattr(module, name, lambda base, *_, **__: write_to(base))
    with pytest.raises(TrainingError, match="its frozen weights hash to"):
        run()


def test_what_a_run_asks_for_reaches_the_training(tiny_directory, texts, monkeypatch):
    asked = []
    monkeypatch.setattr(training, "train", lambda base, texts, settings, seed, **_: asked.append((settings, seed)))
    client = Client("client-0", tuple(texts), {"": len(texts)})
    config = parse_config(CONFIG.format(directory=tiny_directory) + "steps = 9\n", "c.toml")
    learner = QLoRALearner(config, Texts((client,), (), tuple(texts[:2]), ()), lambda *_, **__: None)
    update = learner.train(learner.initial(), client, 3, 11, 0.25)
    ((settings, seed),) = asked
    assert (settings.steps, settings.proximal_mu, settings.sequence_length, seed) == (3, 0.25, 16, 11)
    assert (update.client_id, update.num_examples) == ("client-0", len(texts))


def test_sequences_longer_than_the_model_takes_are_refused_before_any_work(tiny_directory, texts):
    config = parse_config(CONFIG.format(directory=tiny_directory).replace("= 16", "= 1025"), "c.toml")
    client = Client("client-0", tuple(texts), {"": len(texts)})
    with pytest.raises(ConfigError, match=r"training\.sequence_length: got 1025, expected at most 1024"):
        QLoRALearner(config, Texts((client,), (), tuple(texts[:2]), ()), lambda *_, **__: None)


@pytest.mark.parametrize("full", [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("can't allocate memory")])
def test_memory_that_runs_out_is_an_error_that_says_what_to_do(tiny_directory, texts, monkeypatch, full):
    def fills(*_arguments, **_options):
        raise full

    client = Client("client-0", tuple(texts), {"": len(texts)})
    config = parse_config(CONFIG.format(directory=tiny_directory), "c.toml")
    learner = QLoRALearner(config, Texts((client,), (), tuple(texts[:2]), ()), lambda *_, **__: None)
    monkeypatch.setattr(training, "train", fills)
    with pytest.raises(TrainingError, match=r"client client-0: memory ran out .*training\.batch_size"):
        learner.train(learner.initial(), client, 1, 0)
    monkeypatch.setattr(evaluation, "evaluate", fills)
    with pytest.raises(TrainingError, match="evaluation: memory ran out"):
        learner.evaluate(None)
    monkeypatch.setattr(evaluation, "evaluate", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        learner.evaluate(None)


METHODS = """
[run]
rounds = 2
[partition]
clients = 2
[[arms]]
name = "flexlora"
method = "flexlora"
"""


@pytest.mark.parametrize(
    ("ranks", "names"), [("ranks = [1, 2]", ("flexlora",)), ("rank = 2", ("flexlora", "frlora", "fedsb"))]
)
def test_methods_run_on_real_clients(tiny_directory, texts, tmp_path, ranks, names):
    more = "".join(f'[[arms]]\nname = "{name}"\nmethod = "{name}"\n' for name in names[1:])
    text = CONFIG.format(directory=tiny_directory).replace("rank = 2", ranks).replace("batch", "steps = 1\nbatch")
    config = parse_config(text + METHODS + more, "c.toml")
    clients = tuple(Client(f"client-{i}", tuple(texts[i::2]), {"": len(texts[i::2])}) for i in range(2))
    given = Texts(clients, (), tuple(texts[:2]), ())
    learner = QLoRALearner(config, given, lambda *_, **__: None)
    folder = run_arms(config, given, learner, tmp_path / "run", resume=False)
    sent = {
        name: [Update.from_bytes(receipt.open()) for receipt in folder.journal.received(name, 2).values()]
        for name in names
    }
    own = (1, 2) if "ranks" in ranks else (2, 2)
    assert [{pair.rank for pair in update.modules.values()} for update in sent["flexlora"]] == [{r} for r in own]
    if "frlora" in names:
        module, pair = next(iter(learner.initial().modules.items()))
        weights = learner.weights()[module]
        # the attached adapter adds nothing while B is 0: what is left is the layer itself
        layer = dict(learner._base.model.named_modules())[module].get_base_layer()
        ones = torch.eye(pair.d_in)
        assert np.abs(weights.T - layer(ones).detach().numpy()).max() < 1e-2 * np.abs(weights).max()
        start = folder.rounds.load_start("frlora", 1, folder.ledger.find(arm="frlora", round=1))
        kept = start.adapter.modules[module]
        product = kept.scale * start.adapter.tensors[kept.b] @ start.adapter.tensors[kept.a]
        u, s, vt = np.linalg.svd(weights, full_matrices=False)
        assert np.linalg.norm(product - (u[:, :2] * s[:2]) @ vt[:2]) < 1e-4 * s[0]
        # the clients' first model is the base: what the factors take out of it lies beside
        first = folder.metrics.find(arm="frlora", round=1)["loss"]
        assert first == pytest.approx(folder.metrics.find(arm="base")["loss"], abs=0.5)
    if "fedsb" in names:
        assert all({name.rpartition(".")[2] for name in update.tensors} == {"core"} for update in sent["fedsb"])
        assert all(tensor.shape == (2, 2) and tensor.any() for tensor in sent["fedsb"][0].tensors.values())
