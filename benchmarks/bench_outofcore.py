"""Median and Krum over files larger than the memory budget, against `cat files > /dev/null` in the same run.

Every run is a process of its own, so that its peak of resident memory is its own too. "cold": the files were dropped
from the operating system's cache before (posix_fadvise DONTNEED). "warm": they were not; where they are larger than
memory that makes no difference.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from measure import require_green, save

from fedcore.rules.budget import parse_memory
from fedcore.updates.header import pack_header
from fedcore.updates.layout import Layout

RUN = """
import json, sys, time
import fedcore as fc
paths = [line.rstrip("\\n") for line in open(sys.argv[1])]
rule = {"median": fc.rules.Median(), "krum": fc.rules.Krum(max(1, len(paths) // 5))}[sys.argv[2]]
start = time.perf_counter()
result = fc.aggregate(paths, rule, "parameters", memory=sys.argv[3])
seconds = time.perf_counter() - start
peak = next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps({"seconds": seconds, "peak": peak, "by step": result.report["seconds"]}))
"""


def make_files(folder: Path, files: int, megabytes: int) -> list[Path]:
    """Deterministic safetensors files of one fp32 tensor: one block of noise, turned by another step in each."""
    d = megabytes * 1_000_000 // 4
    noise = np.random.default_rng(7).standard_normal(d, np.float32).view(np.uint8)
    header = pack_header(Layout.from_entries([("weight", (d,), "float32")]), {})
    paths = []
    for i in range(files):
        turn = i * 2_654_435_761 % d * 4
        paths.append(folder / f"client-{i:05}.safetensors")
        with open(paths[-1], "wb") as file:
            for part in (header, noise[turn:], noise[:turn]):
                file.write(part)
    return paths


def forget(paths: list[Path]) -> None:
    """Drop files from the operating system's cache."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def cat(folder: Path) -> float:
    start = time.perf_counter()
    subprocess.run(f"cat {folder}/*.safetensors > /dev/null", shell=True, check=True)
    return time.perf_counter() - start


def aggregate(listing: Path, rule: str, memory: str) -> dict[str, Any]:
    command = [sys.executable, "-c", RUN, str(listing), rule, memory]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def compare(paths: list[Path], rule: str, memory: str, cold: bool, rounds: int) -> dict[str, object]:
    """Rounds of cat and of one rule, who goes first in turn: a disk with a budget of its own favours that one."""
    folder, total = paths[0].parent, sum(path.stat().st_size for path in paths)
    listing = folder / "listing"
    listing.write_text("".join(f"{path}\n" for path in paths))
    cats: list[float] = []
    runs: list[dict[str, Any]] = []
    works = [lambda: cats.append(cat(folder)), lambda: runs.append(aggregate(listing, rule, memory))]
    for turn in range(rounds):
        for work in works[:: -1 if turn % 2 else 1]:
            if cold:
                forget(paths)
            work()
    seconds = statistics.median(run["seconds"] for run in runs)
    peak = max(run["peak"] for run in runs)
    return {
        "cat GB/s": total / statistics.median(cats) / 1e9,
        "fedcore GB/s": total / seconds / 1e9,
        "of cat": statistics.median(cats) / seconds,
        "seconds": [run["seconds"] for run in runs],
        "seconds of cat": cats,
        "seconds by step": runs[-1]["by step"],
        "peak resident MB": peak / 1e6,
        "of budget": peak / parse_memory(memory),
        "rounds": rounds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--megabytes", type=int, default=40)
    parser.add_argument("--memory", default="1GB")
    parser.add_argument("--rules", nargs="+", default=["median"])
    parser.add_argument("--states", nargs="+", default=["cold"], choices=["cold", "warm"])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--directory", type=Path, default=Path(__file__).parent / "scratch")
    parser.add_argument("--keep", action="store_true", help="keep the files for the next run")
    options = parser.parse_args()
    require_green("outofcore", "test_outofcore.py", "test_outofcore_budget.py", "test_outofcore_changes.py")
    options.directory.mkdir(exist_ok=True, parents=True)
    try:
        paths = sorted(options.directory.glob("client-*.safetensors"))
        if len(paths) != options.files:
            paths = make_files(options.directory, options.files, options.megabytes)
            os.sync()
        results = {
            f"{rule}, {options.files} x {options.megabytes} MB, {options.memory}, {state}": compare(
                paths, rule, options.memory, state == "cold", options.rounds
            )
            for rule in options.rules
            for state in options.states
        }
        save("outofcore", results)
    finally:
        if not options.keep:
            shutil.rmtree(options.directory)


if __name__ == "__main__":
    main()
