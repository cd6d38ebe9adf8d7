"""lora_gram over every linear layer of a 7B model's adapters, against the fp64 peak and NumPy on stacked factors."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator

import numpy as np
from inputs import LINEAR
from measure import require_green, save
from multiply_adds import peak

import fedcore as fc
from fedcore.ops.rows import available_cores

CLIENTS, RANK, LAYERS = 32, 16, 32
SIZES = sorted({size for shape in LINEAR.values() for size in shape})


def factors(dtype: str) -> dict[int, tuple[list[np.ndarray], list[np.ndarray]]]:
    """(b, a) of all clients by size: every module of one size reads the same numbers from buffers of its own cohort."""
    rng, found = np.random.default_rng(0), {}
    for size in SIZES:
        b = [rng.standard_normal((size, RANK), np.float32) for _ in range(CLIENTS)]
        a = [rng.standard_normal((RANK, size), np.float32) for _ in range(CLIENTS)]
        if dtype == "bfloat16":
            b, a = ([fc.bf16((x.view(np.uint32) >> 16).astype(np.uint16)) for x in side] for side in (b, a))
        found[size] = b, a
    return found


def modules(made: dict, layers: int) -> Iterator[tuple[list, list, None]]:
    for _ in range(layers):
        for d_in, d_out in LINEAR.values():
            yield made[d_out][0], made[d_in][1], None


def timed(made: dict, layers: int, threads: int) -> float:
    start = time.perf_counter()
    fc.ops.lora_gram(modules(made, layers), threads=threads)
    return time.perf_counter() - start


def stacked(made: dict, layers: int) -> float:
    """What fedcore.lora did before: fp64 stacks, whole products by BLAS, contraction by reduceat."""
    start, total = time.perf_counter(), np.zeros((CLIENTS, CLIENTS))
    firsts = np.arange(CLIENTS) * RANK
    for b, a, _ in modules(made, layers):
        left = np.concatenate(b, 1).astype(np.float64)
        right = np.concatenate(a).astype(np.float64)
        products = (left.T @ left) * (right @ right.T)
        total += np.add.reduceat(np.add.reduceat(products, firsts, 0), firsts, 1)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=available_cores())
    threads = parser.parse_args().threads
    require_green("lora_gram")
    terms = CLIENTS * RANK
    work = LAYERS * sum(map(sum, LINEAR.values())) * terms * (terms + 1) / 2
    before = peak("float64", threads)
    narrow, wide = factors("bfloat16"), factors("float32")
    timed(wide, 1, threads)
    seconds = {"float32": timed(wide, LAYERS, threads), "bfloat16": timed(narrow, LAYERS, threads)}
    one = stacked(wide, 2) / 2
    bound = work / max(before, peak("float64", threads))
    results: dict[str, object] = {
        "threads": threads,
        "fp64 multiply-adds": work,
        "seconds at the fp64 peak": bound,
        "NumPy on fp64 stacks, seconds for one of the layers, times the layers": one * LAYERS,
    }
    for dtype, took in seconds.items():
        results[f"{CLIENTS} clients x {LAYERS * len(LINEAR)} modules of a 7B shape, r = {RANK}, {dtype}"] = {
            "seconds": took,
            "times the arithmetic bound": took / bound,
        }
    save("lora_gram", results)


if __name__ == "__main__":
    main()
