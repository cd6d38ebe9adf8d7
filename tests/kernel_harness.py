"""The program that compares the C kernels of all ISAs with one another, from objects that a build left behind."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "tests" / "native" / "harness.c"


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
