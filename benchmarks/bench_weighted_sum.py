"""weighted_sum against the roof, a ready matrix in NumPy and torch, Flower and NVFlare."""

from __future__ import annotations

import argparse

import numpy as np
from inputs import rows
from measure import alternate, require_green, save

import fedcore as fc
from fedcore.native.read import read
from fedcore.ops.rows import as_rows, available_cores

SHAPES = ((10, 40_000_000), (100, 4_000_000))


def against_roof(n: int, d: int, dtype: str, threads: int, matrix: bool) -> dict[str, object]:
    """One shape: the roof at its best number of streams, our kernel, and NumPy and torch on a matrix that is ready."""
    data = rows(n, d, dtype)
    table, out, weights = as_rows(data).table, np.zeros(d, np.float32), np.full(n, 1 / n, np.float32)
    works = {f"roof, {s} streams": (lambda s=s: read(table, s, threads)) for s in (2, 4, 8)}
    works["fedcore"] = lambda: fc.ops.weighted_sum(table, weights, out=out, threads=threads)
    works["fedcore, divided"] = lambda: fc.ops.weighted_sum(table, weights, 1.7, out=out, threads=threads)
    if matrix:
        import torch

        torch.set_num_threads(threads)
        ready, result = np.stack(data), np.zeros(d, np.float32)
        tensor, torch_weights, torch_result = torch.from_numpy(ready), torch.from_numpy(weights), torch.zeros(d)
        works["numpy.matmul, ready matrix"] = lambda: np.matmul(weights, ready, out=result)
        works["torch.matmul, ready matrix"] = lambda: torch.matmul(torch_weights, tensor, out=torch_result)
    return summary(alternate(works), table.nbytes)


def summary(times: dict[str, dict[str, float]], nbytes: int) -> dict[str, object]:
    """Seconds, GB/s of input read, and the fraction of the best roof of this run."""
    roof = min((t["median"] for name, t in times.items() if name.startswith("roof")), default=None)
    return {
        name: {**t, "GB/s": nbytes / t["median"] / 1e9, **({"of roof": roof / t["median"]} if roof else {})}
        for name, t in times.items()
    }


def against_peers(n: int, d: int, threads: int) -> dict[str, object]:
    """Rows each in a buffer of its own: Flower from message bytes, NVFlare from tensors."""
    import peers
    import torch

    torch.set_num_threads(threads)
    data, counts, out = rows(n, d), [100 + i for i in range(n)], np.zeros(d, np.float32)
    messages = peers.flower_messages(data, counts)
    works = {
        "fedcore, from message bytes": peers.fedcore_from_flower_bytes(messages, out, threads),
        "Flower aggregate_arrayrecords, from message bytes": peers.flower(messages),
        "fedcore, from arrays": lambda: fc.ops.weighted_sum(data, counts, sum(counts), out=out, threads=threads),
        "NVFlare WeightedAggregationHelper": peers.nvflare(data, counts),
    }
    return summary(alternate(works), n * d * 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=available_cores())
    threads = parser.parse_args().threads
    require_green("weighted_sum")
    results: dict[str, object] = {"threads": threads}
    for dtype in ("float32", "bfloat16"):
        for n, d in SHAPES:
            results[f"{n} x {d}, {dtype}"] = against_roof(n, d, dtype, threads, matrix=dtype == "float32")
    results["peers, 10 x 40000000, float32"] = against_peers(10, 40_000_000, threads)
    save("weighted_sum", results, ("torch", "flwr", "nvflare"))


if __name__ == "__main__":
    main()
