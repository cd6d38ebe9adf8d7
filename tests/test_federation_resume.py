"""Runs killed, interrupted or damaged and resumed to the same bytes; what cannot go on or be held says so."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import fake_learner as fake
import pytest
from fake_runs import Stopping, result, simulate

from fedcore.errors import ConfigError, FormatError, LayoutError, MissingError, StorageError
from fedcore.federation.folder import RunFolder


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    simulate(folder)
    return folder


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
        (OSError(errno.ENOLCK, "No locks available"), r"config\.toml: cannot be locked \(No locks available\); "),
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
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(asked[0])
    assert folder._lock is None


@pytest.mark.parametrize("shorter", [True, False])
def test_a_folder_whose_log_was_damaged_meanwhile_is_given_free(whole, tmp_path, shorter):
    shutil.copytree(whole, tmp_path / "run")
    folder = RunFolder.read(tmp_path / "run")
    log, known = folder.metrics.path, folder.metrics.path.read_bytes()
    log.write_bytes(b"[]\n" if shorter else known + b"[]\n")
    said = ": is shorter than it was" if shorter else rf":{len(known.splitlines()) + 1}: "
    with pytest.raises(FormatError, match=rf"metrics\.jsonl{said}"):
        folder.hold()
    log.write_bytes(known)
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
