"""Every Triton kernel, compiled ahead of time for an NVIDIA H100/H200 and an AMD MI300, and the listings read.

The interpreter computes with NumPy, so it cannot show tf32, flushed subnormals, an approximate division, a fused
multiply-add, or what a compiler makes of an operation without a meaning. This needs no GPU.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from kernel_ir import narrow, stores, undefined
from triton_variants import ORDER, variants

pytestmark = pytest.mark.builds


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The folder with the assembly, made once."""
    pytest.importorskip("triton", reason="Triton is not installed; fedcore[train] brings it")
    path = tmp_path_factory.mktemp("assembly")
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)  # the kernels that this process has
    environment["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("cache"))
    script = Path(__file__).with_name("triton_variants.py")
    done = subprocess.run([sys.executable, str(script), str(path)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return path


every_variant = pytest.mark.parametrize("variant", sorted(variants()))


def opcodes(assembly: str) -> set[str]:
    """The instructions of a listing, with their suffixes."""
    return set(re.findall(r"^\s+(?:@!?%p\d+\s+)?([a-z]\w*(?:[.:]+\w+)*)", assembly, re.MULTILINE))


def refuse(found: set[str], pattern: str) -> None:
    """Assert that no instruction matches."""
    assert not [code for code in found if re.search(pattern, code)]


#: what a kernel must hold, so that the refusals below mean something
ARITHMETIC = {
    "fold": {"add.rn.f64"},
    "gram": {"fma.rn.f32", "add.rn.f64"},
    "squared_norms": {"add.rn.f64", "mul.rn.f64"},
    "squared_distances": {"sub.rn.f64", "add.rn.f64", "mul.rn.f64"},
    "ordered": {"sub.rn.f64", "add.rn.f64", "mul.rn.f64"},
    "weighted_sum": {"add.rn.f64", "mul.rn.f64"},
    "weighted_sums": {"fma.rn.f64"},
    "sign_counts": set(),
    "hadamard": {"add.rn.f32", "sub.rn.f32"},
    "clip_round": {"add.rn.f64", "mul.rn.f64"},
    "clip_noise_accumulate": {"add.rn.f64", "mul.rn.f64"},
    "keystream": {"xor.b32", "shf.l.wrap.b32", "st.global.v4.b32"},
    "keystream_add": {"xor.b32", "shf.l.wrap.b32"},
    "mask_add": {"xor.b32", "shf.l.wrap.b32"},
    "pack_bits": {"st.global.b8"},
    "unpack_add": {"ld.global.b8"},
    "discrete_gaussian": {"xor.b32", "shf.l.wrap.b32", "setp.lt.u32"},
    "lora_blocks": set(),
    "lora_delta_half": {"mul.rn.f32", "add.rn.f32"},
    "lora_delta_sum": {"fma.rn.f32", "mul.rn.f64", "add.rn.f64"},
    # the product, the sum and the product of nf4, and the division of int8, each rounded
    "decode": {"mul.rn.f32", "add.rn.f32", "div.rn.f32"},
}


def divides(variant: str) -> bool:
    """Whether a sum in fp64 is divided by a number that is not a power of two."""
    op, _, special = variants()[variant]
    return "divisor" in special or "divisors" in special or "mean" in op


@every_variant
def test_nvidia(folder, variant):
    op = variants()[variant][0]
    text = (folder / f"{variant}.cuda").read_text()
    ptx = opcodes(text)
    assert ".target sm_90" in text
    assert ".param .f32" not in text, "a number travels as fp32"
    refuse(ptx, r"tf32|\.ftz|\.full|\.approx")
    refuse(ptx, r"^atom|^red\.")
    # matrix instructions: in fp64 they are IEEE fused multiply-adds; of 16 bits their products are exact
    allowed = {
        "lora_blocks": r"mma(?!.*f64\.f64\.f64\.f64$)",
        "lora_delta_half": r"mma(?!.*(f32\.b?f16\.b?f16|wait|fence|commit))",
    }
    refuse(ptx, allowed.get(op, "mma"))
    if op == "lora_blocks":  # of which shape differs between versions of Triton
        assert any(re.fullmatch(r"mma\.sync\.aligned\.m\d+n8k\d+\.row\.col\.f64\.f64\.f64\.f64", code) for code in ptx)
    if op != "weighted_sums":  # whose products are exact
        refuse(ptx, r"^fma.*f64")
    if op in ("sign_counts", "decode", "hadamard"):
        refuse(ptx, r"^fma|f64")
    if op.startswith("keystream"):
        refuse(ptx, r"\.f(16|32|64)|\.local")
        assert ("st.global.v4.b32" in ptx) == ("cut" not in variant)
    if op == "mask_add":
        assert ("mul.rn.f64" in ptx) == ("fp" in variant)
        refuse(ptx, r"\.local|^cvt.*(s64|s32|u64)\.f|^fma")
    if op in ("pack_bits", "unpack_add"):
        refuse(ptx, r"\.f(16|32|64)|\.local")
    if op == "discrete_gaussian":
        refuse(ptx, r"\.f(16|32|64)|\.local")
    if op == "sign_counts":
        assert {"setp.gt.f32", "setp.lt.f32"} <= ptx or {"setp.gt.f16", "setp.lt.f16"} <= ptx
    assert ("div.rn.f64" in ptx) == divides(variant)
    arithmetic = {"min.s32", "max.s32"} if op.removesuffix("_blocks") in ORDER else ARITHMETIC[op]
    assert arithmetic <= ptx


@every_variant
def test_amd(folder, variant):
    op = variants()[variant][0]
    text = (folder / f"{variant}.hip").read_text()
    assembly = opcodes(text)
    assert re.search(r'amdgcn_target ".*gfx942"', text)
    assert re.search(r"amdhsa_float_denorm_mode_32 3\b", text), "fp32 subnormals are flushed"
    assert re.search(r"amdhsa_float_denorm_mode_16_64 3\b", text), "fp64 subnormals are flushed"
    refuse(assembly, r"xf32|v_exp_|v_mul_legacy|atomic")
    if op == "decode":
        # the correctly rounded division is made of fused steps, and scales its operands
        assert {"v_div_scale_f32", "v_div_fmas_f32", "v_div_fixup_f32"} <= assembly
    if divides(variant):
        assert {"v_div_scale_f64", "v_div_fmas_f64", "v_div_fixup_f64"} <= assembly
    elif op != "weighted_sums":
        refuse(assembly, r"v_(fma|fmac|mad).*_f64|v_div.*f64|v_rcp_f64")


@every_variant
@pytest.mark.parametrize("target", ["cuda", "hip"])
def test_what_is_stored_has_a_meaning(folder, variant, target):
    ir = (folder / f"{variant}.{target}.ll").read_text()
    assert stores(ir)
    assert not undefined(ir)


@every_variant
def test_offsets_are_of_64_bits(folder, variant):
    assert not narrow((folder / f"{variant}.ttir").read_text())


@pytest.mark.parametrize("variant", [name for name in sorted(variants()) if "_blocks-" in name and "lora" not in name])
def test_rows_of_a_tile_stay_in_the_registers_of_a_lane(folder, variant):
    """What crosses lanes is the one flag at the end. A wide load of a tile would spread its rows over lanes."""
    nvidia = (folder / f"{variant}.cuda").read_text()
    assert len(re.findall(r"shfl|redux", nvidia)) <= 8
    assert ".local" not in nvidia
    amd = (folder / f"{variant}.hip").read_text()
    assert len(re.findall(r"^\s+ds_", amd, re.MULTILINE)) <= 8


VECTORS = [
    name
    for name, (op, switches, _) in sorted(variants().items())
    if (switches.get("ALIGNED") or switches.get("WHOLE")) and op != "ordered"
]


@pytest.mark.parametrize("variant", VECTORS)
def test_aligned_rows_are_loaded_in_vectors(folder, variant):
    """16 bytes a thread and load, 8 where 32 rows take the registers: the kernels are bound by memory bandwidth."""
    ptx = opcodes((folder / f"{variant}.cuda").read_text())
    wide = "cp.async.cg.shared.global" if variant.startswith(("gram", "lora")) else "ld.global.v4.b32"
    assert ("ld.global.v2.b32" if variant.endswith("most") else wide) in ptx
    if "half" in variant:
        refuse(ptx, r"^ld\.global\.b16")


def test_cpu_rows_without_the_interpreter_are_refused(folder):
    message = (folder / "refusal").read_text()
    assert message.startswith("gram: the rows are on the CPU")
    assert "TRITON_INTERPRET=1" in message
    assert "backend 'c'" in message
