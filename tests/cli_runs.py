"""A configuration for tests of `fedcore run` on the few-numbers learner, and how a command is refused."""

from __future__ import annotations

import json
from pathlib import Path

import fake_learner as fake

from fedcore.cli import main
from fedcore.federation import simulation

ROWS = [
    {"text": f"number {i} is {'even' if i % 2 == 0 else 'odd'} and follows {i - 1} as ever", "kind": i % 2}
    for i in range(120)
]
CONFIG = """
[run]
seed = 1
rounds = 2
[model]
source = "fake"
[data]
source = "texts.jsonl"
questions = 4
[partition]
clients = 5
[[arms]]
name = "mean"
[[arms]]
name = "krum"
rule = "krum"
parameters = { f = 1 }
attack = { clients = 1, scale = 5.0 }
"""


def configured(folder: Path, monkeypatch) -> Path:
    """A configuration whose clients are the few-numbers learner."""
    monkeypatch.setattr(simulation, "QLoRALearner", lambda *_: fake.FakeLearner())
    (folder / "texts.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    path = folder / "own.toml"
    path.write_text(CONFIG)
    return path


def refused(capsys, *arguments: object, code: int = 1) -> str:
    """The lines of a refusal on stderr, each with its prefix; stdout is empty."""
    assert main([str(argument) for argument in arguments]) == code
    shown = capsys.readouterr()
    assert shown.out == ""
    lines = shown.err.splitlines()
    assert all(line.startswith("fedcore: ") for line in lines[-1:])
    assert "Traceback" not in shown.err
    return shown.err
