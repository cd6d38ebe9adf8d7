"""What the benchmarks of order statistics share: cohorts of 400 MB, the roof, peers on a ready matrix."""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable

import numpy as np
from bench_weighted_sum import summary
from inputs import rows
from measure import alternate, require_green, save

import fedcore as fc
from fedcore.native.read import read
from fedcore.ops.rows import as_rows, available_cores

INPUT = 400_000_000  # bytes of fp32
SIZES = (10, 37, 100, 257, 1000, 4096)
#: sizes whose peers are timed as well, on all of the same columns; a peer takes up to minutes there
AGAINST_PEERS = (10, 100, 1000)
Work = Callable[[], object]


def curve(op: str, n: int, dtype: str, threads: int, arguments: tuple[int, ...]) -> dict[str, object]:
    """One n: the roof at its best number of streams and the kernel, alternating."""
    d = INPUT // 4 // n
    table, out = as_rows(rows(n, d, dtype)).table, np.zeros(d, np.float32)
    works: dict[str, Work] = {f"roof, {s} streams": (lambda s=s: read(table, s, threads)) for s in (2, 4, 8)}
    works["fedcore"] = lambda: getattr(fc.ops, op)(table, *arguments, out=out, threads=threads)
    times = summary(alternate(works), table.nbytes)
    times["fedcore"]["rows/s"] = n / times["fedcore"]["median"]
    return times


def against(op: str, n: int, threads: int, arguments: tuple[int, ...], peers: dict[str, Callable]) -> dict[str, object]:
    """fedcore on rows in buffers of their own, each peer on a ready matrix of them (NumPy, or torch where it says so).

    Peers run three rounds, since each takes a second or more a round.
    """
    import torch

    torch.set_num_threads(threads)
    d = INPUT // 4 // n
    data = rows(n, d)
    table, out, matrix = as_rows(data).table, np.zeros(d, np.float32), np.stack(data)
    tensor = torch.from_numpy(matrix)
    works: dict[str, Work] = {"fedcore": lambda: getattr(fc.ops, op)(table, *arguments, out=out, threads=threads)}
    for name, peer in peers.items():
        given = matrix if name.startswith("numpy") else tensor
        works[name] = lambda peer=peer, given=given: peer(given)
    times = summary(alternate(works, rounds=3), table.nbytes)
    for name in peers:
        times[name]["times slower than fedcore"] = times[name]["median"] / times["fedcore"]["median"]
    return times


def byzfl(name: str, **arguments: object) -> dict[str, Callable]:
    """{'ByzFL <name>': aggregator} where ByzFL is installed."""
    if importlib.util.find_spec("byzfl") is None:
        return {}
    from peers import byzfl_aggregator

    return {f"ByzFL {name}": byzfl_aggregator(name, **arguments)}


def run(
    op: str, arguments_of: Callable[[int], tuple[int, ...]], peers_of: Callable[[int], dict[str, Callable]]
) -> None:
    """Take every figure of one op and save them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=available_cores())
    parser.add_argument("--rows", type=int, nargs="*", default=SIZES, help="numbers of rows to time")
    parser.add_argument("--peers", type=int, nargs="*", default=AGAINST_PEERS, help="of those, the ones with peers")
    given = parser.parse_args()
    require_green(op)
    results: dict[str, object] = {"threads": given.threads}
    for n in given.rows:
        for dtype in ("float32", "bfloat16"):
            results[f"{n} rows, {dtype}"] = curve(op, n, dtype, given.threads, arguments_of(n))
    for n in given.peers:
        results[f"peers, {n} rows, float32"] = against(op, n, given.threads, arguments_of(n), peers_of(n))
    found = importlib.util.find_spec("byzfl") is not None
    save(op, results, ("torch", "byzfl") if found else ("torch",))
