"""gram against the least time of its products and its read, and torch's X @ X.T; its error beside an attacker's row."""

from __future__ import annotations

import argparse

import numpy as np
from inputs import rows
from measure import alternate, require_green, save
from multiply_adds import peak

import fedcore as fc
from fedcore.native.read import read
from fedcore.ops.rows import as_rows, available_cores


def speed(n: int, d: int, threads: int) -> dict[str, object]:
    import torch

    torch.set_num_threads(threads)
    data = rows(n, d)
    table, matrix = as_rows(data).table, torch.from_numpy(np.stack(data))
    works = {
        "fedcore": lambda: fc.ops.gram(table, threads=threads),
        "fedcore, centered": lambda: fc.ops.gram(table, data[0], threads=threads),
        "torch X @ X.T, ready matrix": lambda: matrix @ matrix.T,
    }
    roofs = {f"roof, {s} streams": (lambda s=s: read(table, s, threads)) for s in (4, 8)}
    before = peak("float32", threads)
    times = alternate(works | roofs)
    rate = max(before, peak("float32", threads))
    peer = times["torch X @ X.T, ready matrix"]["median"]
    products, reading = n * (n + 1) / 2 * d / rate, min(times[name]["median"] for name in roofs)
    bound = max(products, reading)
    found: dict[str, object] = {
        name: {
            **times[name],
            "times torch": peer / times[name]["median"],
            "GFLOP/s, counting both halves": 2 * n * n * d / times[name]["median"] / 1e9,
            "of the bound": bound / times[name]["median"],
        }
        for name in works
    }
    return found | {
        "fp32 multiply-adds a second, measured peak": rate,
        "seconds for n (n + 1) / 2 products of rows at that peak": products,
        "seconds for a read of all rows": reading,
        "bound: the longer of the two, seconds": bound,
        "times torch at the bound": peer / bound,
    }


def errors(d: int = 1_000_000, n: int = 10) -> dict[str, object]:
    """Honest rows that differ by 1e-4 of their size, one row at +50: the worst relative error of honest distances."""
    import torch
    from flwr.app import Array, ArrayRecord
    from flwr.serverapp.strategy.multikrum import compute_distances

    generator = np.random.default_rng(0)
    base = generator.standard_normal(d)
    data = [(base + 1e-4 * generator.standard_normal(d)).astype(np.float32) for _ in range(n - 1)]
    data.append((base + 50).astype(np.float32))
    wide = [row.astype(np.float64) for row in data]
    exact = np.array([[np.sum((a - b) ** 2) for b in wide] for a in wide])
    honest = ~np.eye(n, dtype=bool)
    honest[-1] = honest[:, -1] = False

    def worst(found: np.ndarray) -> float:
        return float((np.abs(found - exact)[honest] / exact[honest]).max())

    def distances(gram: np.ndarray) -> np.ndarray:
        return gram.diagonal()[:, None] + gram.diagonal() - 2 * gram

    ours, matrix = fc.ops.gram(data, data[0]), torch.from_numpy(np.stack(data))
    size = ours.diagonal()[:, None] + ours.diagonal()
    return {
        "fedcore, honest centre": worst(distances(ours)),
        "torch fp32 X @ X.T": worst(distances((matrix @ matrix.T).numpy().astype(np.float64))),
        "Flower compute_distances": worst(compute_distances([ArrayRecord({"w": Array(row)}) for row in data])),
        "fedcore, largest error over the documented bound": float(
            np.max(np.abs(distances(ours) - exact)[size > 0] / (fc.ops.gram_epsilon() * size[size > 0]))
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=available_cores())
    threads = parser.parse_args().threads
    require_green("gram")
    results: dict[str, object] = {"threads": threads, "speed, 100 x 4000000, float32": speed(100, 4_000_000, threads)}
    results["speed, 10 x 40000000, float32"] = speed(10, 40_000_000, threads)
    results["relative error of honest distances, 10 x 1000000"] = errors()
    save("gram", results, ("torch", "flwr"))


if __name__ == "__main__":
    main()
