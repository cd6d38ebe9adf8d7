"""Hostile bytes against every decoder, with the C kernels built under AddressSanitizer and UBSan.

A few seconds each here; `make fuzz` lets atheris look for longer, guided by coverage.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import kernel_harness
import pytest
from fuzzing.mutations import vary
from fuzzing.targets import TARGETS

pytestmark = pytest.mark.builds
ROOT = Path(__file__).parents[2]
SECONDS = 4
#: lines without variables are what a report shows, and compile in half the time
FLAGS = ("-g1", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
BUILD = "from setuptools import setup; setup()"


@pytest.fixture(scope="module")
def kernels(tmp_path_factory) -> Path:
    """The folder of the extension and its objects with sanitizers."""
    if shutil.which("gcc") is None or not sys.platform.startswith("linux"):
        pytest.skip("gcc on Linux is needed to build the kernels with sanitizers")
    folder = tmp_path_factory.mktemp("sanitized")
    cc = kernel_harness.sanitizing(folder)
    command = [sys.executable, "-c", BUILD, "-q", "build_ext", "--build-lib", str(folder), "--build-temp", str(folder)]
    environment = dict(os.environ) | {"FEDCORE_CFLAGS": " ".join(FLAGS), "CC": cc, "PYTHONPATH": str(ROOT)}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert list(folder.rglob("_fedcore*.so")), built.stdout[-2000:] + built.stderr[-4000:]
    return folder


@pytest.fixture(scope="module")
def sanitized(kernels) -> dict[str, str]:
    """The environment in which the fuzzer runs on kernels with sanitizers."""
    (found,) = kernels.rglob("_fedcore*.so")
    runtimes = [
        subprocess.run(["gcc", f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    return dict(os.environ) | {
        "LD_PRELOAD": ":".join(runtimes),
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",
        "FEDCORE_FUZZ_EXTENSION": str(found),
        "OMP_NUM_THREADS": "1",
    }


def test_kernels_alone_read_and_write_nothing_beside_their_rows(kernels, tmp_path):
    """Reads past a row, unaligned access, undefined shifts: none on any ISA, at any alignment."""
    kernel_harness.check(kernels, tmp_path / "harness", *FLAGS)


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_hostile_bytes_give_errors_with_names_and_nothing_worse(target, sanitized, tmp_path):
    command = [
        sys.executable,
        str(Path(__file__).with_name("run.py")),
        target,
        "--seconds",
        str(SECONDS),
        "--mutations",
    ]
    found = subprocess.run(command, cwd=tmp_path, env=sanitized, capture_output=True, text=True, timeout=120)
    assert found.returncode == 0, found.stdout[-1000:] + found.stderr[-3000:]
    assert int(found.stdout.split()[1]) > 20


def test_the_sanitizers_are_there(sanitized, tmp_path):
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); from fuzzing.run import use_extension; import os\n"
        "use_extension(os.environ['FEDCORE_FUZZ_EXTENSION']); import numpy as np\n"
        "from fedcore.native import ffi, lib, address, c_rows; from fedcore.rowtable import RowTable\n"
        "table = RowTable.from_arrays([np.zeros(8, np.float32)]); table.starts[-1] = 1 << 20\n"
        "out = np.empty(1); lib.fc_squared_norms(c_rows(table), ffi.NULL, address(out, 'double *'), 1, 1)\n"
    )
    command = [sys.executable, "-c", program, str(ROOT / "tests")]
    found = subprocess.run(command, cwd=tmp_path, env=sanitized, capture_output=True, text=True, timeout=120)
    assert found.returncode != 0
    assert "AddressSanitizer" in found.stderr


def test_a_decoder_that_breaks_is_found(tmp_path):
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); from fuzzing.targets import TARGETS\n"
        "TARGETS['canary'] = (lambda data: data[:8] == b'x' * 8 or data.decode('ascii'), [b'x' * 8, b'y' * 64])\n"
        "from fuzzing.run import with_mutations; with_mutations('canary', 20, 1)\n"
    )
    command = [sys.executable, "-c", program, str(ROOT / "tests")]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert found.returncode == 1
    assert "something other than a FedcoreError left the decoder" in found.stderr
    assert list(tmp_path.glob("broken-canary-*"))


def test_variations_differ_from_what_they_came_from():
    import random

    valid = TARGETS["message"][1][0]
    assert len({vary(valid, random.Random(seed)) for seed in range(200)}) > 150
