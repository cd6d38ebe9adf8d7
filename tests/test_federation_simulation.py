"""Whole runs on a learner of a few numbers: repeatable, and made again from journal and ledger."""

from __future__ import annotations

import hashlib
from pathlib import Path

import fake_learner as fake
import numpy as np
import pytest
from fake_runs import result, simulate

from fedcore import ops
from fedcore.errors import ExistsError
from fedcore.federation.center import moved_on
from fedcore.federation.folder import RunFolder
from fedcore.updates import Update


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    simulate(folder)
    return folder


def test_the_same_configuration_gives_the_same_run(whole, tmp_path):
    simulate(tmp_path / "again")
    assert result(tmp_path / "again") == result(whole)


def test_another_seed_gives_another_run(whole, tmp_path):
    simulate(tmp_path / "other", config=fake.config(fake.CONFIG.replace("seed = 5", "seed = 6")))
    assert result(tmp_path / "other")["ledger.jsonl"] != result(whole)["ledger.jsonl"]


def test_what_a_run_leaves(whole):
    folder = RunFolder.read(whole)
    assert [(e["arm"], e["round"]) for e in folder.ledger.entries] == [
        (arm, number) for arm in ("mean", "poisoned", "krum") for number in (1, 2, 3)
    ]
    for entry in folder.ledger.entries:
        for client, digest in entry["inputs"].items():
            path = whole / "updates" / entry["arm"] / f"round-{entry['round']:03d}" / f"{client}.{digest}.safetensors"
            assert hashlib.sha256(path.read_bytes()).hexdigest() == digest
        assert all(value == np.float32(value) for value in entry["coefficients"].values())
        before = folder.rounds.load_global(entry["arm"], entry["round"] - 1, entry["reference"])
        assert before.digest() == entry["reference"]
        assert {
            "rule",
            "parameters",
            "space",
            "excluded",
            "not_counted",
            "redone_pairs",
            "law",
            "output",
        } <= entry.keys()
    lines = folder.metrics.entries
    assert [line["arm"] for line in lines] == ["base"] + ["local-only"] * 5 + ["mean"] * 3 + ["poisoned"] * 3 + [
        "krum"
    ] * 3
    last = lines[-1]
    received = (whole / "updates/krum/round-003").glob("*.safetensors")
    assert last["bytes_up"] == sum(map(fake.payload, received))
    assert set(last["seconds"]) == {"training", "journal", "aggregation", "evaluation"}
    assert Update.from_peft(whole / "adapter").digest() == Update.from_peft(whole / "arms/mean/adapter").digest()
    assert Update.from_peft(whole / "arms/krum/adapter").digest() == folder.ledger.entries[-1]["output"]


def test_krum_leaves_the_poisoned_client_out_and_the_mean_does_not(whole):
    for entry in RunFolder.read(whole).ledger.entries:
        if entry["arm"] == "krum":
            assert entry["coefficients"]["client-4"] == 0
            assert "not selected" in entry["not_counted"]["client-4"]
            assert entry["excluded"] == {}
        else:
            assert entry["coefficients"]["client-4"] != 0
        assert entry["poisoned"] == ([] if entry["arm"] == "mean" else ["client-4"])
    norms = RunFolder.read(whole).ledger.entries[-1]["change_norms"]
    assert norms["client-4"] > 2 * max(norms[f"client-{i}"] for i in range(4))


REPLAYED = """
[[arms]]
name = "mean"
[[arms]]
name = "clipped"
rule = "norm_clipping"
parameters = { max_norm = 0.5 }
[[arms]]
name = "krum"
rule = "multi_krum"
parameters = { f = 1 }
attack = { clients = 1, scale = 5.0 }
[[arms]]
name = "centered"
rule = "centered_clipping"
parameters = { radius = 0.1 }
[[arms]]
name = "two-rows"
rule = "centered_clipping"
parameters = { radius = 0.1 }
before = [{ rule = "norm_clipping", max_norm = 0.5 }]
"""


def test_every_round_in_parameters_space_is_made_again_from_journal_and_ledger(tmp_path):
    settings = 'space = "parameters"\ncenter = "moved_on"\n'
    text = fake.CONFIG[: fake.CONFIG.index("[[arms]]")] + settings + REPLAYED
    folder = simulate(tmp_path / "run", config=fake.config(text))
    before = {arm.name: [fake.FakeLearner().initial()] for arm in folder.config.arms}
    uses = {"mean": [], "clipped": ["reference"], "krum": [], "centered": ["center"]}
    uses["two-rows"] = ["reference", "center"]
    for entry in folder.ledger.entries:
        arm, number = entry["arm"], entry["round"]
        reference = center = before[arm][-1]
        assert reference.digest() == entry["reference"]
        if "center" in uses[arm] and number > 1:
            center = moved_on(reference, before[arm][-2], "parameters")
            assert center.digest() == entry["center"]
        else:
            assert "center" not in entry
        place = tmp_path / "run" / "updates" / arm / f"round-{number:03d}"
        sent = [
            Update.from_bytes((place / f"{client}.{entry['inputs'][client]}.safetensors").read_bytes())
            for client in entry["coefficients"]
        ]
        assert list(entry["reference_coefficients"]) == uses[arm]
        known = {"reference": reference, "center": center}
        rows = [*sent, *(known[name] for name in entry["reference_coefficients"])]
        coefficients = [*entry["coefficients"].values(), *entry["reference_coefficients"].values()]
        tensors = {
            name: ops.weighted_sum(
                [update.tensors[name].reshape(-1) for update in rows], coefficients, entry["divisor"]
            ).reshape(tensor.shape)
            for name, tensor in sent[0].tensors.items()
        }
        again = Update.from_tensors(tensors, scaling=sent[0].scaling)
        assert again.digest() == entry["output"], (arm, number)
        before[arm].append(again)
    assert any(all(entry["reference_coefficients"].values()) for entry in folder.ledger if entry["arm"] == "two-rows")


class Recording(fake.FakeLearner):
    """One that notes what it is asked for."""

    def __init__(self):
        super().__init__()
        self.asked = []

    def train(self, adapter, client, steps, seed, proximal_mu=0.0, **options):
        self.asked.append((steps, seed, proximal_mu))
        return super().train(adapter, client, steps, seed, proximal_mu, **options)


def test_steps_and_proximal_term_reach_each_training_of_an_arm(tmp_path):
    """Trained alone, a client has nobody to be pulled to, and the steps of all rounds."""
    text = fake.CONFIG.partition("[[arms]]")[0] + '[training]\nproximal_mu = 0.25\nsteps = 7\n[[arms]]\nname = "mean"\n'
    learner = Recording()
    simulate(tmp_path / "run", learner=learner, config=fake.config(text))
    asked = [(steps, mu) for steps, _, mu in learner.asked]
    assert asked == [(21, 0.0)] * 5 + [(7, 0.25)] * 15
    assert len({seed for _, seed, _ in learner.asked}) == 20  # another for each client and round


def test_adapter_from_chooses_the_arm(tmp_path):
    config = fake.config(fake.CONFIG.replace("rounds = 3", 'rounds = 1\nadapter_from = "krum"'))
    simulate(tmp_path / "run", config=config)
    chosen, krum = (Update.from_peft(tmp_path / "run" / part) for part in ("adapter", "arms/krum/adapter"))
    assert chosen.digest() == krum.digest()


def test_an_existing_folder_is_refused_before_any_work(tmp_path):
    learner = fake.FakeLearner()
    with pytest.raises(ExistsError, match=r"already exists; choose another --output or remove it"):
        simulate(tmp_path, learner=learner)
    assert learner.trained == []
