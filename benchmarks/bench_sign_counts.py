"""sign_counts against the roof of memory and against torch's signs on a ready matrix."""

from __future__ import annotations

import argparse

import numpy as np
from inputs import rows
from measure import alternate, require_green, save

import fedcore as fc
from fedcore.native.read import read
from fedcore.ops.rows import as_rows, available_cores


def votes(n: int, d: int, dtype: str, threads: int) -> dict[str, object]:
    """One shape: the roof at its best number of streams, our kernel with and without a centre, and torch."""
    import torch

    torch.set_num_threads(threads)
    data = rows(n, d, dtype)
    table, center = as_rows(data).table, np.zeros(d, np.float32)
    works = {f"roof, {s} streams": (lambda s=s: read(table, s, threads)) for s in (2, 4, 8)}
    works["fedcore"] = lambda: fc.ops.sign_counts(table, threads=threads)
    works["fedcore, around a centre"] = lambda: fc.ops.sign_counts(table, center, threads=threads)
    if dtype == "float32":
        matrix = torch.from_numpy(np.stack(data))
        works["torch sign().sum(0), ready matrix"] = lambda: matrix.sign().sum(0)
    times = alternate(works)
    roof = min(t["median"] for name, t in times.items() if name.startswith("roof"))
    return {
        name: {**t, "GB/s": table.nbytes / t["median"] / 1e9, "of roof": roof / t["median"]}
        for name, t in times.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=available_cores())
    threads = parser.parse_args().threads
    require_green("sign_counts")
    results: dict[str, object] = {"threads": threads}
    for dtype in ("float32", "bfloat16"):
        for n, d in ((10, 10_000_000), (100, 1_000_000)):
            results[f"{n} x {d}, {dtype}"] = votes(n, d, dtype, threads)
    save("sign_counts", results, ("torch",))


if __name__ == "__main__":
    main()
