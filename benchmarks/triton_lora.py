"""The LoRA lines of bench_triton.py: each op against its definition first, then timed at the size of its goal.

Everything here runs at any size and on any device that the ops run on, so that tests run it on a CPU.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from inputs import LINEAR

import fedcore as fc

DTYPES = ("float32", "bfloat16")
Modules = list[tuple[list[torch.Tensor], list[torch.Tensor], np.ndarray]]


@dataclass(frozen=True)
class Sizes:
    """What is timed.

    d           d_out and d_in of one module; clients of `rank` each
    linear      (d_in, d_out) of the linear layers of a block of the whole model, `layers` such blocks
    gram        clients of the Gram over the whole model
    rounds      of each timing
    """

    d: int = 4096
    clients: int = 16
    rank: int = 16
    linear: tuple[tuple[int, int], ...] = tuple(LINEAR.values())
    layers: int = 32
    gram: int = 32
    rounds: int = 15

    def module(self, device: str, dtype: str, seed: int = 0) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """(b, a) of one module."""
        return factors(device, dtype, self.d, self.d, [self.rank] * self.clients, seed)

    def modules(self, device: str, dtype: str, clients: int) -> Modules:
        """Every module of the model, each with factors of its own, and coefficients of a mean."""
        shapes = [shape for _ in range(self.layers) for shape in self.linear]
        return [
            (*factors(device, dtype, d_out, d_in, [self.rank] * clients, m), np.full(clients, 2 / clients))
            for m, (d_in, d_out) in enumerate(shapes)
        ]


def factors(
    device: str, dtype: str, d_out: int, d_in: int, ranks: list[int], seed: int
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Normal factors (b, a) of clients of these ranks."""
    generator = torch.Generator(device).manual_seed(seed)

    def one(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=getattr(torch, dtype), device=device).normal_(generator=generator)

    return [one(d_out, r) for r in ranks], [one(r, d_in) for r in ranks]


def seconds(work: Callable[[], object], device: str, rounds: int) -> dict[str, float]:
    """Median, least and greatest time of `work` as its caller sees it, after two runs that do not count."""
    wait, times = torch.cuda.synchronize if device == "cuda" else (lambda: None), []
    for _ in range(rounds + 2):
        wait()
        start = time.perf_counter()
        work()
        wait()
        times.append(time.perf_counter() - start)
    return {"median": float(np.median(times[2:])), "min": min(times[2:]), "max": max(times[2:])}


def kernel_seconds(work: Callable[[], object], kernel: str, device: str, rounds: int) -> float | None:
    """Mean seconds of one run of `work` inside a kernel of this name, by torch's profiler; None off a GPU."""
    if device != "cuda":
        return None
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(rounds):
            work()
        torch.cuda.synchronize()
    spent = sum(event.self_device_time_total for event in profile.key_averages() if kernel in event.key)
    return spent / 1e6 / rounds if spent else None


def rates(flop: int, took: dict[str, float], roof: dict[str, float], *names: str) -> dict[str, Any]:
    """A timing with its rate, and what part of the matrix rates of the same run that is."""
    rate = flop / took["median"]
    parts = {f"part of the {name} matrix rate": rate / roof[f"{name} matrix product, flop/s"] for name in names}
    return {**took, "flop/s": rate, **parts}


def host(side: list[torch.Tensor]) -> list[np.ndarray]:
    return [x.double().cpu().numpy() for x in side]


def product_bound(b: list[torch.Tensor], a: list[torch.Tensor], c: np.ndarray) -> np.ndarray:
    """What lora_delta_sum may be off by (fedcore/reference/lora_delta_sum.py), where nothing is subnormal."""
    terms = sum(len(y) for y in a)
    sizes = sum(abs(s) * np.abs(x) @ np.abs(y) for s, x, y in zip(c, host(b), host(a), strict=True))
    return (min(terms, 256) + (2 if b[0].element_size() == 4 else 6)) * 2.0**-24 * sizes


#: (d_out, d_in, ranks) of what is checked: around tiles and chains, never square
CHECKED = ((70, 131, [3, 16, 1]), (129, 65, [16] * 4), (20, 200, [16] * 20), (65, 96, [255, 2]))


def check_delta_sum(device: str) -> Iterator[str]:
    for d_out, d_in, ranks in CHECKED:
        for dtype in DTYPES:
            (b, a), c = factors(device, dtype, d_out, d_in, ranks, 1), np.linspace(-0.2, 1, len(ranks))
            exact = sum(s * x @ y for s, x, y in zip(c, host(b), host(a), strict=True))
            got = fc.ops.lora_delta_sum(b, a, c, out_dtype="float64", backend="triton").cpu().numpy()
            if not (np.abs(got - exact) <= product_bound(b, a, c)).all():
                yield f"{d_out} x {d_in}, ranks {ranks}, {dtype}: outside the documented bound"


def check_order(name: str, device: str) -> Iterator[str]:
    """An order statistic moves by no more than the products that it is taken of."""
    f = {} if name == "lora_delta_median" else {"f": 1}
    for d_out, d_in, ranks in CHECKED[:3]:
        (b, a), c = factors(device, "bfloat16", d_out, d_in, ranks, 2), np.linspace(0.5, 1, len(ranks))
        call = partial(getattr(fc.ops, name), coefficients=c, **f)
        expected = call([x.float().cpu() for x in b], [y.float().cpu() for y in a], backend="reference").numpy()
        got = call(b, a, backend="triton").cpu().numpy()
        bounds = [product_bound([x], [y], [s]) for s, x, y in zip(c, b, a, strict=True)]
        if not (np.abs(got - expected) <= 2 * np.max(bounds, 0) + 2.0**-23 * np.abs(expected)).all():
            yield f"{d_out} x {d_in}, ranks {ranks}: outside the bound of the products"


def check_gram(device: str) -> Iterator[str]:
    for d_out, d_in, ranks in CHECKED:
        for dtype in DTYPES:
            b, a = factors(device, dtype, d_out, d_in, ranks, 3)
            expected = fc.ops.lora_gram([([x.cpu() for x in b], [y.cpu() for y in a], None)], backend="reference")
            got = fc.ops.lora_gram([(b, a, None)], backend="triton")
            norms = zip(host(b), host(a), strict=True)
            size = np.array([np.linalg.norm(x, axis=0) @ np.linalg.norm(y, axis=1) for x, y in norms])
            most = (d_in + d_out + max(ranks) ** 2 + 8) * 2.0**-53 * size[:, None] * size
            if not (np.abs(got - expected) <= 2 * most).all():
                yield f"{d_out} x {d_in}, ranks {ranks}, {dtype}: outside the documented bound"


def check_truncate(device: str) -> Iterator[str]:
    """The documented 4e-6 of ‖Δ‖ to the definition, of modules of two sizes and many ranks at once."""
    shapes = [(300, 220, [16] * 8), (220, 300, [8] * 9), (300, 220, [3, 40, 16]), (300, 220, [250])]
    modules = [
        (*factors(device, dtype, d_out, d_in, ranks, seed), np.linspace(0.2, 1, len(ranks)))
        for seed, (d_out, d_in, ranks) in enumerate(shapes)
        for dtype in DTYPES
    ]
    for (b, a, c), found in zip(modules, fc.ops.lora_truncate_modules(modules, (4, 16)), strict=True):
        delta = sum(s * x @ y for s, x, y in zip(c, host(b), host(a), strict=True))
        u, values, vt = np.linalg.svd(delta, full_matrices=False)
        for rank, one in found.items():
            product = (one.b @ one.a).cpu().numpy()
            best = (u[:, :rank] * values[:rank]) @ vt[:rank]
            if np.linalg.norm(product - best) > 4e-6 * np.linalg.norm(values):
                yield f"{delta.shape}, rank {rank}: further than 4e-6 from the definition"


def timed_delta_sum(sizes: Sizes, device: str, dtype: str, roof: dict[str, float]) -> dict[str, Any]:
    """Dense out in fp32 and in the factors' dtype, and added to a weight in that dtype with one rounding."""
    (b, a), c = sizes.module(device, dtype), np.linspace(1, 2, sizes.clients) / sizes.clients
    weight = torch.zeros((sizes.d, sizes.d), dtype=getattr(torch, dtype), device=device)
    calls = {
        "fp32 out": partial(fc.ops.lora_delta_sum, b, a, c, out=weight.float()),
        f"{dtype} out": partial(fc.ops.lora_delta_sum, b, a, c, out=weight.clone()),
        "with the weight": partial(fc.ops.lora_delta_sum, b, a, c, base=weight, out=weight.clone()),
    }
    flop, found = 2 * sizes.d**2 * sizes.clients * sizes.rank, {}
    for name, call in calls.items():
        work = partial(call, backend="triton")
        found[name] = rates(flop, seconds(work, device, sizes.rounds), roof, "bf16", "tf32", "fp32")
        alone = kernel_seconds(work, "_lora_delta", device, sizes.rounds)
        if alone is not None:
            inside = rates(flop, {"median": alone}, roof, "bf16", "tf32", "fp32")
            found[name] |= {f"kernel alone, {key}": value for key, value in inside.items()}
    return found


def timed_order(name: str, sizes: Sizes, device: str, dtype: str, roof: dict[str, float]) -> dict[str, Any]:
    (b, a), c = sizes.module(device, dtype), np.ones(sizes.clients)
    f = {} if name == "lora_delta_median" else {"f": sizes.clients // 5}
    out = torch.empty((sizes.d, sizes.d), dtype=torch.float32, device=device)
    work = partial(getattr(fc.ops, name), b, a, coefficients=c, out=out, backend="triton", **f)
    flop = 2 * sizes.d**2 * sizes.clients * sizes.rank
    return {"fp32 out": rates(flop, seconds(work, device, sizes.rounds), roof, "fp32")}


def timed_gram(sizes: Sizes, device: str, dtype: str, roof: dict[str, float]) -> dict[str, Any]:
    """⟨Δ_i, Δ_j⟩ of a whole model's adapters; half of the products counted, as only they are needed."""
    modules, terms = sizes.modules(device, dtype, sizes.gram), sizes.gram * sizes.rank
    flop = terms * (terms + 1) * sum(b[0].shape[0] + a[0].shape[1] for b, a, _ in modules)
    took = seconds(partial(fc.ops.lora_gram, modules, backend="triton"), device, min(sizes.rounds, 5))
    return {f"{sizes.gram} clients x {len(modules)} modules": rates(flop, took, roof, "fp64")}


def timed_truncate(sizes: Sizes, device: str, dtype: str, roof: dict[str, float]) -> dict[str, Any]:
    """All modules of a model to rank `rank` in one call, factors and results on the device; Grams alone counted."""
    modules, terms = sizes.modules(device, dtype, sizes.clients), sizes.clients * sizes.rank
    flop = 2 * terms**2 * sum(b[0].shape[0] + a[0].shape[1] for b, a, _ in modules)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    took = seconds(partial(fc.ops.lora_truncate_modules, modules, sizes.rank), device, min(sizes.rounds, 5))
    found = rates(flop, took, roof, "fp64")
    if device == "cuda":
        found["peak bytes beside the factors"] = torch.cuda.max_memory_allocated() - before
    one = seconds(partial(fc.ops.lora_truncate, *modules[0], sizes.rank), device, min(sizes.rounds, 5))
    found["seconds of one module alone"] = one["median"]
    return {f"{len(modules)} modules": found}


Check = Callable[[str], Iterator[str]]
Timed = Callable[[Sizes, str, str, dict[str, float]], dict[str, Any]]
#: op -> (what is wrong with it on a device, its figures)
LINES: dict[str, tuple[Check, Timed]] = {
    "lora_delta_sum": (check_delta_sum, timed_delta_sum),
    "lora_delta_median": (partial(check_order, "lora_delta_median"), partial(timed_order, "lora_delta_median")),
    "lora_delta_trimmed_mean": (
        partial(check_order, "lora_delta_trimmed_mean"),
        partial(timed_order, "lora_delta_trimmed_mean"),
    ),
    "lora_gram": (check_gram, timed_gram),
    "lora_truncate": (check_truncate, timed_truncate),
}


def line(op: str, sizes: Sizes, device: str, dtypes: list[str], roof: dict[str, float]) -> dict[str, Any]:
    """What is wrong with an op, or its figures by case and dtype."""
    check, timed = LINES[op]
    if wrong := list(check(device)):
        return {"wrong": wrong}
    return {
        f"{case}, {dtype}": figures
        for dtype in dtypes
        for case, figures in timed(sizes, device, dtype, roof).items()
    }  # fmt: skip
