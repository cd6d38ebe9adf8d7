"""The C kernels outside Python: under ThreadSanitizer, and the NEON kernels under an emulator.

As shipped they run in tests/test_packaging.py, under AddressSanitizer and UBSan in tests/fuzzing: those build them so.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
from kernel_harness import ROOT, SOURCE, sanitizing

pytestmark = pytest.mark.builds
_spec = importlib.util.spec_from_file_location("fedcore_build", ROOT / "csrc" / "build.py")
assert _spec is not None
assert _spec.loader is not None
_build = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_build)
#: fewer places where rows begin, for builds under which all is slow
FEWER = "-DOFFSETS=2"
#: the flags that the package is built with; warnings are errors
FLAGS = [*_build.FLAGS, "-Werror", "-pthread", "-I", str(ROOT / "csrc")]


def build(compiler: str, isas: dict[str, list[str]], extra: list[str], folder: Path) -> Path:
    objects: list[Path] = []
    commands: list[list[str]] = []
    _build.generate(folder)
    for source in _build.longest_first([*(ROOT / "csrc").glob("*.c"), SOURCE]):
        isa = _build.SUFFIX.search(source.stem)
        if isa and isa[1] not in isas:
            continue
        objects.append(folder / f"{source.stem}.o")
        amx = _build.AMX if "amx" in isas else []
        flags = [*FLAGS, *amx, "-I", str(folder), *extra, *(isas[isa[1]] if isa else [])]
        commands.append([compiler, *flags, "-c", str(source), "-o", str(objects[-1])])
    with ThreadPoolExecutor() as pool:
        list(pool.map(partial(subprocess.run, check=True, capture_output=True, text=True), commands))
    program = folder / "harness"
    subprocess.run(
        [compiler, *extra, *map(str, objects), "-o", str(program), "-lm", "-pthread"], check=True, capture_output=True
    )
    return program


def x86_isas() -> dict[str, list[str]]:
    """AMX too where gcc is new enough to know it."""
    known = subprocess.run(
        ["gcc", "-E", *_build.ISA_FLAGS["amx"], "-x", "c", os.devnull], check=False, capture_output=True
    )
    amx = ("amx",) if known.returncode == 0 and sys.platform == "linux" else ()
    return {isa: _build.ISA_FLAGS[isa] for isa in ("avx2", "avx512", "aesni", "vaes256", "vaes", *amx)}


def run(command: list[str]) -> str:
    result = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    return result.stdout


def test_threads_race_for_nothing(tmp_path):
    """No data race on any ISA, by ThreadSanitizer."""
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed: the sanitizer builds need it")
    import platform

    isas = x86_isas() if platform.machine().lower() in ("x86_64", "amd64") else {"neon": []}
    flags = ["-g1", "-O1", "-fsanitize=thread", "-fno-sanitize-recover=all", FEWER, "-DMORE=9"]
    program = build(sanitizing(tmp_path), isas, flags, tmp_path)
    assert re.search(r"\d{3,} comparisons, 0 differ", run([str(program)]))


def test_neon_under_an_emulator(tmp_path):
    """64-bit Arm: NEON and the portable kernels agree bit for bit."""
    compiler, emulator = shutil.which("aarch64-linux-gnu-gcc"), shutil.which("qemu-aarch64")
    if not compiler or not emulator:
        pytest.skip(
            "NEON is not checked here: aarch64-linux-gnu-gcc and qemu-aarch64 (qemu-user) are not both installed"
        )
    program = build(compiler, {"neon": []}, ["-static", FEWER], tmp_path)
    output = run([emulator, str(program)])
    assert re.search(r"best ISA 4: \d{3,} comparisons, 0 differ", output), output
