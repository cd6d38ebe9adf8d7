"""Ops over int8 and NF4 rows against the same ops on fp32 rows, and against dequantising first."""

from __future__ import annotations

import argparse

import numpy as np
from inputs import rows
from measure import alternate, require_green, save

import fedcore as fc
from fedcore.ops.rows import as_rows, available_cores

SHAPES = ((10, 8_000_000), (100, 800_000))
OPS = ("weighted_sum", "squared_norms", "gram")


def compared(n: int, d: int, threads: int) -> dict[str, object]:
    """Seconds of each op on each kind of rows; of the weighted sum also by way of bitsandbytes and torch."""
    import torch

    torch.set_num_threads(threads)
    plain = rows(n, d)
    kinds = {
        "float32": plain,
        "bfloat16": rows(n, d, "bfloat16"),
        "int8": [fc.Quantized.from_array(row, "int8") for row in plain],
        "nf4": [fc.Quantized.from_array(row, "nf4") for row in plain],
    }
    out, weights = np.zeros(d, np.float32), np.full(n, 1 / n, np.float32)
    tables = {kind: as_rows(data).table for kind, data in kinds.items()}
    works = {}
    for kind, table in tables.items():
        works[f"weighted_sum, {kind}"] = lambda t=table: fc.ops.weighted_sum(t, weights, out=out, threads=threads)
        works[f"squared_norms, {kind}"] = lambda t=table: fc.ops.squared_norms(t, threads=threads)
        works[f"gram, {kind}"] = lambda t=table: fc.ops.gram(t, threads=threads)
    works["bitsandbytes dequantize_4bit, then torch add, nf4"] = by_bitsandbytes(kinds["nf4"], weights)
    works["torch dequantise, then torch add, int8"] = by_torch(kinds["int8"], weights)
    times = alternate(works, rounds=5)
    return {
        name: {**t, "G elements/s": n * d / t["median"] / 1e9, "rows/s": n / t["median"]} | against(name, times)
        for name, t in times.items()
    }


def against(name: str, times: dict[str, dict[str, float]]) -> dict[str, float]:
    """The ratio to what it is to be compared with."""
    op, _, kind = name.rpartition(", ")
    if op in OPS:
        return {"times float32": times[f"{op}, float32"]["median"] / times[name]["median"]}
    return {"ours is faster by": times[name]["median"] / times[f"weighted_sum, {kind}"]["median"]}


def by_bitsandbytes(data: list, weights: np.ndarray):
    """A whole fp32 copy of each row in turn, by bitsandbytes, added up in fp32 by torch."""
    import bitsandbytes.functional as functional
    import torch

    given = torch.zeros(data[0].shape)
    _, state = functional.quantize_4bit(given, quant_type="nf4", compress_statistics=True, blocksize=64)
    packed = []
    for row in data:
        absmax, nested, offset = (torch.from_numpy(scale) for scale in row.scales)
        packed.append((torch.from_numpy(row.payload)[:, None], absmax, nested, offset[0]))

    def work() -> torch.Tensor:
        total = torch.zeros(data[0].shape)
        for (payload, absmax, nested, offset), weight in zip(packed, weights.tolist(), strict=True):
            state.absmax, state.state2.absmax, state.offset = absmax, nested, offset
            total.add_(functional.dequantize_4bit(payload, state).view(-1), alpha=weight)
        return total

    return work


def by_torch(data: list, weights: np.ndarray):
    """The same for int8 in torch: widen, times the blocks' scales, add."""
    import torch

    packed = [(torch.from_numpy(row.payload).view(-1, 64), torch.from_numpy(row.scales[0])[:, None]) for row in data]

    def work() -> torch.Tensor:
        total = torch.zeros(data[0].shape).view(-1, 64)
        for (payload, absmax), weight in zip(packed, weights.tolist(), strict=True):
            total.add_(payload.float().mul_(absmax / 127), alpha=weight)
        return total.view(-1)

    return work


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=available_cores())
    threads = parser.parse_args().threads
    require_green("encoded_rows")
    results: dict[str, object] = {"threads": threads}
    for n, d in SHAPES:
        results[f"{n} x {d}"] = compared(n, d, threads)
    save("dequantising", results, ("torch", "bitsandbytes"))


if __name__ == "__main__":
    main()
