"""clip_noise_accumulate beside the two passes that it is made of, and clip_round on one long row."""

from __future__ import annotations

import argparse

import numpy as np
from inputs import rows
from measure import alternate, require_green, save

import fedcore as fc
from fedcore.native.read import read
from fedcore.ops.rows import as_rows, available_cores


def central(n: int, d: int, dtype: str, threads: int) -> dict[str, object]:
    """Central privacy's clip and sum, noise drawn before, against squared_norms and weighted_sum on the same rows."""
    data = rows(n, d, dtype)
    table, out, weights = as_rows(data).table, np.zeros(d, np.float32), np.full(n, 1 / n, np.float32)
    clip = 0.9 * np.sqrt(d)  # below the rows' norms: all are clipped
    noise = np.random.default_rng(0).integers(-1000, 1000, d)

    def both() -> None:
        fc.ops.squared_norms(table, threads=threads)
        fc.ops.weighted_sum(table, weights, out=out, threads=threads)

    works = {f"roof of one read, {s} streams": (lambda s=s: read(table, s, threads)) for s in (2, 4, 8)}
    works["squared_norms + weighted_sum"] = both
    works["fedcore"] = lambda: fc.ops.clip_noise_accumulate(table, clip, divisor=n, out=out, threads=threads)
    works["fedcore, with noise"] = lambda: fc.ops.clip_noise_accumulate(
        table, clip, noise=noise, divisor=n, out=out, threads=threads
    )
    times = alternate(works, 7)
    pair = times["squared_norms + weighted_sum"]["median"]
    return {
        name: {**t, "GB/s": (1 if name.startswith("roof") else 2) * table.nbytes / t["median"] / 1e9}
        | ({} if name.startswith("roof") else {"of the two passes": t["median"] / pair})
        for name, t in times.items()
    }


def one_row(d: int, threads: int) -> dict[str, object]:
    """clip_round, and the plain float clip that has no bound after rounding."""
    row = rows(1, d)[0]
    clip = 0.9 * float(np.sqrt(d))

    def plain() -> np.ndarray:
        return row * np.float32(min(1.0, clip / float(np.linalg.norm(row))))

    works = {
        "fedcore": lambda: fc.ops.clip_round(row, clip, threads=threads),
        "numpy norm and product, no rounding": plain,
    }
    return {name: {**t, "M/s": d / t["median"] / 1e6} for name, t in alternate(works).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=available_cores())
    threads = parser.parse_args().threads
    require_green("clip_noise_accumulate")
    require_green("clip_round")
    results: dict[str, object] = {"threads": threads}
    for dtype in ("float32", "bfloat16"):
        results[f"100 x 4000000, {dtype}"] = central(100, 4_000_000, dtype, threads)
    results["clip_round, 10000000"] = one_row(10_000_000, threads)
    save("clip_noise", results)


if __name__ == "__main__":
    main()
