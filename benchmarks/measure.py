"""How a figure is taken: alternating runs, medians, ratios inside one run, a result file that says where it is from."""

from __future__ import annotations

import gc
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
ROUNDS = 11
#: ops whose tests are also those of every order statistic
ORDER_STATISTICS = ("median", "trimmed_mean", "mean_around_median")


def alternate(works: dict[str, Callable[[], object]], rounds: int = ROUNDS) -> dict[str, dict[str, float]]:
    """Time each piece of work once a round, in turn, after one round that does not count.

    Returns for each name the median, the least and the greatest of its seconds: drift of the machine hits all alike.
    """
    seconds: dict[str, list[float]] = {name: [] for name in works}
    gc.collect()
    gc.disable()
    try:
        for turn in range(rounds + 1):
            for name, work in works.items():
                start = time.perf_counter()
                work()
                took = time.perf_counter() - start
                if turn:
                    seconds[name].append(took)
    finally:
        gc.enable()
    return {name: {"median": statistics.median(s), "min": min(s), "max": max(s)} for name, s in seconds.items()}


def require_green(op: str, *tests: str) -> None:
    """Stop unless the op's own tests pass, or those in tests/`tests`: a wrong kernel has no speed."""
    files = list(tests) or [f"ops/test_{op}.py"]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--rootdir", str(ROOT)]
    if op in ORDER_STATISTICS:
        files.append("ops/test_order_laws.py")
        command += ["-k", op]  # of the laws, those of ops with this name in theirs
    command += [str(ROOT / "tests" / file) for file in files]
    result = subprocess.run(command, cwd=ROOT / "tests", capture_output=True, text=True, check=False)
    if result.returncode:
        raise SystemExit(f"{op}: its tests fail, so it is not timed\n{result.stdout[-2000:]}{result.stderr[-1000:]}")


def machine() -> dict[str, object]:
    """What the figures were taken on."""
    text = Path("/proc/cpuinfo").read_text() if os.path.exists("/proc/cpuinfo") else ""
    fields = dict(re.findall(r"^([\w ]+?)\s*: (.+)$", text, re.M))
    caches = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind = ((index / name).read_text().strip() for name in ("level", "type"))
        if kind != "Instruction":
            caches[f"L{level}"] = (index / "size").read_text().strip()
    from fedcore.native import isa_selected

    return {
        "cpu": fields.get("model name", platform.processor()),
        "family_model_stepping": "-".join(fields.get(k, "?") for k in ("cpu family", "model", "stepping")),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "caches": caches,
        "isa": isa_selected(),
        "system": f"{platform.system()} {platform.release()}",
    }


def versions(*names: str) -> dict[str, str]:
    """Versions of Python and of the packages that took part."""
    found = {"python": platform.python_version()}
    for name in ("fedcore", "numpy", *names):
        found[name] = metadata.version(name)
    return found


def recorded(name: str, results: dict[str, object], packages: tuple[str, ...] = ()) -> dict[str, Any]:
    """Results with command, machine, versions and date."""
    return {
        "benchmark": name,
        "command": "python " + " ".join([os.path.relpath(sys.argv[0], ROOT), *sys.argv[1:]]),
        "date": date.today().isoformat(),
        "machine": machine(),
        "versions": versions(*packages),
        "results": results,
    }


def save(name: str, results: dict[str, object], packages: tuple[str, ...] = (), timed: bool = True) -> Path:
    """Write <name>.json with command, machine, versions and date into results, or, where it is about times and the
    machine has lesser vectors, into a folder there of its instruction set."""
    record = recorded(name, results, packages)
    isa = record["machine"]["isa"]
    folder = RESULTS / isa if timed and isa not in ("avx512", "amx") else RESULTS
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(f"{path.relative_to(ROOT)}:")
    print(json.dumps(results, indent=1))
    return path
