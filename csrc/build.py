"""Builds fedcore.native._fedcore: cffi's glue in API mode, and one object for each C file with its own ISA flags.

The declarations that cffi sees are read from fedcore.h, so the header is the only place where the API is written.
"""

from __future__ import annotations

import os
import platform
import re
import sysconfig
from pathlib import Path

from cffi import FFI
from setuptools.command.build_ext import build_ext

HERE = Path("csrc")
X86, ARM = ("x86_64", "amd64"), ("aarch64", "arm64")

#: no contraction and no fast math: the numeric laws rest on what is written being what is computed
FLAGS = [
    "-std=c11",
    "-O3",
    "-fvisibility=hidden",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-Wall",
    "-Wextra",
    "-Werror=implicit-function-declaration",
]
ISA_FLAGS = {
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "avx512": [
        "-mavx2",
        "-mfma",
        "-mf16c",
        "-mavx512f",
        "-mavx512bw",
        "-mavx512dq",
        "-mavx512vl",
        "-mprefer-vector-width=512",
    ],
    "neon": [],
}
MODULE = "fedcore.native._fedcore"


def declarations() -> str:
    """The types and functions of fedcore.h, as cffi takes them."""
    text = (HERE / "fedcore.h").read_text()
    return "\n".join(line for line in text.splitlines() if not line.startswith("#"))


def sources(machine: str) -> list[tuple[Path, list[str]]]:
    """Each C file that this machine needs, with the flags it is compiled with."""
    isas = {"avx2", "avx512"} if machine in X86 else {"neon"} if machine in ARM else set()
    found = []
    for path in sorted(HERE.glob("*.c")):
        isa = re.search(r"_(avx2|avx512|neon)$", path.stem)
        if isa is None:
            found.append((path, FLAGS))
        elif isa[1] in isas:
            found.append((path, FLAGS + ISA_FLAGS[isa[1]]))
    return found


class BuildKernels(build_ext):
    """build_ext for the one extension; a missing compiler leaves a package that works on its NumPy reference."""

    def build_extension(self, ext):
        if ext.name != MODULE:
            return super().build_extension(ext)
        temp = Path(self.build_temp)
        temp.mkdir(parents=True, exist_ok=True)
        glue = temp / "_fedcore_glue.c"
        ffi = FFI()
        ffi.cdef(declarations())
        ffi.set_source(MODULE, '#include "fedcore.h"', py_limited_api=True)
        ffi.emit_c_code(str(glue))
        target = os.environ.get("ARCHFLAGS", "")
        machine = "arm64" if "arm64" in target else "x86_64" if "x86_64" in target else platform.machine().lower()
        objects = self.compiler.compile(
            [str(glue)],
            output_dir=str(temp),
            macros=[("Py_LIMITED_API", "0x030a0000")],
            include_dirs=[str(HERE), sysconfig.get_path("include")],
            extra_postargs=["-O2"],
        )
        extra = os.environ.get("FEDCORE_CFLAGS", "").split()
        for path, flags in sources(machine):
            objects += self.compiler.compile(
                [str(path)], output_dir=str(temp), include_dirs=[str(HERE)], extra_postargs=[*flags, "-fPIC", *extra]
            )
        destination = self.get_ext_fullpath(ext.name)
        Path(destination).parent.mkdir(parents=True, exist_ok=True)
        self.compiler.link_shared_object(objects, destination, extra_postargs=["-pthread", *extra], libraries=["m"])
