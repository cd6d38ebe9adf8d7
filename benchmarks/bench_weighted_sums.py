"""weighted_sums: few outputs against the roof of memory, mixing matrices against the fp64 peak, and peers."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from inputs import rows
from measure import alternate, require_green, save

import fedcore as fc
from fedcore.native import isa_selected
from fedcore.native.read import read
from fedcore.ops.rows import as_rows, available_cores

#: how each instruction set multiplies and adds fp64: compiler flags, vector type, lanes, the operation
FMA = {
    "avx512": (["-mavx512f"], "__m512d", 8, "_mm512_fmadd_pd(a[i], x, y)", "_mm512_set1_pd"),
    "avx2": (["-mavx2", "-mfma"], "__m256d", 4, "_mm256_fmadd_pd(a[i], x, y)", "_mm256_set1_pd"),
    "neon": ([], "float64x2_t", 2, "vfmaq_f64(y, a[i], x)", "vdupq_n_f64"),
    "ref": ([], "double", 1, "a[i] * x + y", "(double)"),
}
CHAINS = 12
PROBE = """
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
%(include)s
enum { CHAINS = %(chains)d, STEPS = 40000000, ROUNDS = 5 };
static volatile double sink;
static void* run(void* unused) {
    %(vector)s a[CHAINS], x = %(set)s(0.999), y = %(set)s(1e-3);
    for (int i = 0; i < CHAINS; i++) a[i] = %(set)s((double)i);
    for (long step = 0; step < STEPS; step++) {
        _Pragma("GCC unroll 12") for (int i = 0; i < CHAINS; i++) a[i] = %(fma)s;
        __asm__ volatile("");
    }
    for (int i = 0; i < CHAINS; i++) { double first; __builtin_memcpy(&first, &a[i], 8); sink = first; }
    return unused;
}
int main(int count, char** arguments) {
    int threads = count > 1 ? atoi(arguments[1]) : 1;
    double best = 0;
    for (int round = 0; round < ROUNDS; round++) {
        struct timespec begin, end;
        pthread_t others[1024];
        clock_gettime(CLOCK_MONOTONIC, &begin);
        for (int t = 1; t < threads; t++) pthread_create(&others[t], NULL, run, NULL);
        run(NULL);
        for (int t = 1; t < threads; t++) pthread_join(others[t], NULL);
        clock_gettime(CLOCK_MONOTONIC, &end);
        double seconds = (double)(end.tv_sec - begin.tv_sec) + 1e-9 * (double)(end.tv_nsec - begin.tv_nsec);
        double rate = (double)STEPS * CHAINS * %(lanes)d * threads / seconds;
        if (rate > best) best = rate;
    }
    printf("%%.6e\\n", best);
    return 0;
}
"""


def peak(threads: int) -> float:
    """fp64 multiply-adds a second that `threads` cores reach on registers alone, with the kernels' instruction set."""
    flags, vector, lanes, fma, set_all = FMA[isa_selected()]
    include = {"neon": "#include <arm_neon.h>", "ref": ""}.get(isa_selected(), "#include <immintrin.h>")
    values = {"include": include, "vector": vector, "set": set_all, "lanes": lanes, "chains": CHAINS, "fma": fma}
    with tempfile.TemporaryDirectory() as folder:
        source, program = Path(folder) / "peak.c", Path(folder) / "peak"
        source.write_text(PROBE % values)
        subprocess.run(["cc", "-O2", *flags, "-pthread", str(source), "-o", str(program)], check=True)
        found = subprocess.run([str(program), str(threads)], check=True, capture_output=True, text=True)
    return float(found.stdout)


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
    before = peak(threads)
    times = alternate(works, rounds=7)
    top = max(before, peak(threads))
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
