"""Every Triton kernel on a GPU: checked against its definition first, then timed against what the GPU can do.

`python benchmarks/bench_triton.py [FOLDER]` writes FOLDER/triton.json (by default benchmarks/results). The roofs are
measured in the same run: a device-to-device copy, counting bytes read and bytes written, and matrix products in fp32
without tf32, in fp64, and, for LoRA (triton_lora.py), in tf32 and bf16; masks, rotations
and clipping are in triton_streams.py. A kernel that differs from its definition is reported as wrong and not timed.
Without a GPU there is nothing to measure, and it says so.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
from collections.abc import Callable
from datetime import date
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
import triton
from triton_lora import LINES, Sizes, line
from triton_streams import STREAMS, stream_line
from triton_streams import Sizes as StreamSizes

from fedcore.dtypes import BF16, STORAGE
from fedcore.rowtable import RowTable

DEVICE = "cuda"
ROUNDS = 15
#: bytes of the rows of a timed case: far more than the L2 cache holds
BYTES = 4 << 30
DTYPES = ("float32", "float16", "bfloat16")


def seconds(work: Callable[[], object], rounds: int = ROUNDS) -> dict[str, float]:
    """Median, least and greatest time of `work`, by device events, after two runs that do not count."""
    times = []
    for turn in range(rounds + 2):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        work()
        end.record()
        end.synchronize()
        if turn >= 2:
            times.append(start.elapsed_time(end) / 1e3)
    return {"median": statistics.median(times), "min": min(times), "max": max(times)}


def roofs() -> dict[str, float]:
    """Copy bandwidth in bytes a second, matrix rates in operations a second."""
    source = torch.randn(BYTES // 4, device=DEVICE)
    target = torch.empty_like(source)
    found = {"copy, bytes/s": 2 * BYTES / seconds(partial(target.copy_, source))["median"]}
    del source, target
    kinds = {"fp32": torch.float32, "fp64": torch.float64, "tf32": torch.float32, "bf16": torch.bfloat16}
    for name, dtype in kinds.items():
        torch.backends.cuda.matmul.allow_tf32 = name == "tf32"
        a, b = torch.randn(2, 8192, 8192, dtype=dtype, device=DEVICE)
        found[f"{name} matrix product, flop/s"] = 2 * 8192**3 / seconds(partial(torch.matmul, a, b), 5)["median"]
    torch.backends.cuda.matmul.allow_tf32 = False
    return found


def make_rows(n: int, d: int, dtype: str, seed: int = 0) -> list[torch.Tensor]:
    """n rows of normal numbers in one allocation, each on a multiple of 16 bytes."""
    generator = torch.Generator(DEVICE).manual_seed(seed)
    width = -(-d // 8) * 8
    block = torch.empty((n, width), dtype=getattr(torch, dtype), device=DEVICE).normal_(generator=generator)
    return [row[:d] for row in block]


def on_host(tensors: list[torch.Tensor]) -> RowTable:
    rows = [t.cpu() for t in tensors]
    return RowTable.from_arrays(
        [r.view(torch.int16).numpy().view(BF16) if r.dtype == torch.bfloat16 else r.numpy() for r in rows]
    )


class Op:
    """How one op is called: its kernel and its definition, the arguments for n rows, the outputs for one row of d."""

    def __init__(
        self,
        name: str,
        arguments: Callable[[int], tuple] = lambda n: (),
        out: str | None = "like rows",
        outputs: int = 0,
    ):
        self.name, self.arguments, self.out, self.outputs = name, arguments, out, outputs
        self.kernel = getattr(import_module(f"fedcore.kernels.{name}"), name)
        self.definition = getattr(import_module(f"fedcore.reference.{name}"), name)

    def target(self, tensors: list[torch.Tensor]) -> torch.Tensor | None:
        """The tensor that a call writes, poisoned, or None for a statistic."""
        if self.out is None:
            return None
        shape = (self.outputs, len(tensors[0])) if self.outputs else (len(tensors[0]),)
        dtype = tensors[0].dtype if self.out == "like rows" else getattr(torch, self.out)
        return torch.full(shape, 77, dtype=dtype, device=DEVICE)

    def call(self, tensors: list[torch.Tensor], target: torch.Tensor | None) -> Any:
        return self.kernel(tensors, *self.arguments(len(tensors)), *(() if target is None else (target,)))

    def moved(self, tensors: list[torch.Tensor], target: torch.Tensor | None) -> int:
        """The fewest bytes: every row read once, every output written once."""
        rows = sum(t.numel() * t.element_size() for t in tensors)
        return rows + (0 if target is None else target.numel() * target.element_size())

    def differs(self, n: int, d: int, dtype: str) -> str | None:
        """What is wrong with the kernel on fresh rows, or None."""
        tensors = make_rows(n, d, dtype, seed=n + d)
        target = self.target(tensors)
        found = self.call(tensors, target)
        rows, arguments = on_host(tensors), self.arguments(n)
        if target is None:
            return self._statistic_differs(found.cpu().numpy(), self.definition(rows, *arguments))
        name = str(target.dtype).removeprefix("torch.")
        expected = np.empty(target.shape, STORAGE.get(name, name))
        flag = self.definition(rows, *arguments, expected)
        got = target.cpu()
        bits = (got.view(torch.int16) if got.dtype == torch.bfloat16 else got).numpy().tobytes()
        if bool(found) != bool(flag):
            return f"n={n}, d={d}, {dtype}: flag {found}, expected {flag}"
        return None if bits == expected.tobytes() else f"n={n}, d={d}, {dtype}: other bits"

    def _statistic_differs(self, got: np.ndarray, expected: np.ndarray) -> str | None:
        if self.name != "gram":
            return None if got.tobytes() == expected.tobytes() else f"other bits, shape {got.shape}"
        from fedcore.reference.gram import EPSILON

        bound = EPSILON / 4 * (expected.diagonal()[:, None] + expected.diagonal())
        return None if (np.abs(got - expected) <= bound).all() else "outside the documented bound"


def pairs(n: int) -> np.ndarray:
    return np.stack([np.arange(n - 1), np.arange(1, n)], axis=1) if n > 1 else np.zeros((0, 2), np.int64)


def weights(n: int, m: int) -> np.ndarray:
    return np.random.default_rng(n).uniform(0.5, 2.0, (m, n)).astype(np.float32)


def ops() -> list[tuple[Op, list[int]]]:
    """Every op and the numbers of rows that it is timed at."""
    wide = [8, 10, 16, 32, 33, 64, 100, 256, 1000, 4096]
    return [
        (Op("weighted_sum", lambda n: (weights(n, 1)[0], float(n))), [10, 100, 1000]),
        (Op("weighted_sums", lambda n: (weights(n, 4), None), outputs=4), [10, 100]),
        (Op("weighted_sums", lambda n: (weights(n, n), None), outputs=-1), [10, 100]),
        (Op("sign_counts", lambda n: (None,), out="int32"), [10, 100, 1000]),
        (Op("squared_norms", out=None), [10, 100, 1000]),
        (Op("gram", out=None), [10, 32, 100, 256]),
        (Op("squared_distances", lambda n: (pairs(n),), out=None), [2, 10, 100]),
        (Op("median"), wide),
        (Op("trimmed_mean", lambda n: (n // 5,)), wide),
        (Op("mean_around_median", lambda n: (n // 5,)), wide),
    ]


def sized(op: Op, n: int) -> Op:
    """The op itself, or for outputs = −1 one with as many outputs as rows."""
    return op if op.outputs >= 0 else Op(op.name, op.arguments, op.out, n)


def check(op: Op) -> list[str]:
    """What is wrong, at sizes around the blocks and tiles of the kernels and at a larger one."""
    sizes = [(1, 1), (2, 1023), (5, 1025), (31, 4097), (32, 300), (33, 8193), (64, 129), (100, 20001), (257, 1000)]
    found = [sized(op, n).differs(n, d, dtype) for n, d in sizes for dtype in DTYPES]
    return [wrong for wrong in found if wrong]


def timed(op: Op, n: int, dtype: str, roof: dict[str, float]) -> dict[str, object]:
    """Seconds of one call on BYTES of rows, and what part of the roof that is."""
    op = sized(op, n)
    itemsize = 4 if dtype == "float32" else 2
    d = BYTES // (itemsize * n) // 8192 * 8192
    tensors = make_rows(n, d, dtype)
    target = op.target(tensors)
    took = seconds(lambda: op.call(tensors, target))
    moved = op.moved(tensors, target)
    result: dict[str, object] = {"d": d, **took, "GB/s": moved / took["median"] / 1e9}
    result["part of the copy bandwidth"] = moved / took["median"] / roof["copy, bytes/s"]
    if op.name == "gram":
        rate = n * (n + 1) * d / took["median"]
        result["part of the fp32 matrix rate, one half counted"] = rate / roof["fp32 matrix product, flop/s"]
    if op.name == "weighted_sums":
        result["part of the fp64 matrix rate"] = (
            2 * n * op.outputs * d / took["median"] / roof["fp64 matrix product, flop/s"]
        )
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=Path(__file__).parent / "results")
    known = {op.name for op, _ in ops()} | LINES.keys() | STREAMS.keys()
    parser.add_argument("--ops", nargs="+", choices=sorted(known), default=sorted(known), help="by default all")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=["float32", "bfloat16"])
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("bench_triton: no GPU on this machine, so there is nothing to check or to time")
    if not isinstance(import_module("fedcore.kernels.fold")._fold_kernel, triton.JITFunction):
        raise SystemExit("bench_triton: TRITON_INTERPRET is set, so kernels do not reach the GPU; unset it")
    properties = torch.cuda.get_device_properties(0)
    results: dict[str, Any] = {"roofs": roofs()}
    record = {
        "benchmark": "triton",
        "date": date.today().isoformat(),
        "machine": {"gpu": properties.name, "multiprocessors": properties.multi_processor_count},
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "triton": triton.__version__},
        "results": results,
    }  # fmt: skip
    arguments.folder.mkdir(parents=True, exist_ok=True)
    path = arguments.folder / "triton.json"
    wrong = 0
    for op, counts in [(op, counts) for op, counts in ops() if op.name in arguments.ops]:
        outputs = {0: "", -1: ", as many outputs as rows"}.get(op.outputs, f", {op.outputs} outputs")
        differences = check(op)
        wrong += bool(differences)
        results[op.name + outputs] = {"wrong": differences} if differences else {
            f"{n} rows, {dtype}": timed(op, n, dtype, results["roofs"]) for n in counts for dtype in arguments.dtypes
        }  # fmt: skip
        path.write_text(json.dumps(record, indent=1) + "\n")  # each op, so that a run cut short has its figures
        show(op.name + outputs, results[op.name + outputs])
    more = {name: partial(line, name, Sizes(), DEVICE, arguments.dtypes) for name in LINES}
    more |= {name: partial(stream_line, name, StreamSizes(), DEVICE) for name in STREAMS}
    for name in [name for name in more if name in arguments.ops]:
        results[name] = more[name](results["roofs"])
        wrong += "wrong" in results[name]
        path.write_text(json.dumps(record, indent=1) + "\n")
        show(name, results[name])
    if wrong:
        raise SystemExit(f"bench_triton: {wrong} ops differ from their definitions; see {path}")


def show(name: str, result: dict[str, Any]) -> None:
    """One line a case, short enough for the end of a log."""
    for case, figures in result.items():
        if case == "wrong":
            print(f"{name}: WRONG {figures[:2]}", flush=True)
        else:
            parts = ", ".join(f"{k} {v:.2f}" for k, v in figures.items() if "part" in k)
            rate = f"{figures['GB/s']:.0f} GB/s" if "GB/s" in figures else f"{figures['flop/s'] / 1e12:.1f} Tflop/s"
            print(f"{name}, {case}: {figures['median'] * 1e3:.3f} ms, {rate}, {parts}", flush=True)


if __name__ == "__main__":
    main()
