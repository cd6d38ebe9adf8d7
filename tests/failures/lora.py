"""Averages of LoRA adapters that are not the average of what the models see."""

from __future__ import annotations

import numpy as np

import fedcore as fc
from failures.finding import Finding
from fedcore.attacks.attack import flat
from fedcore.dtypes import to_float64

SQUARE = 6


def adapters(scales: tuple[float, ...], rank: int = 4) -> list[fc.Update]:
    """Adapters of a square module with two ranks of content each, so that the mean of two fits in the rank."""
    made = []
    for i, scale in enumerate(scales):
        draw = np.random.default_rng(i)
        a, b = np.zeros((rank, SQUARE)), np.zeros((SQUARE, rank))
        a[2 * i : 2 * i + 2], b[:, 2 * i : 2 * i + 2] = draw.normal(size=(2, SQUARE)), draw.normal(size=(SQUARE, 2))
        tensors = {"m.lora_A.weight": a.astype(np.float32), "m.lora_B.weight": b.astype(np.float32)}
        made.append(fc.Update.from_tensors(tensors, scaling={"m": scale}, client_id=str(i), num_examples=1))
    return made


def parts(update: fc.Update) -> tuple[np.ndarray, np.ndarray, float]:
    a, b = (to_float64(update.tensors[f"m.lora_{x}.weight"]) for x in "AB")
    return a, b, update.scaling["m"]


def true_mean(updates: list[fc.Update]) -> np.ndarray:
    return np.mean([s * b @ a for a, b, s in map(parts, updates)], axis=0)


def lora_error(found: np.ndarray, updates: list[fc.Update]) -> Finding:
    exact = true_mean(updates)
    error = float(np.linalg.norm(found - exact) / np.linalg.norm(exact))
    return f"error {100 * error:.2g} % of the mean update", error > 1e-4


def mean_here(scales: tuple[float, ...]) -> Finding:
    updates = adapters(scales)
    a, b, s = parts(fc.aggregate(updates, fc.rules.Mean()).update)
    return lora_error(s * b @ a, updates)


def transposed_residual() -> Finding:
    """mean(B)·mean(A) and the residual added as Conv1D holds it: transposed."""
    updates = adapters((1.0, 1.0))
    a, b = (np.mean([parts(u)[k] for u in updates], axis=0) for k in (0, 1))
    residual = true_mean(updates) - b @ a
    return lora_error(b @ a + residual.T, updates)


def without_scales() -> Finding:
    """The mean of B·A; the scale of the first client is put on it afterwards."""
    updates = adapters((2.0, 0.5))
    return lora_error(parts(updates[0])[2] * np.mean([b @ a for a, b, _ in map(parts, updates)], axis=0), updates)


def fixed_scales() -> Finding:
    """The mean of 16/r · B·A whatever alpha the clients have."""
    updates = adapters((2.0, 2.0))
    return lora_error(np.mean([16 / len(a) * b @ a for a, b, _ in map(parts, updates)], axis=0), updates)


def only_the_first() -> Finding:
    """An average that is kept under another name than the one that is read: the first client's adapter stays."""
    rows = [flat(u) for u in adapters((1.0, 1.0))]
    share = float(np.linalg.norm(rows[0] - np.mean(rows, axis=0)) / np.linalg.norm(np.mean(rows, axis=0)))
    return f"the first client's adapter, {100 * share:.2g} % off the mean", share > 1e-6


def all_of_them() -> Finding:
    updates = adapters((1.0, 1.0))
    result = fc.aggregate(updates, fc.rules.Mean(), "parameters")
    share = float(np.abs(flat(result.update) - np.mean([flat(u) for u in updates], axis=0)).max())
    return f"coefficients {list(result.coefficients.values())}", share > 1e-6
