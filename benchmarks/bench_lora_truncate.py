"""lora_truncate against the dense SVD of the summed delta, a QR core, and its own cores as terms grow.

BLAS and LAPACK have NumPy's own threads in all of them: set OMP_NUM_THREADS to change it.
"""

from __future__ import annotations

import argparse
import os
import time

import numpy as np
from measure import alternate, require_green, save

import fedcore as fc
from fedcore.ops.lora_cores import block_core, gram_core, term_grams
from fedcore.ops.lora_truncate import balanced, core_for
from fedcore.ops.rows import available_cores
from fedcore.reference.lora_truncate import lora_truncate as qr_core

D, CLIENTS, RANK = 4096, 16, 16
KINDS = ("flat", "near-identical", "graded over 12 decades")
#: terms at which the cores are timed
TERMS = (32, 64, 128, 256, 512, 1024, 1600)


def factors(kind: str, d_out: int, d_in: int, terms: int) -> tuple[np.ndarray, np.ndarray]:
    """Stacked b (d_out, R) and a (R, d_in) in fp32."""
    rng = np.random.default_rng(7)
    b, a = rng.standard_normal((d_out, terms), np.float32), rng.standard_normal((terms, d_in), np.float32)
    clients = terms // RANK
    if kind == "near-identical":
        a = np.tile(a[:RANK], (clients, 1)) + np.float32(1e-3) * a
        b = np.tile(b[:, :RANK], clients) + np.float32(0.3) * b
    if kind.startswith("graded"):
        b *= np.float32(10) ** -np.linspace(0, 12, terms, dtype=np.float32)
    return b, a


def accuracy(kind: str) -> dict[str, float | str]:
    """Distance to the dense fp64 truncation, and of the residual to the true one, in units of ‖Δ‖."""
    b, a = factors(kind, 1024, 1408, CLIENTS * RANK)
    share = np.full(len(a), 1 / CLIENTS)
    delta = (b.astype(np.float64) * share) @ a.astype(np.float64)
    u, values, vt = np.linalg.svd(delta, full_matrices=False)
    best, size = (u[:, :RANK] * values[:RANK]) @ vt[:RANK], float(np.linalg.norm(values))
    found = fc.ops.lora_truncate(b, a, share, RANK)[RANK]
    return {
        "core": found.core,
        "error": float(np.linalg.norm(found.b @ found.a - best)) / size,
        "residual": found.residual,
        "error of the residual": abs(found.residual - float(np.linalg.norm(values[RANK:])) / size),
    }


def speed(rounds: int) -> dict[str, object]:
    """One module of 16 clients: from their fp32 factors to the factors of rank 16."""
    b, a = factors("flat", D, D, CLIENTS * RANK)
    share = np.full(CLIENTS, 1 / CLIENTS)
    parts = [np.ascontiguousarray(part) for part in np.hsplit(b, CLIENTS)], np.vsplit(a, CLIENTS)
    wide_b, wide_a = b.astype(np.float64) / CLIENTS, a.astype(np.float64)
    dense = (b / np.float32(CLIENTS)) @ a
    start = time.perf_counter()
    np.linalg.svd(dense)
    svd = time.perf_counter() - start
    works = {
        "fedcore": lambda: fc.ops.lora_truncate(*parts, share, RANK),
        "QR core in fp64 NumPy": lambda: balanced(qr_core(wide_b, wide_a, RANK), RANK, 1.0),
    }
    times = alternate(works, rounds)
    ours = times["fedcore"]["median"]
    return times | {
        "numpy.linalg.svd of the summed delta, fp32, once, seconds": svd,
        "times dense SVD": svd / ours,
        "times QR core": times["QR core in fp64 NumPy"]["median"] / ours,
    }


def cores(terms: int) -> dict[str, object]:
    """Seconds of each core at d_out = d_in = 4096 and rank 16, best of two after one that does not count."""
    b, a = factors("flat", D, D, terms)
    wide_b, wide_a, share = b.astype(np.float64), a.astype(np.float64), np.full(terms, RANK / terms)
    works = {
        "qr": lambda: qr_core(wide_b, wide_a, RANK),
        "gram": lambda: gram_core(wide_b, wide_a, share, RANK),
        "block": lambda: block_core(b, a, share, RANK, term_grams(b, a)),
    }
    # QR of a thousand columns takes longer than all the rest
    taken = {name: work for name, work in works.items() if name != "qr" or terms <= 512}
    found: dict[str, object] = {name: time["min"] for name, time in alternate(taken, 2).items()}
    return found | {"taken": core_for(terms, D, D, RANK)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    require_green("lora_truncate")
    results: dict[str, object] = {"threads": int(os.environ.get("OMP_NUM_THREADS", available_cores()))}
    results |= {f"accuracy, 1024 x 1408, 16 clients x rank 16, {kind}": accuracy(kind) for kind in KINDS}
    results[f"speed, {D} x {D}, {CLIENTS} clients x rank {RANK}"] = speed(options.rounds)
    results |= {f"cores, {terms} terms": cores(terms) for terms in TERMS}
    save("lora_truncate", results)


if __name__ == "__main__":
    main()
