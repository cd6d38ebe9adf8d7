"""Attacks on each mechanism with the real kernels: what an observer scores in many runs on two neighbouring inputs.

Numbers of one release have noises of their own, so that a release of `draws` numbers without any client in it is as
many runs on one number; the client that is there, or was replaced, moves each by what its clip allows.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import fedcore as fc
from fedcore.privacy import Central, Correlated, Distributed, Noise, Rounds
from fedcore.privacy.audit import neighbours_epsilon
from fedcore.privacy.seal import derived

DELTA = 1e-6
#: rounds of a run with correlated noise, and how far apart those of a client are
ROUNDS, SEPARATION = 4, 2
#: clients of a distributed sum: all, the fewest in it, those that leave their noise out
CLIENTS, FEWEST, CORRUPT = 5, 4, 1

Pair = tuple[np.ndarray, np.ndarray]


def noise_for(mechanism: Central | Correlated, digest: str, key: bytes, samples: int) -> Noise:
    """As a budget gives it."""
    return Noise(derived(key, digest), digest, mechanism.noise_multiplier, samples, 1, 0.0)


def released(z: float, draws: int, key: bytes, label: str) -> np.ndarray:
    """Noise of one central or local release, in clips."""
    mechanism, rows = Central(1.0, z, expected_clients=1), [np.zeros(draws, np.float32)]
    noise = noise_for(mechanism, mechanism.inputs_digest(rows, label=label), key, draws)
    return mechanism.release(rows, noise, label=label).mean


def central(z: float, draws: int, key: bytes) -> Pair:
    """A client at the clip, there or not."""
    return released(z, draws, key, "without"), released(z, draws, key, "present") + 1


def local(z: float, draws: int, key: bytes) -> Pair:
    """One client's own message: a change of one clip, or the opposite one."""
    return released(z, draws, key, "one") - 1, released(z, draws, key, "other") + 1


def distributed(z: float, draws: int, key: bytes) -> Pair:
    """The sum that a server sees, of the fewest clients, the corrupt ones without noise; a client there or zero."""
    mechanism = distributed_of(z, draws)
    found = []
    for case in ("without", "present"):
        total = np.zeros(mechanism.padded, np.uint32)
        for client in range(FEWEST - CORRUPT):
            total += mechanism.encode(np.zeros(draws, np.float32), derived(key, f"{case} {client}"))
        lifted = (total & np.uint32(mechanism.modulus - 1)).astype(np.int64)
        lifted -= mechanism.modulus * (lifted >= mechanism.modulus // 2)
        found.append(lifted[:draws] * mechanism.step)
    return found[0], found[1] + 1


def distributed_of(z: float, draws: int) -> Distributed:
    return Distributed(1.0, z, CLIENTS, FEWEST, CORRUPT, draws, bytes(32))


def correlated(z: float, draws: int, key: bytes) -> Pair:
    """All rounds of a run, a client in each that the schema allows or in none, along what it moves them by."""
    found, mechanism = [], Correlated(1.0, z, 1, rounds=ROUNDS, separation=SEPARATION)
    for case in ("without", "present"):
        with tempfile.TemporaryDirectory() as folder:
            rounds = Rounds(Path(folder) / "rounds", mechanism.factor, draws, sealing_key=bytes(32))
            digest = mechanism.inputs_digest(rounds)
            noise = noise_for(mechanism, digest, derived(key, case), mechanism.dimension(draws))
            nobody, score = [np.zeros(draws, np.float32)], np.zeros(draws)
            for t, weight in enumerate(along(mechanism), 1):
                score += weight * mechanism.release(nobody, noise, rounds, t, clients=[f"nobody {t}"]).mean
            found.append(score)
    return found[0], found[1] + 1


def along(mechanism: Correlated) -> np.ndarray:
    """(T,) weights of the released sums: CᵀCμ / ‖Cμ‖², where C has white noise and a client moves the sums by μ."""
    padded = [*mechanism.factor.coefficients, *[0] * ROUNDS]
    c = np.array([[padded[t - i] if t >= i else 0 for i in range(ROUNDS)] for t in range(ROUNDS)], float)
    moved = c[:, ::SEPARATION].sum(1)
    return c.T @ moved / (moved @ moved)


@dataclass(frozen=True)
class Audit:
    """runs: (noise multiplier, draws, key) -> scores; z: as claimed, at which `claimed` is the ε at DELTA."""

    runs: Callable[[float, int, bytes], Pair]
    z: float
    claimed: Callable[[float, int], float]

    def bound(self, share: float, draws: int, key: bytes) -> float:
        """What ε is at least, where noise is `share` of what is claimed."""
        z = share * self.z
        return neighbours_epsilon(*self.runs(z, draws, key), np.linspace(-1, 6 * z, 60), DELTA)


def of_gaussian(neighbours: str) -> Callable[[float, int], float]:
    def claimed(z: float, _: int) -> float:
        return fc.privacy.epsilon(noise_multiplier=z, delta=DELTA, sampling="none", neighbours=neighbours)

    return claimed


AUDITS = {
    "central": Audit(central, 1.5, of_gaussian("add_remove")),
    "local": Audit(local, 3.0, of_gaussian("replace_one")),
    "distributed": Audit(distributed, 2.0, lambda z, draws: distributed_of(z, draws).epsilon(DELTA)),
    "correlated": Audit(correlated, 1.5, of_gaussian("add_remove")),
}
