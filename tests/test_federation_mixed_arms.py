"""A run of open, masked and private arms, as the demo is: what repeats under one seed, what outlives the journal."""

from __future__ import annotations

import importlib
import time
from pathlib import Path

import fake_learner as fake
import pytest

from fedcore.federation.config_file import parse_config
from fedcore.federation.folder import RunFolder
from fedcore.federation.simulation import run_arms
from fedcore.report.html import page

CONFIG = """
[run]
seed = 0
rounds = 2
[model]
source = "fake"
[partition]
clients = 5
[aggregation]
rule = "mean"
space = "parameters"
[[arms]]
name = "open"
[[arms]]
name = "masked"
secure = true
[[arms]]
name = "private"
method = "fedsb"
[privacy]
arms = ["private"]
epsilon = 8.0
delta = 1e-3
clip = 0.1
"""


@pytest.fixture(scope="module")
def twice(tmp_path_factory: pytest.TempPathFactory) -> list[RunFolder]:
    folder = tmp_path_factory.mktemp("mixed")
    for name in "ab":
        learner = fake.FakeLearner()
        run_arms(parse_config(CONFIG, "c.toml"), fake.texts(), learner, folder / name, resume=False)
    return [RunFolder.read(folder / name) for name in "ab"]


def test_one_seed_repeats_every_arm_but_the_private_one(twice):
    for arm in ("open", "masked", "private"):
        for number in (1, 2):
            one, other = (folder.ledger.find(arm=arm, round=number)["output"] for folder in twice)
            assert (one == other) == (arm != "private"), (arm, number)
    losses = [[folder.metrics.find(arm=arm, round=2)["loss"] for arm in ("open", "masked")] for folder in twice]
    assert losses[0] == losses[1]


def test_the_demos_benchmark_counts_the_aggregation_of_every_arm(twice, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    lines = importlib.import_module("bench_demo").timed_lines(twice[1].path)
    for arm in ("open", "masked", "private"):
        assert [line["seconds"]["aggregation"] > 0 for line in lines if line["arm"] == arm] == [True, True], arm
    assert lines[-1]["seconds"]["evaluation"] == twice[1].metrics.entries[-1]["seconds"]["evaluation"]


def messages(folder: Path, arm: str) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob(f"{arm}/round-*/*.safetensors")}


def test_messages_of_open_arms_stay_and_those_of_private_arms_expire(twice):
    folder = twice[0]
    assert {name.split("/")[0] for name in messages(folder.path, "open")} == {"updates"}
    assert {"/".join(name.split("/")[:2]) for name in messages(folder.path, "private")} == {"private/updates"}
    held = messages(folder.path, "open")
    assert len(held) == 10
    later = time.time() + 31 * 86400
    assert folder.private.expire(30, finished=True, released=lambda arm, number: True, now=later) > 0
    assert messages(folder.path, "open") == held
    assert not messages(folder.path, "private")
    assert folder.journal.received("open", 2).keys() == {f"client-{i}" for i in range(5)}
    where = "updates/ and arms/ (updates of private arms are in private/updates/, until they expire)"
    assert f"from the bytes in {where}" in page(folder)
