"""Exact sums: seconds and memory of a row that arrives, against weighted_sum of all rows at once and a running sum."""

from __future__ import annotations

import argparse

import numpy as np
from inputs import rows
from measure import alternate, require_green, save

import fedcore as fc
from fedcore.ops.rows import available_cores


def arrivals(n: int, d: int, dtype: str, counts: bool, threads: int) -> dict[str, object]:
    """n rows added one by one and rounded once; `counts`: small whole numbers as weights, else numbers of 24 bits."""
    data = rows(n, d, dtype)
    weights = np.arange(100, 100 + n) if counts else np.random.default_rng(0).random(n, np.float32)
    found: dict[str, fc.ops.ExactSum] = {}

    def streamed() -> None:
        found["sum"] = total = fc.ops.ExactSum(d, threads=threads)
        for row, weight in zip(data, weights, strict=True):
            total.add(row, weight)
        total.result(float(weights.sum()))

    def running() -> None:
        total = np.zeros(d)
        for row, weight in zip(data, weights, strict=True):
            total += np.float64(weight) * (row if dtype == "float32" else fc.ops.weighted_sum([row], [1]))
        (total / weights.sum()).astype(np.float32)

    works = {
        "fedcore, streamed": streamed,
        "fedcore, one row more": lambda: found["sum"].add(data[0], weights[0]),
        "fedcore, result": lambda: found["sum"].result(float(weights.sum())),
        "weighted_sum, all rows at once": lambda: fc.ops.weighted_sum(data, weights, weights.sum(), threads=threads),
        "NumPy, a running fp64 sum": running,
    }
    times = alternate(works, rounds=5)
    read = {"fedcore, one row more": 1, "fedcore, result": 0}
    item = data[0].itemsize
    return {"bytes a column": found["sum"].nbytes / d} | {
        name: {**t, "GB/s of rows": read.get(name, n) * d * item / t["median"] / 1e9} for name, t in times.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=available_cores())
    threads = parser.parse_args().threads
    require_green("exact_sum")
    results: dict[str, object] = {"threads": threads}
    for dtype in ("float32", "bfloat16"):
        for counts in (True, False):
            kind = "counts as weights" if counts else "weights of 24 bits"
            results[f"10 x 10000000, {dtype}, {kind}"] = arrivals(10, 10_000_000, dtype, counts, threads)
    save("exact_sum", results)


if __name__ == "__main__":
    main()
