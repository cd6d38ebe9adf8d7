"""Runs with correlated noise, outside a federation."""

from __future__ import annotations

import numpy as np

from fedcore.privacy import Correlated, Noise, Rounds

KEY = bytes(range(32))


def run_of(mechanism: Correlated, folder, size: int, key: bytes = KEY) -> tuple[Rounds, Noise]:
    rounds = Rounds(folder / "run", mechanism.factor, size, sealing_key=KEY)
    needed = mechanism.dimension(size)
    return rounds, Noise(key, mechanism.inputs_digest(rounds), mechanism.noise_multiplier, needed, 2, 1.5)


def vectors(n: int, d: int, seed: int) -> list[np.ndarray]:
    return [0.1 * row for row in np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)]
