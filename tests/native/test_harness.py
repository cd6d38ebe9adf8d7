"""The C kernels outside Python: under ThreadSanitizer; NEON under an emulator, AVX-512 where no processor has it.

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


def build(
    compiler: str, isas: dict[str, list[str]], extra: list[str], folder: Path, dispatch: Path = ROOT / "csrc/dispatch.c"
) -> Path:
    objects: list[Path] = []
    commands: list[list[str]] = []
    _build.generate(folder)
    kernels = (path for path in (ROOT / "csrc").glob("*.c") if path.name != dispatch.name)
    for source in _build.longest_first([*kernels, dispatch, SOURCE]):
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


#: AVX-512 by SIMDe, in functions of their own: inlined into the networks, they take minutes to compile
EMULATED = ["-I", str(SOURCE.parent / "avx512"), "-DSIMDE_NO_INLINE", "-Dflatten="]
#: where dispatch has found no AVX-512
WITHOUT = "!has_all(registers, ZMM)) return found;"


def test_avx512_emulated(tmp_path):
    """A processor without AVX-512: its kernels and the portable ones agree bit for bit.

    What their C says is checked, with intrinsics by SIMDe (Debian's libsimde-dev) over AVX2 and FMA. What a compiler
    makes of it for AVX-512 is not, nor speed, secrets left on a stack, loads that ask for alignment, or AMX; VAES with
    AVX-512 only where the processor has VAES of 256 bits, since dispatch asks it.
    """
    if shutil.which("gcc") is None or not Path("/proc/cpuinfo").is_file():
        pytest.skip("the AVX-512 kernels are not emulated here: they need gcc, and Linux to say what the processor has")
    processor = Path("/proc/cpuinfo").read_text().split()
    if "avx512vl" in processor:
        pytest.skip("this processor runs the AVX-512 kernels itself: tests/test_packaging.py compares them as shipped")
    if not {"avx2", "fma", "f16c", "aes"} <= set(processor):
        pytest.skip("the AVX-512 kernels are emulated over AVX2, FMA, F16C and AES, which this processor lacks")
    known = subprocess.run(
        ["gcc", "-E", "-include", "simde/x86/avx512.h", "-x", "c", os.devnull], check=False, capture_output=True
    )
    if known.returncode:
        pytest.skip("the AVX-512 kernels are not emulated here: SIMDe (libsimde-dev) is not installed")
    isas = {isa: flags for isa, flags in x86_isas().items() if isa != "amx"}
    for isa in ("avx512", "vaes"):
        isas[isa] = [*EMULATED, *(flag for flag in isas[isa] if "512" not in flag)]
    found = (ROOT / "csrc/dispatch.c").read_text()
    assert found.count(WITHOUT) == 1
    believing = tmp_path / "dispatch.c"
    believing.write_text(found.replace(WITHOUT, "!has_all(registers, ZMM)) return found | HAS_AVX512;"))
    program = build("gcc", isas, ["-O1", "-Wno-psabi", "-DNO_STACKS", FEWER], tmp_path, believing)
    output = run([str(program)])
    assert re.search(r"best ISA 3: \d{3,} comparisons, 0 differ", output), output
