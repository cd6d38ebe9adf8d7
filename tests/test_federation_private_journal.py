"""What a run writes, keeps and deletes, on a disk that may lose power: kept on it, and gone from it."""

from __future__ import annotations

import os

import fake_learner as fake
import pytest
from private_runs import SMALL, config, run

from fedcore.federation.private_journal import PrivateJournal
from fedcore.federation.simulation import run_arms


def journal(path):
    """A private journal with a message and the facts of two rounds, all of them long ago."""
    folder = path / "private"
    files = [folder / "secret", *(folder / f"rounds/one-00{n}.json" for n in (1, 2)), folder / "turns/one/rounds"]
    files += [folder / f"updates/one/round-00{n}/client-{n}.safetensors" for n in (1, 2)]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"private")
        os.utime(file, (0, 0))
    return PrivateJournal(path), files


@pytest.mark.parametrize("finished", [True, False])
def test_what_expired_is_gone_from_the_disk(tmp_path, disk, finished):
    made, files = journal(tmp_path)
    disk.settle()
    assert made.expire(30, finished=finished, released=lambda arm, number: number == 1) == (5 if finished else 3)
    assert sum(file.exists() for file in files) == (1 if finished else 3)
    assert disk.lost == []


def test_a_destroyed_secret_is_gone_from_the_disk(tmp_path, disk):
    made, (secret, *_) = journal(tmp_path)
    disk.settle()
    made.destroy_secret()
    assert not secret.exists()
    assert disk.lost == []


ONE = fake.CONFIG[: fake.CONFIG.index("[[arms]]", fake.CONFIG.index("mean"))].replace("rounds = 3", "rounds = 1")


def test_all_that_an_open_run_says_is_on_the_disk(tmp_path, disk):
    run_arms(fake.config(ONE), fake.texts(), fake.FakeLearner(), tmp_path / "runs/run", resume=False)
    assert disk.torn == []
    assert disk.lost == []


def test_all_that_a_private_run_says_is_on_the_disk(tmp_path, disk):
    pytest.importorskip("dp_accounting", reason="budgets need dp-accounting, of the extra `train`")
    run(tmp_path / "runs/run", config(SMALL + 'mode = "local"\n', rounds=1))
    assert disk.torn == []
    assert disk.lost == []
