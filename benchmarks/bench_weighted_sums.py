"""weighted_sums: few outputs against the roof of memory, mixing matrices against the fp64 peak, and peers."""

from __future__ import annotations

import argparse
import sys

import numpy as np
from inputs import rows
from measure import alternate, require_green, save
from multiply_adds import peak

import fedcore as fc
from fedcore.native.read import read
from fedcore.ops.rows import as_rows, available_cores


def few(n: int, d: int, dtype: str, threads: int) -> dict[str, object]:
    """One to eight outputs against the roof, and against as many calls of weighted_sum."""
    table = as_rows(rows(n, d, dtype)).table
    works = {f"roof, {s} streams": (lambda s=s: read(table, s, threads)) for s in (4, 8)}
    for m in (1, 2, 3, 4, 8):
        weights, out = np.random.default_rng(m).random((m, n), np.float32), np.zeros((m, d), np.float32)
        works[f"fedcore, {m} outputs"] = lambda w=weights, out=out: fc.ops.weighted_sums(
            table, w, out=out, threads=threads
        )
    single = np.zeros(d, np.float32)
    works["weighted_sum, 4 times"] = lambda: [
        fc.ops.weighted_sum(table, np.ones(n), out=single, threads=threads) for _ in range(4)
    ]
    times = alternate(works)
    roof = min(t["median"] for name, t in times.items() if name.startswith("roof"))
    return {
        name: {**t, "GB/s": table.nbytes / t["median"] / 1e9, "of roof": roof / t["median"]}
        for name, t in times.items()
    }


def mixing(n: int, d: int, dtype: str, threads: int) -> dict[str, object]:
    """n outputs of n rows, as nearest-neighbour mixing asks for, against the peak and products of a ready matrix."""
    import torch

    torch.set_num_threads(threads)
    data = rows(n, d, dtype)
    table, weights = as_rows(data).table, np.random.default_rng(0).random((n, n), np.float32)
    out = np.zeros((n, d), np.float32)
    works = {"fedcore": lambda: fc.ops.weighted_sums(table, weights, out=out, threads=threads)}
    if dtype == "float32":
        ready, result = torch.from_numpy(np.stack(data)), torch.zeros((n, d))
        small = torch.from_numpy(weights)
        works["torch.matmul in fp32, ready matrix"] = lambda: torch.matmul(small, ready, out=result)
        wide = small.double()
        works["torch.matmul in fp64, converted on the way"] = lambda: (wide @ ready.double()).float()
    before = peak("float64", threads)
    times = alternate(works, rounds=7)
    top = max(before, peak("float64", threads))
    rate = {name: n * n * d / t["median"] for name, t in times.items()}
    return {"peak, fp64 multiply-adds a second": top} | {
        name: {**t, "multiply-adds a second": rate[name], "of the fp64 peak": rate[name] / top}
        for name, t in times.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=available_cores())
    threads = parser.parse_args().threads
    require_green("weighted_sums")
    results: dict[str, object] = {"threads": threads}
    for dtype in ("float32", "bfloat16"):
        results[f"few outputs, 10 x 10000000, {dtype}"] = few(10, 10_000_000, dtype, threads)
        results[f"few outputs, 100 x 1000000, {dtype}"] = few(100, 1_000_000, dtype, threads)
        results[f"mixing, 100 x 1000000, {dtype}"] = mixing(100, 1_000_000, dtype, threads)
    results["mixing, 10 x 10000000, float32"] = mixing(10, 10_000_000, "float32", threads)
    save("weighted_sums", results, ("torch",))


if __name__ == "__main__":
    sys.exit(main())
