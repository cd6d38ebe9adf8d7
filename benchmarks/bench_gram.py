"""gram against torch's X @ X.T: speed, and the error of honest distances beside an attacker's row."""

from __future__ import annotations

import argparse

import numpy as np
from inputs import rows
from measure import alternate, require_green, save

import fedcore as fc
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
    times = alternate(works)
    peer = times["torch X @ X.T, ready matrix"]["median"]
    return {
        name: {
            **t,
            "times torch": peer / t["median"],
            "GFLOP/s, counting both halves": 2 * n * n * d / t["median"] / 1e9,
        }
        for name, t in times.items()
    }


def errors(d: int = 1_000_000, n: int = 10) -> dict[str, object]:
    """Honest rows that differ by 1e-4 of their size, one row at +50: the worst relative error of honest pairs."""
    import torch

    generator = np.random.default_rng(0)
    base = generator.standard_normal(d)
    data = [(base + 1e-4 * generator.standard_normal(d)).astype(np.float32) for _ in range(n - 1)]
    data.append((base + 50).astype(np.float32))
    matrix = np.stack(data)
    exact = np.array([[np.sum((matrix[i].astype(float) - matrix[j]) ** 2) for j in range(n)] for i in range(n)])

    def worst(gram: np.ndarray) -> float:
        found = gram.diagonal()[:, None] + gram.diagonal() - 2 * gram
        honest = ~np.eye(n, dtype=bool)[: n - 1, : n - 1]
        relative = np.abs(found - exact)[: n - 1, : n - 1][honest] / exact[: n - 1, : n - 1][honest]
        return float(relative.max())

    ours = fc.ops.gram(data, data[0])
    size = ours.diagonal()[:, None] + ours.diagonal()
    found = ours.diagonal()[:, None] + ours.diagonal() - 2 * ours
    plain = (torch.from_numpy(matrix) @ torch.from_numpy(matrix).T).numpy()
    norms = np.square(
        np.linalg.norm(matrix, axis=1)
    )  # the way Flower's Krum forms its distances: norms and products in fp32
    flower = norms[:, None] + norms[None, :] - 2 * (matrix @ matrix.T)
    flower_gram = (norms[:, None] + norms[None, :] - flower) / 2
    np.fill_diagonal(flower_gram, norms)
    return {
        "fedcore, honest centre": worst(ours),
        "torch fp32 X @ X.T": worst(plain.astype(float)),
        "norms and products in fp32, as in Flower's Krum": worst(flower_gram.astype(float)),
        "fedcore, largest error over the documented bound": float(
            np.max(np.abs(found - exact)[size > 0] / (fc.ops.GRAM_EPSILON * size[size > 0]))
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
    save("gram", results, ("torch",))


if __name__ == "__main__":
    main()
