"""Whole runs on a learner of a few numbers: repeatable, killed anywhere and resumed to the same bytes."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import fake_learner as fake
import numpy as np
import pytest

from fedcore import ops
from fedcore.errors import (
    ConfigError,
    ExistsError,
    FormatError,
    LayoutError,
    MissingError,
    NonFiniteError,
    RangeError,
    StorageError,
)
from fedcore.federation.folder import RunFolder
from fedcore.federation.simulation import run_arms
from fedcore.updates import Update


def simulate(folder: Path, *, resume: bool = False, learner=None, config=None, texts=None) -> RunFolder:
    return run_arms(
        config or fake.config(), texts or fake.texts(), learner or fake.FakeLearner(), folder, resume=resume
    )


def result(folder: Path) -> dict[str, str]:
    """Path -> SHA-256 of all that must be equal when a run is repeated; metrics hold times, so their scores alone."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_file() and name not in ("run.json", "metrics.jsonl"):
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    found["scores"] = str(
        [(x["arm"], x["round"], x["loss"], x["accuracy"], x["bytes_up"], x["bytes_down"]) for x in lines]
    )
    return found


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
"""


def test_every_round_in_parameters_space_is_made_again_from_journal_and_ledger(tmp_path):
    text = fake.CONFIG[: fake.CONFIG.index("[[arms]]")] + 'space = "parameters"\n' + REPLAYED
    folder = simulate(tmp_path / "run", config=fake.config(text))
    before = {arm: fake.FakeLearner().initial() for arm in ("mean", "clipped", "krum")}
    for entry in folder.ledger.entries:
        arm, number = entry["arm"], entry["round"]
        assert before[arm].digest() == entry["reference"]
        place = tmp_path / "run" / "updates" / arm / f"round-{number:03d}"
        sent = [
            Update.from_bytes((place / f"{client}.{entry['inputs'][client]}.safetensors").read_bytes())
            for client in entry["coefficients"]
        ]
        rows = [*sent, before[arm]][: len(sent) + len(entry["reference_coefficients"])]
        coefficients = [*entry["coefficients"].values(), *entry["reference_coefficients"]]
        tensors = {
            name: ops.weighted_sum(
                [update.tensors[name].reshape(-1) for update in rows], coefficients, entry["divisor"]
            ).reshape(tensor.shape)
            for name, tensor in sent[0].tensors.items()
        }
        again = Update.from_tensors(tensors, scaling=sent[0].scaling)
        assert again.digest() == entry["output"], (arm, number)
        before[arm] = again
    assert any(entry["reference_coefficients"] for entry in folder.ledger.entries)


class Damaged:
    def __init__(self, update: Update):
        self.update = update

    def to_bytes(self) -> bytes:
        return self.update.to_bytes()[:-1]


def again(update: Update, **changes) -> Update:
    fields = {"client_id": update.client_id, "base": update.base, "scaling": update.scaling, "tensors": update.tensors}
    return Update.from_tensors(**fields | changes)


@pytest.mark.parametrize(
    ("lie", "said"),
    [
        (Damaged, "message of client 'client-2'"),
        (lambda u: again(u, client_id="client-3"), "says it is from 'client-3'"),
        (lambda u: again(u, base="0" * 64), "its base is '0000"),
        (lambda u: again(u, scaling={fake.MODULE: 9.0}), "its scales differ"),
        (lambda u: again(u, tensors={k: np.float16(v) for k, v in u.tensors.items()}), "float16"),
    ],
)
def test_a_message_that_cannot_count_is_not_acknowledged(tmp_path, lie, said):
    folder = tmp_path / "run"

    class Lying(fake.FakeLearner):
        def train(self, adapter, client, steps, seed, proximal_mu=0.0):
            update = super().train(adapter, client, steps, seed)
            # alone, each client trains for all rounds at once and sends nothing
            return lie(update) if client.id == "client-2" and len(self.trained) > 5 else update

    with pytest.raises(FormatError, match=said):
        simulate(folder, learner=Lying())
    assert {path.name[:8] for path in (folder / "updates").rglob("*.*")} == {"client-0", "client-1"}
    simulate(folder, resume=True)


class Cancelling(fake.FakeLearner):
    """One client's two terms are huge and cancel: finite, and fp64 cannot tell their sum."""

    def train(self, adapter, client, steps, seed, proximal_mu=0.0):
        update = super().train(adapter, client, steps, seed)
        if client.id != "client-2":
            return update
        huge = np.array(update.tensors[f"{fake.MODULE}.lora_B.weight"]) + np.float32([1e25, -1e25])
        return again(update, tensors=dict(update.tensors) | {f"{fake.MODULE}.lora_B.weight": huge})


def test_a_client_that_only_aggregation_finds_out_comes_with_what_to_do(tmp_path):
    said = r"client-2.*; or start a new run with aggregation\.on_nonfinite = \"exclude\""
    with pytest.raises(NonFiniteError, match=said):
        simulate(tmp_path / "run", learner=Cancelling())


def test_adapter_from_chooses_the_arm(tmp_path):
    config = fake.config(fake.CONFIG.replace("rounds = 3", 'rounds = 1\nadapter_from = "krum"'))
    simulate(tmp_path / "run", config=config)
    chosen, krum = (Update.from_peft(tmp_path / "run" / part) for part in ("adapter", "arms/krum/adapter"))
    assert chosen.digest() == krum.digest()


POINTS = [(1,), (4,), (6, 3), (12, 1, 1), (27, 8), (42,), (43,), (44,), (120,)]


@pytest.mark.parametrize("points", POINTS)
def test_killed_anywhere_and_resumed_it_ends_the_same(whole, tmp_path, points):
    """SIGKILL at a call of fsync, in one attempt after another; then the run is resumed to its end."""
    folder = tmp_path / "run"
    for point in points:
        script = [sys.executable, str(Path(__file__).with_name("fake_learner.py")), str(folder), str(point)]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run(script, env=environment, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == -signal.SIGKILL, done.stderr
    simulate(folder, resume=folder.exists())
    assert result(folder) == result(whole)


@pytest.mark.parametrize("log", ["ledger.jsonl", "metrics.jsonl"])
@pytest.mark.parametrize("cut", [1, 40])
def test_a_torn_last_line_is_made_again(whole, tmp_path, log, cut):
    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        simulate(folder, learner=Stopping(after=40))
    for name in ("ledger.jsonl", "metrics.jsonl"):
        if name == log or log == "ledger.jsonl":
            (folder / name).write_bytes((folder / name).read_bytes()[:-cut])
    simulate(folder, resume=True)
    assert result(folder) == result(whole)


class Stopping(fake.FakeLearner):
    """Ctrl+C while a client trains, after so many trainings."""

    def __init__(self, after: int):
        super().__init__()
        self.after = after

    def train(self, *arguments):
        if len(self.trained) == self.after:
            raise KeyboardInterrupt
        return super().train(*arguments)


def test_an_interrupted_round_keeps_what_was_received(whole, tmp_path):
    folder = tmp_path / "run"
    # 5 alone, 15 in the first arm, 5 and 2 in the second
    with pytest.raises(KeyboardInterrupt):
        simulate(folder, learner=Stopping(after=27))
    kept = RunFolder.read(folder).kept()
    assert kept == "4 finished rounds (last: poisoned round 1) and 2 updates of poisoned round 2"
    assert not list(folder.rglob("*.part"))
    learner = fake.FakeLearner()
    simulate(folder, learner=learner, resume=True)
    assert learner.trained == ["client-2", "client-3", "client-4"] + [f"client-{i}" for _ in range(4) for i in range(5)]
    assert result(folder) == result(whole)


def test_resuming_a_finished_run_does_nothing(whole):
    before, learner = result(whole), fake.FakeLearner()
    simulate(whole, learner=learner, resume=True)
    assert learner.trained == []
    assert result(whole) == before


def test_a_full_disk_in_mid_round_stops_with_one_line_and_resumes(whole, tmp_path, monkeypatch):
    folder, real, calls = tmp_path / "run", os.fsync, 0

    def fsync(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls >= 60:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(StorageError, match="No space left on device") as caught:
        simulate(folder)
    assert "\n" not in str(caught.value)
    assert not list(folder.rglob("*.part"))
    monkeypatch.undo()
    simulate(folder, resume=True)
    assert result(folder) == result(whole)


def test_an_existing_folder_is_refused_before_any_work(tmp_path):
    learner = fake.FakeLearner()
    with pytest.raises(ExistsError, match=r"already exists; choose another --output or remove it"):
        simulate(tmp_path, learner=learner)
    assert learner.trained == []


def test_how_many_train_at_a_time_may_be_another_number_when_a_run_is_resumed(whole):
    before, learner = result(whole), fake.FakeLearner()
    other = fake.config(fake.CONFIG.replace("seed = 5", "seed = 5\nworkers = 3"))
    simulate(whole, resume=True, learner=learner, config=other)
    assert learner.trained == []
    assert result(whole) == before


def test_a_run_cannot_be_resumed_on_another_configuration_base_or_text(whole, tmp_path):
    with pytest.raises(ConfigError, match=r"^run\.seed: got 6, this run began with 5 \("):
        simulate(whole, resume=True, config=fake.config(fake.CONFIG.replace("seed = 5", "seed = 6")))
    learner = fake.FakeLearner()
    learner.digest = "0" * 64
    with pytest.raises(LayoutError, match="the base model changed since this run began"):
        simulate(whole, resume=True, learner=learner)
    with pytest.raises(LayoutError, match="the texts changed since this run began"):
        simulate(whole, resume=True, texts=fake.texts(4))
    with pytest.raises(MissingError, match=r"no config\.toml in it"):
        simulate(tmp_path, resume=True)


def test_two_processes_cannot_hold_one_run(whole):
    held = RunFolder.read(whole)
    held.hold()
    with pytest.raises(StorageError, match="another process is running this"):
        simulate(whole, resume=True)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOLCK, "No locks available"), r"run: cannot be written \(No locks available\); "),
        (BlockingIOError(errno.EWOULDBLOCK, "busy"), "another process is running this"),
    ],
)
def test_a_folder_that_cannot_be_held_is_left_closed(whole, monkeypatch, error, said):
    asked = []

    def flock(file, _):
        asked.append(file)
        raise error

    monkeypatch.setattr(fcntl, "flock", flock)
    folder = RunFolder.read(whole)
    with pytest.raises(StorageError, match=said):
        folder.hold()
    assert asked[0].closed
    assert folder._lock is None


def test_a_folder_whose_log_was_damaged_meanwhile_is_given_free(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    folder = RunFolder.read(tmp_path / "run")
    folder.metrics.path.write_bytes(b"[]\n")
    with pytest.raises(FormatError, match=r"metrics\.jsonl:1"):
        folder.hold()
    folder.metrics.path.write_bytes(b"")
    with RunFolder.read(folder.path).hold(), pytest.raises(StorageError, match="another process is running this"):
        folder.hold()


def test_an_update_damaged_on_disk_stops_the_resumption(tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        simulate(folder, learner=Stopping(after=27))
    path = next((folder / "updates/poisoned/round-002").iterdir())
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(FormatError, match="its SHA-256 is"):
        simulate(folder, resume=True)


class Poison(fake.FakeLearner):
    """One client sends a NaN."""

    def train(self, adapter, client, steps, seed, proximal_mu=0.0):
        update = super().train(adapter, client, steps, seed)
        b = np.array(update.tensors[f"{fake.MODULE}.lora_B.weight"])
        b[1, 1] = np.nan if client.id == "client-2" else b[1, 1]
        return self._update(b, np.array(update.tensors[f"{fake.MODULE}.lora_A.weight"]), client.id, update.num_examples)


def test_a_nan_names_the_client_or_leaves_it_out(tmp_path):
    with pytest.raises(NonFiniteError, match=r"'client-2'.*lora_B.* at element 3; .*on_nonfinite = \"exclude\""):
        simulate(tmp_path / "raise", learner=Poison())
    # refused before it was acknowledged: a resumed run does not find it
    assert not list((tmp_path / "raise/updates").rglob("client-2.*"))
    text = fake.CONFIG.replace('rule = "mean"\n[[arms]]', 'rule = "mean"\non_nonfinite = "exclude"\n[[arms]]')
    simulate(tmp_path / "exclude", learner=Poison(), config=fake.config(text), texts=fake.texts(6))
    for entry in RunFolder.read(tmp_path / "exclude").ledger.entries:
        assert "client-2" in entry["excluded"]
        assert "client-2" not in entry["coefficients"]
        assert "client-2" not in entry["change_norms"]


@pytest.mark.parametrize("format", ["float32", "bfloat16", "int8", "nf4"])
@pytest.mark.parametrize("space", ["delta", "parameters"])
def test_messages_travel_in_the_format_asked_for(tmp_path, format, space):
    """The journal holds what was sent, the next round starts from plain fp32, and training gets there all the same."""
    asked = f'[message]\nformat = "{format}"\n[aggregation]\nspace = "{space}"'
    run = simulate(tmp_path / "run", config=fake.config(fake.CONFIG.replace("[aggregation]", asked)))
    for arm in ("mean", "krum"):
        receipts = run.journal.received(arm, 2)
        received = [Update.from_bytes(receipt.open()) for receipt in receipts.values()]
        assert {(f, d) for u in received for f, d in zip(u.layout.formats, u.layout.dtypes, strict=True)} == {
            (format, "float32")
        }
        line = run.metrics.find(arm=arm, round=2)
        assert line["bytes_up"] == sum(fake.payload(receipt.path) for receipt in receipts.values())
        # in delta space the factors that come back are balanced ones, in which this learner's goal means little
        if space == "parameters":
            assert run.metrics.find(arm=arm, round=3)["loss"] < 0.4 * run.metrics.find(arm=arm, round=1)["loss"]
    found = Update.from_peft(tmp_path / "run" / "adapter")
    assert set(found.layout.formats) == set(found.layout.dtypes) == {"float32"}
    assert result(tmp_path / "run") == result(simulate(tmp_path / "again", config=run_config(tmp_path / "run")).path)


def run_config(folder: Path):
    """The configuration that a run folder keeps."""
    return fake.config((folder / "config.toml").read_text())


def test_a_client_whose_numbers_do_not_fit_the_format_is_named(tmp_path):
    class Far(fake.FakeLearner):
        def train(self, adapter, client, steps, seed, proximal_mu=0.0):
            update = super().train(adapter, client, steps, seed)
            tensors = {name: np.array(tensor) for name, tensor in update.tensors.items()}
            tensors[f"{fake.MODULE}.lora_B.weight"][1, 1] = 1e5
            return Update.from_tensors(
                tensors, client_id=client.id, scaling=update.scaling, base=update.base, num_examples=3
            )

    config = fake.config(fake.CONFIG.replace("[aggregation]", '[message]\nformat = "float16"\n[aggregation]'))
    with pytest.raises(RangeError, match=r"client 'client-0': tensor '.*lora_B.weight': .* float16; .*message.format"):
        simulate(tmp_path / "run", config=config, learner=Far())
