"""Cohorts of adapters that tests of delta space share: mixed ranks and scales, and clients near a reference."""

from __future__ import annotations

import numpy as np

from fedcore import Cohort, Update
from fedcore.dtypes import round_from_float64
from fedcore.lora.executor import DeltaExecutor

#: module -> (d_out, d_in): wide, tall, and with the clients' highest rank for its smaller side
SHAPES = {"up": (24, 10), "down": (7, 30), "tiny": (5, 4)}


def adapter(
    rng: np.random.Generator,
    client: str,
    rank: int = 3,
    scale: float = 2.0,
    dtype: str = "float32",
    head: bool = False,
    examples: int = 1,
) -> Update:
    tensors = {}
    for module, (d_out, d_in) in SHAPES.items():
        tensors[f"{module}.lora_A.weight"] = round_from_float64(rng.standard_normal((rank, d_in)), dtype)
        tensors[f"{module}.lora_B.weight"] = round_from_float64(rng.standard_normal((d_out, rank)), dtype)
    if head:
        tensors["head.weight"] = round_from_float64(rng.standard_normal((4, 5)), dtype)
    scaling = dict.fromkeys(SHAPES, scale)
    return Update.from_tensors(tensors, num_examples=examples, client_id=client, scaling=scaling)


def mixed_cohort(seed: int, n: int = 7, head: bool = True) -> list[Update]:
    """Ranks from 1 to 4, scales from 0.5 to 3, and dense tensors beside the factors."""
    rng = np.random.default_rng(seed)
    return [
        adapter(rng, f"c{i}", int(rng.integers(1, 5)), float(rng.uniform(0.5, 3)), head=head, examples=i + 1)
        for i in range(n)
    ]


def near_cohort(seed: int, n: int = 7, change: float = 1e-3) -> tuple[list[Update], Update]:
    """(clients, reference): clients a small step away from the reference adapter; the last is an attacker."""
    rng = np.random.default_rng(seed)
    reference = adapter(rng, "ref", head=True)
    clients = []
    for i in range(n):
        step = change * (1000 if i == n - 1 else 1)
        tensors = {
            name: (t + step * rng.standard_normal(t.shape)).astype(np.float32) for name, t in reference.tensors.items()
        }
        clients.append(Update.from_tensors(tensors, num_examples=i + 1, client_id=f"c{i}", scaling=reference.scaling))
    return clients, reference


def executor_of(updates, reference=None, with_reference=False) -> DeltaExecutor:
    names = [f"client {u.client_id!r}" for u in updates]
    return DeltaExecutor.from_cohort(
        Cohort(updates), {"reference": reference} if with_reference else {}, names, backend=None, threads=1
    )
