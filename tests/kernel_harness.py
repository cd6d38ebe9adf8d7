"""The program that compares the C kernels of all ISAs with one another, and the compiler of builds with sanitizers."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "tests" / "native" / "harness.c"
#: what this machine cannot run takes half of the time to compile with sanitizers, which would have nothing to look at
PLAIN = """#!/bin/sh
case " $* " in *" -mavx512f "*) exec gcc "$@" -fno-sanitize=all -O0 ;; esac
exec gcc "$@"
"""


def sanitizing(folder: Path) -> str:
    """gcc for a build with sanitizers; where AVX-512 cannot run, a script in `folder` that leaves those files plain."""
    if not sys.platform.startswith("linux") or "avx512vl" in Path("/proc/cpuinfo").read_text():
        return "gcc"
    return script(folder / "compiler", PLAIN)


def script(path: Path, text: str) -> str:
    """A program to compile with."""
    path.write_text(text)
    path.chmod(0o755)
    return str(path)


def check(folder: Path, program: Path, *flags: str) -> None:
    """Link the harness with the objects of the extension below `folder`, run it, and find nothing that differs."""
    objects = [path for path in folder.rglob("*.o") if path.stem not in ("_fedcore_glue", "probe")]
    amx = ["-DFC_AMX"] if any(path.stem == "gram_amx" for path in objects) else []
    (generated,) = folder.rglob("order_networks.h")
    include = ["-I", str(ROOT / "csrc"), "-I", str(generated.parent), "-std=c11", "-pthread"]
    command = ["gcc", *flags, *amx, *include, str(SOURCE), *map(str, objects), "-o", str(program), "-lm"]
    made = subprocess.run(command, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr[-3000:]
    found = subprocess.run([str(program)], capture_output=True, text=True, timeout=500)
    assert found.returncode == 0, found.stdout[-2000:] + found.stderr[-3000:]
    assert re.search(r"\d{3,} comparisons, 0 differ", found.stdout)
