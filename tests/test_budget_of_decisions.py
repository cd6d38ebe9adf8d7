"""What a decision in n-space and dense results take is in the budget: resident memory under the least that is asked."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest

import fedcore as fc
from fedcore.rules.budget import parse_memory

#: rule, clients, space, modules and their side, dense
CASES = {
    "Bulyan": ("Bulyan(3)", 600, "parameters", 1, 8, False),
    "Bulyan on mixtures": ("NearestNeighborMixing(100).then(Bulyan(3))", 600, "parameters", 1, 8, False),
    "mixtures read again": ("NormClipping(0.5).then(MoNNA(100, pivot=0))", 400, "parameters", 1, 4096, False),
    "Krum in delta space": ("Krum(3)", 700, "delta", 1, 8, False),
    "dense results": ("Median()", 3, "delta", 30, 1000, True),
}
MEASURED = """
import json, re, sys
import fedcore as fc
from fedcore.errors import BudgetError
from fedcore.rules import *
name, space, dense, *paths = sys.argv[1:]
def run(memory):
    return fc.aggregate(paths, eval(name), space, memory=memory, dense=dense == "True", threads=1)
try:
    run("1MB")
except BudgetError as error:
    least = re.search("expected at least (.*?) for", str(error)).group(1)
found = run(least)
peak = next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps([least, peak, found.report["n"]]))
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="resident memory is read from Linux's /proc")
@pytest.mark.parametrize("case", CASES)
def test_the_least_budget_is_enough(tmp_path, case):
    rule, clients, space, modules, side, dense = CASES[case]
    rng, paths = np.random.default_rng(0), []
    for i in range(clients):
        tensors, scaling = {}, {f"m{m}": 1.0 for m in range(modules)}
        for module in scaling:
            # the columns of one client hold what those of another do: all are as far apart
            a = np.roll(np.eye(1, side, dtype=np.float32), i) if side == 4096 else rng.normal(size=(1, side))
            tensors[f"{module}.lora_A.weight"] = a.astype(np.float32)
            tensors[f"{module}.lora_B.weight"] = (rng.normal(size=(side, 1)) if side != 4096 else a.T * 0).astype("f4")
        paths.append(tmp_path / f"c{i:04d}.safetensors")
        paths[-1].write_bytes(fc.Update.from_tensors(tensors, client_id=f"c{i:04d}", scaling=scaling).to_bytes())
    command = [sys.executable, "-c", MEASURED, rule, space, str(dense), *map(str, paths)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    least, peak, counted = json.loads(ran.stdout)
    assert counted == clients
    assert peak <= parse_memory(least)
