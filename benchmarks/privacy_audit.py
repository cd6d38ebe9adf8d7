"""Audits of the mechanisms: lower bounds on ε from what they give out, with the noise as claimed and half of it.

- neighbours (tests/oracles/privacy_audits.py): a million numbers of releases of central, local, distributed and
  correlated noise, with one client at the clip and without it, or with the opposite one (99.9 % confidence);
- one run: one whole release, or one run of rounds with correlated noise, of as many canaries as numbers, each a client
  with a spike of its own above the clip, there or not by a fair coin, whose most certain guesses count (Steinke, Nasr
  and Jagielski 2023; 95 % confidence).

Both must stay below the claimed ε where the noise is as claimed, and pass it where it is halved. Writes
results/privacy_audit.json, and exits with an error otherwise.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from measure import ROOT, require_green, save

import fedcore as fc
from fedcore.privacy.audit import guesses, one_run_epsilon

sys.path.insert(0, str(ROOT / "tests"))
from oracles.privacy_audits import AUDITS, DELTA, ROUNDS, SEPARATION, along, noise_for

DRAWS, CANARIES, GUESSED, Z = 1 << 20, 1 << 16, 1 << 11, 1.25


def central(rows: list[np.ndarray], z: float) -> np.ndarray:
    """Scores of the canaries after one release."""
    mechanism = fc.privacy.Central(clip=1.0, noise_multiplier=z, expected_clients=1)
    noise = noise_for(mechanism, mechanism.inputs_digest(rows, label="a round"), os.urandom(32), CANARIES)
    return mechanism.release(rows, noise, label="a round").mean


def correlated(rows: list[np.ndarray], z: float) -> np.ndarray:
    """Scores after all rounds, in which each canary is as often as the schema allows."""
    mechanism = fc.privacy.Correlated(1.0, z, 1, rounds=ROUNDS, separation=SEPARATION)
    with tempfile.TemporaryDirectory() as folder:
        rounds = fc.privacy.Rounds(Path(folder) / "rounds", mechanism.factor, CANARIES, sealing_key=os.urandom(32))
        digest = mechanism.inputs_digest(rounds)
        noise = noise_for(mechanism, digest, os.urandom(32), mechanism.dimension(CANARIES))
        score, nobody = np.zeros(CANARIES), [np.zeros(CANARIES, np.float32)]
        for t, weight in enumerate(along(mechanism)):
            sent = nobody if t % SEPARATION else rows
            names = [f"{t if t % SEPARATION else 'canary'} {i}" for i in range(len(sent))]
            score += weight * mechanism.release(sent, noise, rounds, t + 1, clients=names).mean
    return score


def one_run(scores: Callable[[list[np.ndarray], float], np.ndarray], share: float) -> dict[str, float]:
    """From one run. Canaries are views of one long buffer with a single spike, and take no memory."""
    buffer = np.zeros(2 * CANARIES - 1, np.float32)
    buffer[CANARIES - 1] = 10.0  # clipped to 1
    coins = np.frombuffer(os.urandom(CANARIES // 8), np.uint8)
    there = np.unpackbits(coins).astype(bool)
    rows = [buffer[CANARIES - 1 - i : 2 * CANARIES - 1 - i] for i in np.flatnonzero(there)]
    guessed = guesses(scores(rows, share * Z), GUESSED)
    correct = int(np.count_nonzero((guessed == 1) & there) + np.count_nonzero((guessed == -1) & ~there))
    bound = one_run_epsilon(CANARIES, GUESSED, correct, DELTA)
    return {"canaries": CANARIES, "guessed": GUESSED, "correct": correct, "epsilon at least": bound}


def main() -> None:
    require_green("the audit", "test_privacy_audit.py")
    shares = {"noise as claimed": 1.0, "half the noise": 0.5}
    results: dict[str, dict[str, dict[str, object]]] = {"neighbouring inputs": {}, "one run with canaries": {}}
    wrong = []

    def kept(kind: str, mode: str, z: float, claimed: float, found: dict[str, object], bounds: list[float]) -> None:
        results[kind][mode] = {"noise multiplier": z, "delta": DELTA, "claimed epsilon": claimed, **found}
        if not bounds[0] < claimed < bounds[1]:
            wrong.append(f"{mode}, {kind}: {bounds[0]:.2f} and {bounds[1]:.2f} beside {claimed:.2f}")

    for mode, audit in AUDITS.items():
        bounds = [audit.bound(share, DRAWS, os.urandom(32)) for share in shares.values()]
        found = {name: {"draws": DRAWS, "epsilon at least": b} for name, b in zip(shares, bounds, strict=True)}
        kept("neighbouring inputs", mode, audit.z, audit.claimed(audit.z, DRAWS), dict(found), bounds)
    claimed = fc.privacy.epsilon(noise_multiplier=Z, delta=DELTA)
    for scores in (central, correlated):
        runs = {name: one_run(scores, share) for name, share in shares.items()}
        bounds = [run["epsilon at least"] for run in runs.values()]
        kept("one run with canaries", scores.__name__, Z, claimed, dict(runs), bounds)
    save("privacy_audit", results, ("dp-accounting",), timed=False)
    if wrong:
        raise SystemExit(f"privacy_audit: {'; '.join(wrong)}")


if __name__ == "__main__":
    main()
