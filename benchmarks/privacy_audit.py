"""Audits of fc.privacy.Central: lower bounds on ε from what it gives out, with the noise as claimed and half of it.

- neighbours: a million draws of the integer sum with one client at the clip and without (99.9 % confidence);
- one run: one whole release of as many canaries as numbers, each a client with a spike of its own above the clip, there
  or not by a fair coin, whose most certain guesses count (Steinke, Nasr and Jagielski 2023; 95 % confidence).

Both must stay below the claimed ε where the noise is as claimed, and pass it where it is halved. Writes
results/privacy_audit.json, and exits with an error otherwise.
"""

from __future__ import annotations

import os

import numpy as np
from measure import require_green, save

import fedcore as fc
from fedcore.privacy.audit import guesses, neighbours_epsilon, one_run_epsilon
from fedcore.privacy.noise import draw

DRAWS, CANARIES, GUESSED, Z, DELTA = 1_000_000, 1 << 16, 1 << 12, 1.0, 1e-6


def neighbours(share: float) -> float:
    """From DRAWS integer sums of one number, whose noise is `share` of what is claimed."""
    moved = fc.ops.clip_round(np.ones(1, np.float32), 1.0)
    deviation, step = share * Z / moved.grid, int(moved.integers[0])
    without, present = (draw(DRAWS, deviation, os.urandom(32), "audit") for _ in range(2))
    return neighbours_epsilon(without, present + step, np.linspace(0, 6 * deviation, 60), DELTA)


def one_run(share: float) -> dict[str, float]:
    """From one release. Canaries are views of one long buffer with a single spike, and take no memory."""
    buffer = np.zeros(2 * CANARIES - 1, np.float32)
    buffer[CANARIES - 1] = 10.0  # clipped to 1
    coins = np.frombuffer(os.urandom(CANARIES // 8), np.uint8)
    there = np.unpackbits(coins).astype(bool)
    rows = [buffer[CANARIES - 1 - i : 2 * CANARIES - 1 - i] for i in np.flatnonzero(there)]
    mechanism = fc.privacy.Central(clip=1.0, noise_multiplier=share * Z, expected_clients=1)
    digest = mechanism.inputs_digest(rows, label="a round")
    noise = fc.privacy.Noise(os.urandom(32), digest, share * Z, CANARIES, 1, 0.0)
    guessed = guesses(mechanism.release(rows, noise, label="a round").mean, GUESSED)
    correct = int(np.count_nonzero((guessed == 1) & there) + np.count_nonzero((guessed == -1) & ~there))
    bound = one_run_epsilon(CANARIES, GUESSED, correct, DELTA)
    return {"canaries": CANARIES, "guessed": GUESSED, "correct": correct, "epsilon at least": bound}


def main() -> None:
    require_green("the audit", "test_privacy_audit.py")
    claimed = fc.privacy.epsilon(noise_multiplier=Z, delta=DELTA)
    results: dict[str, object] = {"noise multiplier": Z, "delta": DELTA, "claimed epsilon": claimed}
    wrong = []
    for name, share in (("noise as claimed", 1.0), ("half the noise", 0.5)):
        both, one = neighbours(share), one_run(share)
        results[name] = {"neighbours, epsilon at least": both, "one run": one}
        bounds = both, float(one["epsilon at least"])
        wrong += [f"{name}: {bound:.2f}" for bound in bounds if (bound < claimed) != (share == 1)]
    save("privacy_audit", results, ("dp-accounting",))
    if wrong:
        raise SystemExit(f"privacy_audit: beside a claimed epsilon of {claimed:.2f}: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
