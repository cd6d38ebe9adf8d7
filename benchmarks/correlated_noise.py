"""The error of sums of rounds under correlated noise, beside independent noise at the same ε: measured on releases.

Every mechanism releases all its rounds of empty updates, so that what comes out is its noise. Root mean square, over
all rounds t and numbers, of the noise on the sum of the first t rounds, in clips: of correlated noise with the best
bands, of independent noise for the same schema, and of rounds charged one by one, which know of no schema. Seconds of
one round's noise at a million numbers come beside it, the first time and after a restart in the middle. Writes
results/correlated_noise.json.
"""

from __future__ import annotations

import math
import os
import tempfile
import time
from pathlib import Path

import numpy as np
from measure import require_green, save

import fedcore as fc
from fedcore.privacy.noise_rows import NoiseRows

PLANS, SIZE, LONG = ((100, 10), (100, 100), (400, 20)), 10_000, 1_000_000
#: noise multiplier of the whole run
Z, DELTA = 1.0, 1e-5


def measured(mechanism: fc.privacy.Correlated) -> float:
    """Root mean square of the noise on sums of means, on SIZE numbers and all rounds."""
    with tempfile.TemporaryDirectory() as folder:
        rounds = fc.privacy.Rounds(Path(folder) / "rounds", mechanism.factor, SIZE, sealing_key=os.urandom(32))
        digest = mechanism.inputs_digest(rounds)
        noise = fc.privacy.Noise(os.urandom(32), digest, Z, mechanism.dimension(SIZE), 1, 0.0)
        total, squares, nothing = np.zeros(SIZE), [], [np.zeros(SIZE, np.float32)]
        for t in range(1, mechanism.rounds + 1):
            total += mechanism.release(nothing, noise, rounds, t, clients=[str(t)]).mean
            squares.append(float((total**2).mean()))
    return math.sqrt(float(np.mean(squares)))


def compared(rounds: int, separation: int) -> dict[str, float]:
    best, independent = (
        fc.privacy.Correlated(1.0, Z, 1, rounds=rounds, separation=separation, bands=bands) for bands in (None, 1)
    )
    found = {"correlated": measured(best), "independent": measured(independent)}
    # T charges at a multiplier of √T each cost what one of 1 does
    one_by_one = Z * math.sqrt(rounds * (rounds + 1) / 2)
    return {
        "bands": best.factor.bands,
        "sensitivity, clips": best.factor.sensitivity,
        **found,
        "correlated, predicted": best.factor.error,
        "independent, predicted": independent.factor.error,
        "independent, times correlated": found["independent"] / found["correlated"],
        "rounds charged one by one, predicted": one_by_one,
    }


def seconds() -> dict[str, float]:
    """Of round 50 of 100 at LONG numbers: after round 49, and after a restart."""
    factor = fc.privacy.Correlated(1.0, Z, 1, rounds=100, separation=10).factor
    found, deviation = {}, factor.sensitivity * 64 * 50 * math.sqrt(LONG)
    rows = NoiseRows(factor, LONG, deviation, os.urandom(32), "chacha20")
    start = time.perf_counter()
    rows.row(48)
    found["49 rows, after a restart"] = time.perf_counter() - start
    start = time.perf_counter()
    rows.row(49)
    found["the next row"] = time.perf_counter() - start
    return found


def main() -> None:
    require_green("correlated noise", "test_privacy_correlated.py")
    claimed = fc.privacy.epsilon(noise_multiplier=Z, delta=DELTA)
    results: dict[str, object] = {"numbers": SIZE, "epsilon": claimed, "delta": DELTA}
    for rounds, separation in PLANS:
        results[f"{rounds} rounds, {separation} apart"] = compared(rounds, separation)
    results[f"seconds, {LONG} numbers"] = seconds()
    save("correlated_noise", results, ("dp-accounting",), timed=False)


if __name__ == "__main__":
    main()
