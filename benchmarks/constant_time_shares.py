"""Does the time of Shamir's shares and of masks depend on secrets? The t-test of constant_time.py, between one input
and a fresh one for each call: secrets that are split, shares that are combined, keys of masks.

|t| above 4.5 says that the times differ. Products by a table of logarithms that leave out zeros, as a plain
implementation has them, are the control: the test must find them. Writes results/constant_time_shares.json.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
from constant_time import LIMIT, compare, key_of
from measure import save

import fedcore as fc
from fedcore.native import isa_available

CALLS = 30_000
SHARES, THRESHOLD, LENGTH = 20, 12, 320


def bytes_of(shape: tuple[int, ...]) -> Callable[[int], np.ndarray]:
    """Zeros or random bytes; both are made in the same way."""

    def inputs(which: int) -> np.ndarray:
        fresh = os.urandom(int(np.prod(shape)))
        return np.frombuffer((bytes(len(fresh)), fresh)[which], np.uint8).reshape(shape).copy()

    return inputs


def logarithms(secret: np.ndarray) -> int:
    """The control: a branch for each byte that is 0."""
    return sum(byte * 3 % 255 for byte in secret.ravel().tolist() if byte)


def measured(isa: str) -> dict[str, float]:
    os.environ["FEDCORE_ISA"] = isa
    points, values = np.arange(THRESHOLD) + 1, np.zeros(1000, np.uint32)
    found = {
        "split": compare(
            lambda given: fc.ops.shamir_split(given, THRESHOLD, SHARES, bytes(32)), bytes_of((1, LENGTH)), CALLS
        ),
        "combine": compare(lambda given: fc.ops.shamir_combine(points, given), bytes_of((THRESHOLD, 1, LENGTH)), CALLS),
    }
    for stream in ("chacha20", "aes256ctr") if isa != "ref" else ("chacha20",):
        found[f"mask_add, {stream}"] = compare(
            lambda key, s=stream: fc.ops.mask_add(values, [key], [1], 26, stream=s, threads=1), key_of, CALLS
        )
    return {f"{isa}, {name}": t for name, t in found.items()}


def main() -> None:
    found: dict[str, float] = {}
    for isa in isa_available():
        found |= measured(isa)
    control = compare(logarithms, bytes_of((1, LENGTH)), CALLS)
    save("constant_time_shares", {"calls": CALLS, "limit": LIMIT, "t": found, "t of the control": control})
    beyond = [name for name, t in found.items() if abs(t) > LIMIT]
    if beyond:
        raise SystemExit(f"constant_time_shares: {', '.join(beyond)} beyond |t| = {LIMIT}; see the result file")
    if abs(control) <= LIMIT:
        raise SystemExit("constant_time_shares: the control was not found, so the test says nothing on this machine")


if __name__ == "__main__":
    main()
