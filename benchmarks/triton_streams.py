"""The lines of bench_triton.py for masks, streams, rotations and clipping: checked to the last bit first, then timed.

Everything here runs at any size and on any device that the ops run on, so that tests run it on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from triton_lora import seconds

import fedcore as fc

BITS, CLIP = 26, 1.0
#: (residues, keys) of what is checked
UNMASKED = ((1, 1), (1023, 3), (8209, 20))
#: numbers of a block that are rotated
BLOCKS = (1, 64, 4096, 1 << 16)


@dataclass(frozen=True)
class Sizes:
    """What is timed: numbers of a vector, keys of its masks, clients that are clipped, rounds of each timing."""

    d: int = 1 << 24
    keys: int = 1000
    clients: int = 100
    rounds: int = 15


def keys(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Secrets and signs of masks."""
    rng = np.random.default_rng(count)
    return rng.integers(0, 256, (count, 32), dtype=np.uint8), rng.choice(np.array([1, -1], np.int8), count)


def residues(d: int, device: str) -> torch.Tensor:
    return torch.arange(d, dtype=torch.int64, device=device).remainder_(1 << BITS).to(torch.uint32)


def normal(d: int, device: str, count: int = 1) -> list[torch.Tensor]:
    generator = torch.Generator(device).manual_seed(d)
    return [torch.empty(d, device=device).normal_(generator=generator) for _ in range(count)]


def check_unmask(device: str) -> Iterator[str]:
    for d, count in UNMASKED:
        total, (secrets, signs) = residues(d, device), keys(count)
        got = fc.ops.unmask_sum(total, secrets, signs, BITS, backend="triton").cpu().numpy()
        if not np.array_equal(got, fc.ops.unmask_sum(total.cpu().numpy(), secrets, signs, BITS, backend="reference")):
            yield f"{d} residues, {count} keys: other bits"


def timed_unmask(sizes: Sizes, device: str, roof: dict[str, float]) -> dict[str, Any]:
    """Bytes of keystream a second."""
    total, (secrets, signs) = residues(sizes.d, device), keys(sizes.keys)
    work = partial(fc.ops.unmask_sum, total, secrets, signs, BITS, backend="triton")
    return {f"{sizes.d} residues, {sizes.keys} keys": rated(4 * sizes.d * sizes.keys, work, sizes, device, roof)}


def check_hadamard(device: str) -> Iterator[str]:
    for block in BLOCKS:
        (x,) = normal(3 * block, device)
        expected = fc.ops.hadamard(x.cpu().numpy().copy(), block, backend="reference")
        if fc.ops.hadamard(x, block, backend="triton").cpu().numpy().tobytes() != expected.tobytes():
            yield f"blocks of {block}: other bits"


def timed_hadamard(sizes: Sizes, device: str, roof: dict[str, float]) -> dict[str, Any]:
    """In place, read and written once counted."""
    found = {}
    for block in BLOCKS[-2:]:
        (x,) = normal(-(-sizes.d // block) * block, device)
        work = partial(fc.ops.hadamard, x, block, backend="triton")
        found[f"blocks of {block}"] = rated(8 * len(x), work, sizes, device, roof)
    return found


def check_clip(device: str) -> Iterator[str]:
    for d, count in ((1, 1), (1023, 2), (8209, 5)):
        rows, noise = normal(d, device, count), torch.arange(d, device=device) - d // 2
        got = fc.ops.clip_noise_accumulate(rows, CLIP, None, noise, 7.0, backend="triton").sum.cpu().numpy()
        host = [row.cpu().numpy() for row in rows]
        expected = fc.ops.clip_noise_accumulate(host, CLIP, None, noise.cpu().numpy(), 7.0, backend="reference")
        if got.tobytes() != np.asarray(expected.sum).tobytes():
            yield f"{count} rows of {d}: other bits"


def timed_clip(sizes: Sizes, device: str, roof: dict[str, float]) -> dict[str, Any]:
    """Rows read twice, for norms and for the sum; noise read and the mean written."""
    rows = normal(sizes.d, device, sizes.clients)
    noise = torch.zeros(sizes.d, dtype=torch.int64, device=device)
    work = partial(fc.ops.clip_noise_accumulate, rows, CLIP, None, noise, float(sizes.clients), backend="triton")
    moved = (2 * 4 * sizes.clients + 12) * sizes.d
    return {f"{sizes.clients} rows of {sizes.d}, float32": rated(moved, work, sizes, device, roof)}


def rated(
    moved: int, work: Callable[[], object], sizes: Sizes, device: str, roof: dict[str, float]
) -> dict[str, float]:
    """A timing with its bytes a second, and what part of the copy bandwidth of the same run that is."""
    took = seconds(work, device, sizes.rounds)
    rate = moved / took["median"]
    return {**took, "GB/s": rate / 1e9, "part of the copy bandwidth": rate / roof["copy, bytes/s"]}


Check = Callable[[str], Iterator[str]]
Timed = Callable[[Sizes, str, dict[str, float]], dict[str, Any]]
#: op -> (what is wrong with it on a device, its figures)
STREAMS: dict[str, tuple[Check, Timed]] = {
    "unmask_sum": (check_unmask, timed_unmask),
    "hadamard": (check_hadamard, timed_hadamard),
    "clip_noise_accumulate": (check_clip, timed_clip),
}


def stream_line(op: str, sizes: Sizes, device: str, roof: dict[str, float]) -> dict[str, Any]:
    """What is wrong with an op, or its figures by case."""
    check, timed = STREAMS[op]
    wrong = list(check(device))
    return {"wrong": wrong} if wrong else timed(sizes, device, roof)
