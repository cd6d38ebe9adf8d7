"""Whole runs of the fake learner: made or stopped, and what of them must be equal when one is repeated."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import fake_learner as fake

from fedcore.federation.folder import RunFolder
from fedcore.federation.simulation import run_arms


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


class Stopping(fake.FakeLearner):
    """Ctrl+C while a client trains, after so many trainings."""

    def __init__(self, after: int):
        super().__init__()
        self.after = after

    def train(self, *arguments):
        if len(self.trained) == self.after:
            raise KeyboardInterrupt
        return super().train(*arguments)
