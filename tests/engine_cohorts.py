"""Clients that tests of fc.aggregate share: LoRA adapters of two modules with a head in fp16."""

from __future__ import annotations

import numpy as np

import fedcore as fc

SPACES = ["delta", "parameters"]


def client(seed: int, *, rank: int = 2, scale: float = 2.0, base: str | None = "model", dtype=np.float32) -> fc.Update:
    """A LoRA adapter of two modules with an fp16 head: two dtypes, so two tables."""
    rng = np.random.default_rng(seed)
    tensors = {
        "a.lora_A.weight": rng.standard_normal((rank, 6)).astype(dtype),
        "a.lora_B.weight": rng.standard_normal((9, rank)).astype(dtype),
        "b.lora_A.weight": rng.standard_normal((rank, 5)).astype(dtype),
        "b.lora_B.weight": rng.standard_normal((4, rank)).astype(dtype),
        "head.weight": rng.standard_normal((3, 4)).astype(np.float16),
    }
    scaling = {"a": scale, "b": scale}
    return fc.Update.from_tensors(tensors, num_examples=seed + 1, client_id=f"c{seed}", scaling=scaling, base=base)


def changed(update: fc.Update, name: str, value: float, element: int = 0) -> fc.Update:
    tensors = {key: np.array(t) for key, t in update.tensors.items()}
    tensors[name].reshape(-1)[element] = value
    return fc.Update.from_tensors(
        tensors, num_examples=update.num_examples, client_id=update.client_id, scaling=update.scaling, base=update.base
    )


def row(update: fc.Update) -> np.ndarray:
    return np.concatenate([np.asarray(t, np.float64).ravel() for t in update.tensors.values()])


CLIENTS = [client(i) for i in range(6)]
