"""The rate of multiply-adds that the cores reach on registers alone: what products cannot be faster than."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

from fedcore.native import isa_selected

#: how each instruction set multiplies and adds: compiler flags, header, and by dtype vector, lanes, operation, constant
FMA = {
    "avx512": (
        ["-mavx512f"],
        "#include <immintrin.h>",
        {
            "float32": ("__m512", 16, "_mm512_fmadd_ps(a[i], x, y)", "_mm512_set1_ps"),
            "float64": ("__m512d", 8, "_mm512_fmadd_pd(a[i], x, y)", "_mm512_set1_pd"),
        },
    ),
    "avx2": (
        ["-mavx2", "-mfma"],
        "#include <immintrin.h>",
        {
            "float32": ("__m256", 8, "_mm256_fmadd_ps(a[i], x, y)", "_mm256_set1_ps"),
            "float64": ("__m256d", 4, "_mm256_fmadd_pd(a[i], x, y)", "_mm256_set1_pd"),
        },
    ),
    "neon": (
        [],
        "#include <arm_neon.h>",
        {
            "float32": ("float32x4_t", 4, "vfmaq_f32(y, a[i], x)", "vdupq_n_f32"),
            "float64": ("float64x2_t", 2, "vfmaq_f64(y, a[i], x)", "vdupq_n_f64"),
        },
    ),
    "ref": (
        [],
        "",
        {"float32": ("float", 1, "a[i] * x + y", "(float)"), "float64": ("double", 1, "a[i] * x + y", "(double)")},
    ),
}
#: AMX multiplies integers; beside it, fp32 is AVX-512's
FMA["amx"] = FMA["avx512"]
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
    for (int i = 0; i < CHAINS; i++) { float first; __builtin_memcpy(&first, &a[i], 4); sink = first; }
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


def peak(dtype: str, threads: int) -> float:
    """Multiply-adds of "float32" or "float64" a second that `threads` cores reach with the kernels' instruction set."""
    flags, include, types = FMA[isa_selected()]
    vector, lanes, fma, set_all = types[dtype]
    values = {"include": include, "vector": vector, "set": set_all, "lanes": lanes, "chains": CHAINS, "fma": fma}
    with tempfile.TemporaryDirectory() as folder:
        source, program = Path(folder) / "peak.c", Path(folder) / "peak"
        source.write_text(PROBE % values)
        subprocess.run(["cc", "-O2", *flags, "-pthread", str(source), "-o", str(program)], check=True)
        found = subprocess.run([str(program), str(threads)], check=True, capture_output=True, text=True)
    return float(found.stdout)
