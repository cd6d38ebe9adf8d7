"""Does the time of discrete_gaussian depend on what is drawn? Welch's t-test between two classes of inputs (dudect:
Reparaz, Balasch and Verbauwhede, DATE 2017), whose calls come in random order.

    outcomes   a table whose every comparison fails against one whose every comparison holds: all draws 0 against all
               draws the largest, which reach the first against the last entry of every look-up
    ties       a table of which eight first words are drawn, as many ties as have words, against one of which none is
    keys       one key against a fresh key for each call

|t| above 4.5 says that the times differ. A look-up by binary search, which is not constant time, is the control: the
test must find it. Writes results/constant_time.json.
"""

from __future__ import annotations

import math
import os
import random
import time
from collections.abc import Callable
from fractions import Fraction

import numpy as np
from measure import save

from fedcore.gaussian_table import TIES, GaussianTable, gaussian_table, nonce_of
from fedcore.native import isa_available
from fedcore.native.discrete_gaussian import discrete_gaussian
from fedcore.ops import keystream

SIZE, CALLS, LIMIT = 2048, 100_000, 4.5
KEY = bytes(range(32))


def welch(classes: list[list[int]]) -> float:
    """t of two lists of times, of the lower nine tenths of all of them: interrupts only lengthen calls."""
    cut = np.quantile(np.concatenate(classes), 0.9)
    a, b = (np.array([x for x in times if x <= cut], float) for times in classes)
    return float((a.mean() - b.mean()) / math.sqrt(a.var() / len(a) + b.var() / len(b)))


def compare(work: Callable[[object], object], inputs: Callable[[int], object], calls: int = CALLS) -> float:
    """t between inputs(0) and inputs(1), each made before the clock starts."""
    classes: list[list[int]] = [[], []]
    for turn in range(calls):
        which = random.getrandbits(1)
        given = inputs(which)
        start = time.perf_counter_ns()
        work(given)
        took = time.perf_counter_ns() - start
        if turn > calls // 20:
            classes[which].append(took)
    return welch(classes)


def key_of(which: int) -> bytes:
    """One key or a fresh one; both are made in the same way, since a system call alone slows what follows it."""
    fresh = os.urandom(32)
    return bytes(bytearray((KEY, fresh)[which]))


def table_of(words: np.ndarray) -> GaussianTable:
    """A table of these first words, largest first, and a last one of 0 (csrc/fedcore.h), for one draw."""
    first = np.append(np.sort(words)[::-1], np.uint32(0)).astype(np.uint32)
    rest = np.repeat(np.arange(len(first), 0, -1, np.uint64)[:, None] << np.uint64(56), 2, axis=1)
    return GaussianTable(first, rest, np.array([1]), 0.0)


def flat(heads: int, word: int) -> GaussianTable:
    """A table of one word: no draw is below 2, and every draw is below 2^32 - 2."""
    return table_of(np.full(heads, word, np.uint32))


def ties(heads: int, off: int, stream: str) -> GaussianTable:
    """A table of which TIES first words are drawn by samples of KEY, or by none if they are `off` from them."""
    drawn = keystream(4 * heads, KEY, nonce_of(0, 0, 0), 0, stream).view("<u4") & ~np.uint32(1)
    return table_of(np.append(drawn[:TIES] + np.uint32(off), drawn[TIES:] + np.uint32(2)))


def control() -> float:
    """Inversion by binary search: words that all take one path against words that take any."""
    table = gaussian_table(Fraction(10)).first[::-1].copy()
    generator = np.random.default_rng(1)
    words = [np.full(SIZE, 1 << 28, np.uint32), generator.integers(0, 1 << 32, SIZE, np.uint32)]
    return compare(lambda given: np.searchsorted(table, given), lambda which: words[which])


def main() -> None:
    out, real = np.empty(SIZE, np.int64), gaussian_table(Fraction(10))
    heads = np.count_nonzero(real.first)
    tables = [flat(heads, 2), flat(heads, 2**32 - 2)]
    found: dict[str, float] = {}
    for isa in isa_available():
        os.environ["FEDCORE_ISA"] = isa
        for stream in ("chacha20", "aes256ctr") if isa != "ref" else ("chacha20",):
            calls = CALLS if isa != "ref" else CALLS // 5
            found[f"{isa}, {stream}, outcomes"] = compare(
                lambda table, s=stream: discrete_gaussian(out, table, KEY, 0, s), lambda which: tables[which], calls
            )
            tied = [ties(heads, off, stream) for off in (0, 2)]
            found[f"{isa}, {stream}, ties"] = compare(
                lambda table, s=stream: discrete_gaussian(out, table, KEY, 0, s), lambda which, t=tied: t[which], calls
            )
            found[f"{isa}, {stream}, keys"] = compare(
                lambda key, s=stream: discrete_gaussian(out, real, key, 0, s),
                key_of,
                calls,
            )
    results: dict[str, object] = {"samples a call": SIZE, "calls": CALLS, "limit": LIMIT, "t": found}
    results["t of the control, a binary search"] = control()
    save("constant_time", results)
    beyond = [name for name, t in found.items() if abs(t) > LIMIT]
    if beyond:
        raise SystemExit(f"constant_time: {', '.join(beyond)} beyond |t| = {LIMIT}; see the result file")
    if abs(float(str(results["t of the control, a binary search"]))) <= LIMIT:
        raise SystemExit("constant_time: the control was not found, so the test says nothing on this machine")


if __name__ == "__main__":
    main()
