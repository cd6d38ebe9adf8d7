"""The mean in delta space of the LoRA adapters of a 7B model, truncated to their rank, from files.

Every linear layer of 32 (hidden 4096, MLP 11008) at rank 16: 224 modules, 40M parameters, bf16, in one PEFT directory
a client. Clients share a part and differ by noise of twice its size, so nothing but what they share is of low rank.
Each run is a process of its own, so that its peak of resident memory is its own too; files are in the page cache where
memory has room for them. Nothing is reported unless one module agrees with its dense fp64 sum and the SVD of that.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from inputs import LINEAR
from measure import require_green, save

import fedcore as fc
from fedcore.dtypes import to_float64
from fedcore.lora.reading import WORKERS
from fedcore.rules.budget import parse_memory
from fedcore.updates.header import pack_header
from fedcore.updates.layout import Layout

RANK, SCALE = 16, 2.0
RUN = """
import json, sys, time
import fedcore as fc
paths = [line.rstrip("\\n") for line in open(sys.argv[1])]
start = time.perf_counter()
result = fc.aggregate(paths, fc.rules.Mean(), space="delta", memory=sys.argv[2])
seconds = time.perf_counter() - start
peak = next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
result.update.to_peft(sys.argv[3])
print(json.dumps({"seconds": seconds, "peak": peak, "by step": result.report["seconds"],
                  "modules": result.report["modules"]}))
"""


def shapes(layers: int) -> dict[str, tuple[int, int]]:
    """name -> shape of every factor."""
    found = {}
    for layer in range(layers):
        for name, (d_in, d_out) in LINEAR.items():
            module = f"base_model.model.model.layers.{layer}.{name}"
            found[f"{module}.lora_A.weight"] = (RANK, d_in)
            found[f"{module}.lora_B.weight"] = (d_out, RANK)
    return found


def make_files(folder: Path, clients: int, layers: int) -> list[Path]:
    """Deterministic PEFT directories: half of one common block, plus one block of noise turned by another step each."""
    factors = shapes(layers)
    header = pack_header(Layout.from_entries((name, shape, "bfloat16") for name, shape in factors.items()), {})
    modules = sorted({name.rpartition(".lora_")[0].removeprefix("base_model.model.") for name in factors})
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": SCALE * RANK, "target_modules": modules}
    generator = np.random.default_rng(7)
    size = sum(rows * columns for rows, columns in factors.values())
    common, noise = (generator.standard_normal(size, np.float32) for _ in range(2))
    common *= np.float32(0.5)
    paths = []
    for i in range(clients):
        paths.append(folder / f"client-{i:03}")
        paths[-1].mkdir()
        (paths[-1] / "adapter_config.json").write_text(json.dumps(config))
        turn = i * 2_654_435_761 % size
        values = common + np.concatenate((noise[turn:], noise[:turn]))
        with open(paths[-1] / "adapter_model.safetensors", "wb") as file:
            file.write(header)
            file.write((values.view(np.uint32) >> 16).astype(np.uint16))
    return paths


def run(listing: Path, memory: str, out: Path) -> dict[str, Any]:
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-c", RUN, str(listing), memory, str(out)]
    # two modules are worked on at a time, each by one thread of BLAS
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout)


def check(paths: list[Path], out: Path, module: str, said: dict[str, Any]) -> dict[str, float]:
    """One module of the result against its dense sum in fp64. Exits where it is not what was said."""
    updates = [fc.Update.open(path) for path in paths]
    total = 0.0
    for update in updates:
        pair = update.modules[module]
        b, a = (to_float64(update.tensors[name]) for name in (pair.b, pair.a))
        total = total + (pair.scale / len(paths)) * (b @ a)
    result = fc.Update.open(out)
    pair = result.modules[module]
    ours = pair.scale * to_float64(result.tensors[pair.b]) @ to_float64(result.tensors[pair.a])
    wide = total if len(total) <= total.shape[1] else total.T
    squares = np.linalg.eigvalsh(wide @ wide.T)[::-1].clip(0)
    norm = float(np.sqrt(squares.sum()))
    found = {
        "residual, measured": float(np.linalg.norm(total - ours)) / norm,
        "residual, reported": said["residual"],
        "residual, optimum": float(np.sqrt(squares[RANK:].sum())) / norm,
        "residual, at most": said["most"],
        "no rank-16 matrix below": said["least"],
    }
    # factors are rounded to bf16 once, by 2^-8 of what they are, independently of what is left
    rounding = 2.0**-8 * float(np.linalg.norm(ours)) / norm
    within = (
        found["residual, measured"] <= np.hypot(said["most"], rounding) and said["least"] <= found["residual, optimum"]
    )
    if not within or abs(said["norm"] / norm - 1) > 1e-6 or said["residual"] > 1.01 * found["residual, optimum"]:
        raise SystemExit(f"{module}: the result is not what it says, so nothing is timed: {found}, norm {norm}, {said}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--memory", default="2GB")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--directory", type=Path, default=Path(__file__).parent / "scratch")
    parser.add_argument("--keep", action="store_true", help="keep the files for the next run")
    options = parser.parse_args()
    require_green("lora_truncate")
    options.directory.mkdir(exist_ok=True, parents=True)
    try:
        paths = sorted(options.directory.glob("client-*"))
        if len(paths) != options.clients:
            paths = make_files(options.directory, options.clients, options.layers)
        listing, out = options.directory / "listing", options.directory / "result"
        listing.write_text("".join(f"{path}\n" for path in paths))
        runs = [run(listing, options.memory, out) for _ in range(options.rounds)]
        modules = runs[-1]["modules"]
        name = next(name for name in modules if name.endswith("down_proj"))
        checked = check(paths, out, name, modules[name])
        peak = max(run["peak"] for run in runs)
        residuals = [report["residual"] for report in modules.values()]
        results = {
            "threads": WORKERS,
            "clients": options.clients,
            "modules": len(modules),
            "parameters": sum(rows * columns for rows, columns in shapes(options.layers).values()),
            "seconds": statistics.median(run["seconds"] for run in runs),
            "seconds of each run": [run["seconds"] for run in runs],
            "seconds by step": runs[-1]["by step"],
            "memory": options.memory,
            "peak resident MB": peak / 1e6,
            "of budget": peak / parse_memory(options.memory),
            "cores": {core: sum(r["core"] == core for r in modules.values()) for core in ("qr", "gram", "block")},
            "residuals, least and greatest": [min(residuals), max(residuals)],
            "residual / least possible, at most": max(r["most"] / r["least"] for r in modules.values() if r["least"]),
            f"checked: {name}": checked,
        }
        save("lora_delta_cohort", results)
    finally:
        if not options.keep:
            shutil.rmtree(options.directory)


if __name__ == "__main__":
    main()
