"""`fedcore doctor` where its thread may run on fewer cores than it could, which the kernels' threads inherit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fedcore.cli.doctor import examine
from fedcore.ops.rows import available_cores

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/task").is_dir() or available_cores() < 2, reason="needs Linux and two cores"
)
VARIABLES = ("OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY")


def told(found):
    return [line for line in found["to_do"] if line.startswith("threads: ")]


def bound_to_one():
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    return examine()


def test_a_thread_on_fewer_cores_than_others_is_told_what_to_unset(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    cores = available_cores()
    assert told(examine()) == []
    with ThreadPoolExecutor(1) as one:
        found = one.submit(bound_to_one).result()
        said = f"threads: this thread may run on 1 of {cores} cores, and so do all kernels; "
        assert told(found) == [f"{said}give it the cores of the others, which taskset -cp shows"]
        assert found["engine_works"]
        monkeypatch.setenv("OMP_PLACES", "cores")
        again = one.submit(examine).result()
        assert told(again) == [f"{said}unset OMP_PLACES"]
        assert again["environment"]["OMP_PLACES"] == "cores"
    assert told(examine()) == []


@pytest.mark.parametrize(("name", "value"), [("OMP_PROC_BIND", "true"), (None, None)])
def test_a_library_that_binds_the_thread_which_imports_it(name, value):
    pytest.importorskip("torch")
    if "libgomp" not in Path("/proc/self/maps").read_text():
        pytest.skip("torch is built with another OpenMP library than libgomp")
    environment = {k: v for k, v in os.environ.items() if k not in VARIABLES} | ({name: value} if name else {})
    command = [sys.executable, "-m", "fedcore.cli", "doctor", "--json"]
    found = json.loads(subprocess.run(command, env=environment, capture_output=True, check=True).stdout)
    assert found["machine"]["cores"] == available_cores()
    if name is None:
        assert told(found) == []
        return
    assert told(found) == [
        f"threads: this thread may run on 1 of {available_cores()} cores, and so do all kernels; unset {name}"
    ]
    assert found["environment"][name] == value
