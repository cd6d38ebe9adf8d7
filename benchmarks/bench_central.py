"""A whole release of fc.privacy.Central beside Flower's fixed clipping with its float noise: 10 million numbers, z = 1.

Flower: aggregate_train of its server-side strategy around FedAvg, from records in memory to records: clip, mean,
noise. It runs on one thread. fedcore, from the same vectors: `release` checks that the noise was reserved for these
inputs (their SHA-256), clips, rounds to the default grid, adds discrete Gaussian noise, divides, and hashes what
comes out; `inputs_digest` before it is what a budget reserves for.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
from inputs import rows
from measure import alternate, require_green, save
from peers import flower_messages, flower_private

import fedcore as fc
from fedcore.ops.rows import available_cores

D, Z, CLIP, ROUNDS = 10_000_000, 1.0, 1.0, 7


def release(vectors: list[np.ndarray], stream: str, threads: int, reserving: bool = False) -> Callable[[], object]:
    mechanism = fc.privacy.Central(CLIP, Z, len(vectors), stream=stream)
    known = mechanism.inputs_digest(vectors, label="a round")

    def work() -> object:
        os.environ["FEDCORE_NUM_THREADS"] = str(threads)
        digest = mechanism.inputs_digest(vectors, label="a round") if reserving else known
        return mechanism.release(
            vectors, fc.privacy.Noise(os.urandom(32), digest, Z, D, 1, 0.0, stream=stream), label="a round"
        )

    return work


def compared(n: int) -> dict[str, object]:
    vectors = rows(n, D)
    works = {"Flower, float noise": flower_private(flower_messages(vectors, [1] * n), D, Z, CLIP)}
    for threads in sorted({1, available_cores()}):
        for stream, name in (("aes256ctr", "AES-256-CTR"), ("chacha20", "ChaCha20")):
            on = f"{name}, {threads} thread{'s' * (threads > 1)}"
            works[f"release, {on}"] = release(vectors, stream, threads)
            works[f"inputs_digest and release, {on}"] = release(vectors, stream, threads, reserving=True)
    times = alternate(works, ROUNDS)
    flower = times["Flower, float noise"]["median"]
    return {
        name: t if name.startswith("Flower") else {**t, "times Flower's": flower / t["median"]}
        for name, t in times.items()
    }


def main() -> None:
    require_green("Central", "test_privacy_central.py")
    results: dict[str, object] = {"numbers": D, "noise multiplier": Z}
    for n in (1, 4):
        results[f"{n} client{'s' * (n > 1)} of {D} numbers"] = compared(n)
    save("central", results, ("flwr",))


if __name__ == "__main__":
    main()
