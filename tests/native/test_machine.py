"""What the kernels are compiled for, and which instruction sets of this machine are found."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from pathlib import Path

import pytest
from kernel_harness import ROOT
from setuptools.dist import Distribution
from setuptools.errors import CompileError

_spec = importlib.util.spec_from_file_location("fedcore_build", ROOT / "csrc" / "build.py")
assert _spec is not None
assert _spec.loader is not None
_build = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_build)
#: gcc as if it compiled for each
NAMED = ["-U__x86_64__", "-U__aarch64__"]
FOR = {"x86_64": [*NAMED, "-D__x86_64__"], "aarch64": [*NAMED, "-D__aarch64__"], "other": NAMED}


class Compiler:
    """Compiles every file for each of the machines, as clang on macOS does with two of -arch."""

    def __init__(self, *machines: str):
        self.machines = machines

    def compile(self, sources, output_dir, extra_postargs):
        for machine in self.machines:
            command = ["gcc", *FOR[machine], *extra_postargs, "-c", *sources, "-o", f"{output_dir}/probe.o"]
            if subprocess.run(command, capture_output=True).returncode:
                raise CompileError(machine)


def compiled_for(folder: Path, *machines: str) -> str:
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed: it plays the compilers of other machines")
    command = _build.BuildKernels(Distribution())
    command.compiler = Compiler(*machines)
    return command.machine(folder)


@pytest.mark.parametrize("machine", FOR)
def test_the_compiler_says_what_it_compiles_for(tmp_path, machine):
    """Not the machine that it runs on: a cross compiler got AVX2's files, a 32-bit system those of its processor."""
    found = compiled_for(tmp_path, machine)
    assert found == machine
    files = {path.stem for path, _ in _build.sources(found)}
    assert ("gram_avx2" in files, "gram_neon" in files) == (machine == "x86_64", machine == "aarch64")


def test_a_compiler_for_two_machines_is_refused_in_a_line(tmp_path, monkeypatch):
    monkeypatch.setenv("ARCHFLAGS", "-arch x86_64 -arch arm64")
    with pytest.raises(CompileError) as refused:
        compiled_for(tmp_path, "x86_64", "aarch64")
    assert str(refused.value) == (
        "compiler: got several machines (ARCHFLAGS '-arch x86_64 -arch arm64'), expected one; build a wheel for each"
    )


@pytest.mark.parametrize("method", [0, 2])
def test_a_machine_that_computes_in_more_digits_gets_no_kernels(method):
    """32-bit x86 without SSE2 rounds fp32 and fp64 late, so that its bits would be others."""
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed: it plays a compiler for x87")
    digits = ["-U__FLT_EVAL_METHOD__", f"-D__FLT_EVAL_METHOD__={method}"]
    command = ["gcc", *_build.FLAGS, *digits, "-fsyntax-only", str(ROOT / "csrc" / "read.c")]
    found = subprocess.run(command, capture_output=True, text=True)
    assert (found.returncode == 0) == (method == 0), found.stderr
    assert method == 0 or "fp32 and fp64 must be computed as such" in found.stderr


def test_the_instruction_sets_are_those_that_linux_lists():
    """Whatever the compiler's own run-time library knows of processors, and that is nothing with some."""
    native = pytest.importorskip("fedcore.native", reason="the C kernels are not built")
    path = Path("/proc/cpuinfo")
    flags = set(path.read_text().split()) if path.exists() else set()
    if "sse2" not in flags:
        pytest.skip("not Linux on x86-64: what the processor has is not listed in /proc/cpuinfo")
    avx2 = {"avx2", "fma", "f16c"} <= flags
    avx512 = avx2 and {"avx512f", "avx512bw", "avx512dq", "avx512vl"} <= flags
    assert ("avx2" in native.isa_available(), "avx512" in native.isa_available()) == (avx2, avx512)
    assert bool(native.lib.fc_stream_available(native.lib.FC_AES256CTR, 0)) == (avx2 and "aes" in flags)
