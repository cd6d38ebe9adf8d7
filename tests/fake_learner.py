"""A learner of a few numbers, for tests of rounds, journal and resumption without a model.

"Training" moves the adapter towards a number of the client's own; "evaluation" is the distance to
another. Everything is deterministic, in NumPy, and takes microseconds.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np

from fedcore.clients.settings import Metrics
from fedcore.federation.config_file import parse_config
from fedcore.federation.data import Client, Texts
from fedcore.federation.simulation import run_arms
from fedcore.updates import Update

MODULE = "base_model.model.layer"
CONFIG = """
[run]
seed = 5
rounds = 3
[model]
source = "fake"
[partition]
clients = 5
[aggregation]
rule = "mean"
[[arms]]
name = "mean"
[[arms]]
name = "poisoned"
attack = { clients = 1, scale = 5.0 }
[[arms]]
name = "krum"
rule = "krum"
parameters = { f = 1 }
attack = { clients = 1, scale = 5.0 }
"""


def config(text: str = CONFIG):
    return parse_config(text, "fake.toml")


def texts(clients: int = 5) -> Texts:
    made = tuple(
        Client(f"client-{i}", tuple(f"text {i}.{k}" for k in range(3 + i)), {"a": 3 + i}) for i in range(clients)
    )
    return Texts(made, (), ("held out",), ())


class FakeLearner:
    base, source, digest = "fake", "nowhere", "f" * 64

    def __init__(self) -> None:
        self.trained: list[str] = []
        self.options: list[dict[str, Any]] = []
        self.sides: list[Update | None] = []

    def initial(self) -> Update:
        return self._update(np.zeros((6, 2), np.float32), np.ones((2, 4), np.float32), "", 1)

    def train(
        self, adapter: Update, client: Client, steps: int, seed: int, proximal_mu: float = 0.0, **options: Any
    ) -> Update:
        self.trained.append(client.id)
        self.options.append(options)
        b = np.array(adapter.tensors[f"{MODULE}.lora_B.weight"])
        a = np.array(adapter.tensors[f"{MODULE}.lora_A.weight"])
        noise = np.random.default_rng(seed).normal(0, 0.05, b.shape).astype(np.float32)
        goal = np.float32(1 + 0.01 * int(client.id.rpartition("-")[2]))
        trains = options.get("trains", ("b",))
        moved = b + np.float32(0.3) * (goal - b) + noise if "b" in trains else b
        turned = a + noise[: len(a), :1] if "a" in trains and options else a
        if "core" in trains:
            left = np.array(options["fixed"].tensors[f"{MODULE}.lora_B.weight"])
            moved = b + left @ noise[: len(a)]
        return self._update(moved, turned, client.id, len(client.texts), adapter.scaling[MODULE])

    def weights(self) -> dict[str, np.ndarray]:
        return {MODULE: np.random.default_rng(3).normal(0, 1, (6, 4)).astype(np.float32)}

    def evaluate(self, adapter: Update | None, side: Update | None = None) -> Metrics:
        self.sides.append(side)
        b = (adapter or self.initial()).tensors[f"{MODULE}.lora_B.weight"]
        loss = float(np.mean((np.asarray(b, np.float64) - 1.02) ** 2))
        return Metrics(loss, float(np.exp(min(loss, 700.0))), 0.5)

    def _update(self, b: np.ndarray, a: np.ndarray, client_id: str, count: int, scale: float = 2.0) -> Update:
        return Update.from_tensors(
            {f"{MODULE}.lora_A.weight": a, f"{MODULE}.lora_B.weight": b},
            scaling={MODULE: scale},
            base=self.digest,
            client_id=client_id,
            num_examples=count,
            adapter_config={"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["layer"]},
        )


class HalfLearner(FakeLearner):
    """One whose adapters hold fp16."""

    def _update(self, b: np.ndarray, a: np.ndarray, *others: Any) -> Update:
        return super()._update(b.astype(np.float16), a.astype(np.float16), *others)


def payload(path: Path) -> int:
    """Bytes of a message without its header, whose length safetensors writes in front of it."""
    data = path.read_bytes()
    return len(data) - 8 - int.from_bytes(data[:8], "little")


def run_and_die(folder: str, syncs: int) -> None:
    """Run in `folder`, going on with what lies there, and die by SIGKILL at the given call of os.fsync."""
    real, calls = os.fsync, 0

    def fsync(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls == syncs:
            os.kill(os.getpid(), signal.SIGKILL)
        real(descriptor)

    os.fsync = fsync
    run_arms(config(), texts(), FakeLearner(), Path(folder), resume=Path(folder).exists())


if __name__ == "__main__":
    run_and_die(sys.argv[1], int(sys.argv[2]))
