"""squared_norms against the roof and NumPy and torch row by row."""

from __future__ import annotations

import argparse

import numpy as np
from bench_weighted_sum import SHAPES, summary
from inputs import rows
from measure import alternate, require_green, save

import fedcore as fc
from fedcore.native.read import read
from fedcore.ops.rows import as_rows, available_cores


def against_roof(n: int, d: int, dtype: str, threads: int) -> dict[str, object]:
    data = rows(n, d, dtype)
    table = as_rows(data).table
    works = {f"roof, {s} streams": (lambda s=s: read(table, s, threads)) for s in (2, 4, 8)}
    works["fedcore"] = lambda: fc.ops.squared_norms(table, threads=threads)
    works["fedcore, centered"] = lambda: fc.ops.squared_norms(table, data[0], threads=threads)
    if dtype == "float32":
        import torch

        torch.set_num_threads(threads)
        tensors = [torch.from_numpy(row) for row in data]
        works["numpy.dot, row by row, fp32"] = lambda: [float(np.dot(row, row)) for row in data]
        works["torch.dot, row by row, fp32"] = lambda: [float(torch.dot(row, row)) for row in tensors]
    return summary(alternate(works), table.nbytes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=available_cores())
    threads = parser.parse_args().threads
    require_green("squared_norms")
    results: dict[str, object] = {"threads": threads}
    for dtype in ("float32", "bfloat16"):
        for n, d in SHAPES:
            results[f"{n} x {d}, {dtype}"] = against_roof(n, d, dtype, threads)
    save("squared_norms", results, ("torch",))


if __name__ == "__main__":
    main()
