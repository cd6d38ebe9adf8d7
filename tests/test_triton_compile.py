"""Every Triton kernel, compiled ahead of time for an NVIDIA H100/H200 and an AMD MI300, and the assembly read.

The interpreter computes with NumPy, so it cannot show tf32, flushed subnormals, an approximate division or a fused
multiply-add. This needs no GPU. The compiler and the interpreter cannot share a process (triton decides on import), so
this file is also the script that compiles: `python test_triton_compile.py FOLDER` writes FOLDER/<variant>.<target>.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

DTYPES = ("float32", "float16", "bfloat16")
SHORT = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16", "float64": "fp64"}


def variants() -> dict[str, tuple[str, dict[str, object], dict[str, str]]]:
    """name -> (op, dtypes and switches, argument types that differ from the op's usual ones)."""
    found: dict[str, tuple[str, dict[str, object], dict[str, str]]] = {"fold": ("fold", {}, {})}
    for row, other in zip(DTYPES, ("bfloat16", "float32", "float16"), strict=True):
        full, cut = (
            {"row_dtype": row, "ALIGNED": True, "FULL": True},
            {"row_dtype": row, "ALIGNED": False, "FULL": False},
        )
        for out in (*DTYPES, "float64"):
            found[f"weighted_sum-{row}-{out}"] = ("weighted_sum", {**full, "out_dtype": out}, {"divisor": "*fp64"})
        found[f"weighted_sum-{row}-{row}-cut"] = ("weighted_sum", {**cut, "out_dtype": row}, {"d": "i64"})
        found[f"squared_norms-{row}"] = ("squared_norms", full, {})
        found[f"squared_norms-{row}-centred-cut"] = ("squared_norms", cut, {"center": f"*{SHORT[other]}", "d": "i64"})
        found[f"gram-{row}"] = ("gram", {**full, "TILE": 32}, {"center": f"*{SHORT[other]}"})
        found[f"gram-{row}-cut"] = ("gram", {**cut, "TILE": 16}, {"d": "i64"})
    return found


#: the usual argument types; an argument in none of these and not special to the variant is a constant
POINTERS = {
    "addresses": "*i64", "weights": "*fp64", "suspect": "*i32", "sums": "*fp64", "pairs": "*i32", "partials": "*fp64",
    "total": "*fp64",
}  # fmt: skip
INTEGERS = dict.fromkeys(("n", "d", "first", "steps", "blocks", "count", "width"), "i32")


def source(module, op: str, switches: dict[str, object], special: dict[str, str]):
    """What triton.compile takes: the kernel with its argument types and constants."""
    import triton.language as tl
    from triton.compiler import ASTSource

    kernel = getattr(module, f"_{op}_kernel")
    types = POINTERS | INTEGERS | special
    if op == "weighted_sum":  # bf16 is stored as its bits
        types["out"] = "*i16" if switches["out_dtype"] == "bfloat16" else f"*{SHORT[str(switches['out_dtype'])]}"
    signature = {key: types.get(key, "constexpr") for key in kernel.arg_names}
    constants = {key: switches.get(key, getattr(module, key, None)) for key in signature if key not in types}
    constants |= {key: getattr(tl, str(switches[key])) for key in constants if key.endswith("_dtype")}
    aligned = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(signature.values()) if kind.startswith("*")}
    return ASTSource(kernel, signature, constants, aligned)


def compile_all(folder: Path) -> None:
    """Write the assembly of every variant for every target. Runs in a process without TRITON_INTERPRET."""
    import torch
    import triton
    from triton.backends.compiler import GPUTarget

    from fedcore.errors import BackendError
    from fedcore.kernels import fold, gram, squared_norms, weighted_sum

    modules = {"fold": fold, "weighted_sum": weighted_sum, "squared_norms": squared_norms, "gram": gram}
    targets = {"cuda": GPUTarget("cuda", 90, 32), "hip": GPUTarget("hip", "gfx942", 64)}
    for name, (op, switches, special) in variants().items():
        options = gram.options(int(str(switches["TILE"]))) if op == "gram" else modules[op].OPTIONS
        for target, listing, binary in (("cuda", "ptx", "cubin"), ("hip", "amdgcn", "hsaco")):
            built = triton.compile(source(modules[op], op, switches, special), targets[target], options)
            assert built.asm[binary]
            (folder / f"{name}.{target}").write_text(built.asm[listing])
    try:
        gram.gram([torch.zeros(4)])
    except BackendError as error:
        (folder / "refusal").write_text(str(error))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The folder with the assembly, made once."""
    pytest.importorskip("triton", reason="Triton is not installed; fedcore[train] brings it")
    path = tmp_path_factory.mktemp("assembly")
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("cache"))
    done = subprocess.run([sys.executable, __file__, str(path)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return path


every_variant = pytest.mark.parametrize("variant", sorted(variants()))


def opcodes(assembly: str) -> set[str]:
    """The instructions of a listing, with their suffixes."""
    return set(re.findall(r"^\s+(?:@!?%p\d+\s+)?([a-z]\w*(?:[.:]+\w+)*)", assembly, re.MULTILINE))


def refuse(found: set[str], pattern: str) -> None:
    """Assert that no instruction matches."""
    assert not [code for code in found if re.search(pattern, code)]


@every_variant
def test_nvidia(folder, variant):
    text = (folder / f"{variant}.cuda").read_text()
    ptx = opcodes(text)
    assert ".target sm_90" in text
    assert ".param .f32" not in text, "a number travels as fp32"
    refuse(ptx, r"tf32|\.ftz|\.full|\.approx")
    refuse(ptx, r"mma|^atom|^red\.")
    refuse(ptx, r"^fma.*f64")
    assert "add.rn.f64" in ptx
    if variant.startswith("gram"):
        assert "fma.rn.f32" in ptx
    elif variant != "fold":
        assert "mul.rn.f64" in ptx
    if variant.startswith("weighted_sum"):
        assert ("div.rn.f64" in ptx) == (not variant.endswith("cut"))


@every_variant
def test_amd(folder, variant):
    text = (folder / f"{variant}.hip").read_text()
    assembly = opcodes(text)
    assert re.search(r'amdgcn_target ".*gfx942"', text)
    assert re.search(r"amdhsa_float_denorm_mode_32 3\b", text), "fp32 subnormals are flushed"
    assert re.search(r"amdhsa_float_denorm_mode_16_64 3\b", text), "fp64 subnormals are flushed"
    refuse(assembly, r"xf32|v_exp_|v_mul_legacy|atomic")
    assert "v_add_f64" in assembly
    if variant.startswith("weighted_sum") and not variant.endswith("cut"):
        # the correctly rounded division, which is made of fused steps
        assert {"v_div_scale_f64", "v_div_fmas_f64", "v_div_fixup_f64"} <= assembly
    else:
        refuse(assembly, r"v_(fma|fmac|mad).*_f64|v_div|v_rcp_f64")


@pytest.mark.parametrize("variant", [name for name in sorted(variants()) if "cut" not in name and name != "fold"])
def test_aligned_rows_are_loaded_in_vectors(folder, variant):
    """16 bytes a thread and load: the kernels are bound by memory bandwidth."""
    ptx = opcodes((folder / f"{variant}.cuda").read_text())
    wide = "cp.async.cg.shared.global" if variant.startswith("gram") else "ld.global.v4.b32"
    assert wide in ptx


def test_cpu_rows_without_the_interpreter_are_refused(folder):
    message = (folder / "refusal").read_text()
    assert message.startswith("gram: the rows are on the CPU")
    assert "TRITON_INTERPRET=1" in message
    assert "backend 'c'" in message


if __name__ == "__main__":
    compile_all(Path(sys.argv[1]))
