"""Builds fedcore.native._fedcore: cffi's glue in API mode, and one object for each C file with its own ISA flags.

The declarations that cffi sees are read from fedcore.h, so the header is the only place where the API is written.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import sys
import sysconfig
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cffi import FFI
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

HERE = Path("csrc")
X86, ARM = ("x86_64", "amd64"), ("aarch64", "arm64")
#: what a compiler for each defines
MACROS = {"__x86_64__": X86, "__aarch64__": ARM}

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
AVX512 = [
    "-mavx2",
    "-mfma",
    "-mf16c",
    "-mavx512f",
    "-mavx512bw",
    "-mavx512dq",
    "-mavx512vl",
    "-mprefer-vector-width=512",
]
ISA_FLAGS = {
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "avx512": AVX512,
    "amx": [*AVX512, "-mamx-tile", "-mamx-int8"],
    "neon": [],
    "aesni": ["-mavx2", "-maes"],
    "vaes256": ["-mavx2", "-maes", "-mvaes"],
    "vaes": [*AVX512, "-maes", "-mvaes"],
}
#: the end of a file's name says what it is compiled for
SUFFIX = re.compile(rf"_({'|'.join(ISA_FLAGS)})$")
#: for every file, where gram_amx.c is compiled: AMX tile permission is asked for by a Linux system call
AMX = ["-DFC_AMX"]
#: which gcc before 11 and clang before 12 do not know
AMX_PROBE = "#include <immintrin.h>\nvoid probe(void) { _tile_zero(0); _tile_dpbssd(0, 1, 2); }\n"
MODULE = "fedcore.native._fedcore"


def declarations() -> str:
    """The types and functions of fedcore.h, as cffi takes them."""
    text = (HERE / "fedcore.h").read_text()
    return "\n".join(line for line in text.splitlines() if not line.startswith("#"))


def longest_first(paths: Iterable[Path]) -> list[Path]:
    """In the order in which a pool of compilers is soonest done: sorting networks take longest, then what is large."""
    return sorted(paths, key=lambda path: (not path.stem.startswith("order"), -path.stat().st_size, path.name))


def sources(machine: str, amx: bool = False) -> list[tuple[Path, list[str]]]:
    """Each C file that a machine needs, with the flags it is compiled with; `amx`: the compiler knows AMX."""
    isas = {"avx2", "avx512", "aesni", "vaes256", "vaes"} if machine in X86 else {"neon"} if machine in ARM else set()
    flags = list(FLAGS)
    if machine in X86 and amx:
        isas.add("amx")
        flags += AMX
    found = []
    for path in longest_first(HERE.glob("*.c")):
        isa = SUFFIX.search(path.stem)
        if isa is None:
            found.append((path, flags))
        elif isa[1] in isas:
            found.append((path, flags + ISA_FLAGS[isa[1]]))
    return found


def generate(folder: Path) -> None:
    """Write the generated headers into `folder`, which goes on the include path."""
    spec = importlib.util.spec_from_file_location("fedcore_networks", Path(__file__).with_name("networks.py"))
    assert spec is not None
    assert spec.loader is not None
    networks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(networks)
    (folder / "order_networks.h").write_text(networks.header())


class BuildKernels(build_ext):
    """build_ext for the one extension; a missing compiler leaves a package that works on its NumPy reference."""

    def run(self):
        if sys.platform == "darwin":  # a Python for two machines compiles for both, and kernels are for one
            os.environ.setdefault("ARCHFLAGS", f"-arch {platform.machine()}")
        super().run()

    def compiles(self, folder: Path, code: str, flags: Iterable[str] = ()) -> bool:
        """Whether the compiler takes the code and the flags."""
        probe = folder / "probe.c"
        probe.write_text(code)
        try:
            self.compiler.compile([str(probe)], output_dir=str(folder), extra_postargs=list(flags))
        except CompileError:
            return False
        return True

    def machine(self, folder: Path) -> str:
        """What the compiler compiles for: a cross compiler, ARCHFLAGS or a 32-bit system make it another than this.

        CompileError if it is more than one: the kernels of an instruction set are compiled for one.
        """
        own, either = platform.machine().lower(), " || ".join(f"defined({macro})" for macro in MACROS)
        for macro in sorted(MACROS, key=lambda macro: own not in MACROS[macro]):
            if self.compiles(folder, f"#ifndef {macro}\n#error for another machine\n#endif\n"):
                return MACROS[macro][0]
        if self.compiles(folder, f"#if {either}\n#error for several machines\n#endif\n"):
            return "other"
        flags = os.environ.get("ARCHFLAGS", "")
        raise CompileError(
            f"compiler: got several machines (ARCHFLAGS {flags!r}), expected one; build a wheel for each"
        )

    def build_extension(self, ext):
        if ext.name != MODULE:
            return super().build_extension(ext)
        destination = self.get_ext_fullpath(ext.name)
        Path(destination).unlink(missing_ok=True)  # a failed build leaves none, rather than the one before
        temp = Path(self.build_temp)
        temp.mkdir(parents=True, exist_ok=True)
        generate(temp)
        glue = temp / "_fedcore_glue.c"
        ffi = FFI()
        ffi.cdef(declarations())
        ffi.set_source(MODULE, '#include "fedcore.h"', py_limited_api=True)
        ffi.emit_c_code(str(glue))
        objects = self.compiler.compile(
            [str(glue)],
            output_dir=str(temp),
            macros=[("Py_LIMITED_API", "0x030a0000")],
            include_dirs=[str(HERE), sysconfig.get_path("include")],
            extra_postargs=["-O2"],
        )
        extra = os.environ.get("FEDCORE_CFLAGS", "").split()

        def compiled(source: tuple[Path, list[str]]) -> list[str]:
            path, flags = source
            return self.compiler.compile(
                [str(path)],
                output_dir=str(temp),
                include_dirs=[str(HERE), str(temp)],
                extra_postargs=[*flags, "-fPIC", *extra],
            )

        machine = self.machine(temp)
        amx = machine in X86 and sys.platform == "linux" and self.compiles(temp, AMX_PROBE, ISA_FLAGS["amx"])
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for made in pool.map(compiled, sources(machine, amx)):
                objects += made
        Path(destination).parent.mkdir(parents=True, exist_ok=True)
        self.compiler.link_shared_object(objects, destination, extra_postargs=["-pthread", *extra], libraries=["m"])
