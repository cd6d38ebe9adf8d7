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
from importlib import import_module
from pathlib import Path

import pytest

DTYPES = ("float32", "float16", "bfloat16")
SHORT = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16", "float64": "fp64"}


#: kernels whose module has another name
HOME = {"ordered": "squared_distances", "lora_blocks": "lora_blocks"}
ORDER = ("median", "trimmed_mean", "mean_around_median")


def variants() -> dict[str, tuple[str, dict[str, object], dict[str, str]]]:
    """name -> (op, dtypes and switches, argument types that differ from the op's usual ones)."""
    tables = {"scales": "*i64", "formats": "*i32", "nf4_code": "*fp32", "dynamic_code": "*fp32", "out": "*fp32"}
    found: dict[str, tuple[str, dict[str, object], dict[str, str]]] = {
        "fold": ("fold", {}, {}),
        "decode": ("decode", {}, tables | {"firsts": "*i64", "length": "i64", "stride": "i64"}),
    }
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
    for op, row, out in zip(ORDER, DTYPES, ("float64", "float16", "bfloat16"), strict=True):
        full, cut = {"row_dtype": row, "FULL": True}, {"row_dtype": row, "FULL": False}
        aligned, not_aligned = {**full, "ALIGNED": True}, {**cut, "ALIGNED": False}
        center = {"center": f"*{SHORT[out].replace('64', '32')}", "out": "*i32"}
        found[f"sign_counts-{row}"] = ("sign_counts", aligned, {"out": "*i32"})
        found[f"sign_counts-{row}-centred-cut"] = ("sign_counts", not_aligned, center)
        found[f"clip_round-{row}"] = ("clip_round", aligned, {"out": "*i32"})
        found[f"clip_round-{row}-cut"] = ("clip_round", not_aligned, {"out": "*i32", "d": "i64"})
        clip = "clip_noise_accumulate"
        found[f"{clip}-{row}-{out}"] = (clip, {**aligned, "out_dtype": out}, {"noise": "*i64", "divisor": "*fp64"})
        found[f"{clip}-{row}-cut"] = (clip, {**not_aligned, "out_dtype": row}, {"d": "i64"})
        found[f"weighted_sums-{row}-{out}"] = ("weighted_sums", {**full, "out_dtype": out}, {"divisors": "*fp64"})
        found[f"squared_distances-{row}-plain-cut"] = ("squared_distances", not_aligned, {"d": "i64"})
        found[f"squared_distances-{row}"] = ("squared_distances", aligned, {"powers": "*fp64"})
        found[f"ordered-{row}"] = ("ordered", {"row_dtype": row, "ALIGNED": True}, {"powers": "*fp64"})
        scratch = {"scratch": "*i32" if row == "float32" else "*i16"}
        found[f"{op}-{row}-{out}"] = (op, {**aligned, "out_dtype": out, "N": 8, "F": 1}, {})
        found[f"{op}_blocks-{row}-{out}"] = (f"{op}_blocks", {"row_dtype": row, "out_dtype": out}, scratch)
    terms = {"scales": "*fp64", **dict.fromkeys(("b_columns", "strides", "a_rows", "starts"), "*i64")}
    terms |= dict.fromkeys(("d_out", "d_in", "tiles"), "i32")
    for row in ("float32", "float64"):
        found[f"lora_blocks-{row}"] = ("lora_blocks", {"row_dtype": row}, terms | {"terms": "i32"})
    # of seconds each: each dtype once as B, once as A and once as the result, with a base and without, whole and cut
    for b, a, base, whole in (
        ("float32", "bfloat16", "based", True),
        ("float16", "float32", "", True),
        ("bfloat16", "float16", "based", False),
    ):
        switches = {"b_dtype": b, "a_dtype": a, "out_dtype": a, "ALIGNED": whole, "FULL": whole}
        name = "-".join(filter(None, ("lora_delta_sum", b, a, base, "" if whole else "cut")))
        found[name] = ("lora_delta_sum", switches, terms | ({"base": f"*{SHORT[a]}"} if base else {}))
    steps = {"scales": "*fp32", **dict.fromkeys(("b_starts", "a_starts", "strides", "counts", "starts"), "*i64")}
    steps |= dict.fromkeys(("d_out", "d_in", "tiles"), "i32")
    for row in DTYPES[1:]:
        whole = {
            "dtype": row,
            "out_dtype": "float32",
            "TILE": 128,
            "SINGLE": True,
            "WHOLE": True,
            "FULL": True,
            "COMPILED": True,
        }
        edge = {
            "dtype": row,
            "out_dtype": row,
            "TILE": 64,
            "SINGLE": False,
            "WHOLE": False,
            "FULL": False,
            "COMPILED": True,
        }
        found[f"lora_delta_half-{row}"] = ("lora_delta_half", whole, steps)
        found[f"lora_delta_half-{row}-based-cut"] = ("lora_delta_half", edge, steps | {"base": f"*{SHORT[row]}"})
    passes = {"x": "*fp32", "stride": "i64"}
    first, later = {"WIDTH": 4096, "FIRST": 1, "STAGES": 12}, {"WIDTH": 256, "FIRST": 256, "STAGES": 4}
    found["hadamard-first"] = ("hadamard", first, passes)
    found["hadamard-last"] = ("hadamard", later, passes | {"scale": "*fp32", "d": "i64"})
    words = dict.fromkeys(("key", "keys", "nonce", "signs", "values", "out"), "*i32")
    found["keystream"] = ("keystream", {}, words | {"counter": "i64", "blocks": "i64"})
    for full in (True, False):
        types = words | {"counter": "i64", "length": "i64"}
        found["keystream_add" + "-cut" * (not full)] = ("keystream_add", {"FULL": full}, types)
    integers = dict.fromkeys(("block", "at", "size"), "i64") | dict.fromkeys(("entries", "firsts", "draws"), "i32")
    masks = words | dict.fromkeys(("at", "length", "block"), "i64") | {"signs": "*i64", "settings": "*fp64"}
    for dtype, wide in (("fp32", False), ("fp64", True), ("i32", False), ("i64", True)):
        types = masks | {"values": f"*{dtype}", "out": "*i64" if wide else "*i32", "mask": "*i64"}
        found[f"mask_add-{dtype}"] = ("mask_add", {"WIDE": wide}, types)
    for bits in (1, 26, 33, 64):
        kind, lengths = "*i64" if bits > 32 else "*i32", {"length": "i64", "size": "i64"}
        found[f"pack_bits-{bits}"] = ("pack_bits", {"BITS": bits}, lengths | {"residues": kind, "out": "*u8"})
        found[f"unpack_add-{bits}"] = ("unpack_add", {"BITS": bits}, lengths | {"packed": "*u8", "total": kind})
    words |= {"nonces": "*i32", "table": "*i32"} | dict.fromkeys(("rests", "first_of", "strides", "out"), "*i64")
    found["discrete_gaussian"] = ("discrete_gaussian", {}, words | integers)
    found["weighted_sums-cut"] = ("weighted_sums", {**cut, "out_dtype": "float32"}, {"d": "i64"})
    for op in ORDER:  # the most rows in registers, and an odd number of rows that are not aligned
        most = {"row_dtype": "float32", "out_dtype": "float32", "N": 32, "F": 7}
        found[f"{op}-most"] = (op, {**most, "ALIGNED": True, "FULL": True}, {})
        found[f"{op}-odd-cut"] = (op, {**most, "N": 7, "F": 2, "ALIGNED": False, "FULL": False}, {"d": "i64"})
    return found


def hip_variants() -> list[str]:
    """What is compiled for AMD, too. Left out: an op's cuts after the first, since whole rows of the other dtypes are
    compiled and a mask is the same for all; and of the networks of most rows, all but the largest."""
    found: dict[object, str] = {}
    for name, (op, _, _) in variants().items():
        kind = (op, "cut") if name.endswith("-cut") else "most" if name.endswith("-most") else name
        if kind not in found or op == "mean_around_median":
            found[kind] = name
    return sorted(found.values())


#: the usual argument types; an argument in none of these and not special to the variant is a constant
POINTERS = {
    "addresses": "*i64", "weights": "*fp64", "suspect": "*i32", "sums": "*fp64", "pairs": "*i32", "partials": "*fp64",
    "total": "*fp64", "merges": "*i32", "scales": "*fp64", "squares": "*i64", "grid": "*fp64",
}  # fmt: skip
INTEGERS = dict.fromkeys(("n", "f", "m", "d", "first", "steps", "blocks", "count", "width", "groups", "chunks"), "i32")


def source(module, op: str, switches: dict[str, object], special: dict[str, str]):
    """What triton.compile takes: the kernel with its argument types and constants."""
    import triton.language as tl
    from triton.compiler import ASTSource

    kernel = getattr(module, f"_{op}_kernel")
    types = POINTERS | INTEGERS | special
    if op in ("squared_distances", "ordered"):
        types["pairs"] = "*i64"
    if "out_dtype" in switches:  # bf16 is stored as its bits
        types["out"] = "*i16" if switches["out_dtype"] == "bfloat16" else f"*{SHORT[str(switches['out_dtype'])]}"
    signature = {key: types.get(key, "constexpr") for key in kernel.arg_names}
    constants = {key: switches.get(key, getattr(module, key, None)) for key in signature if key not in types}
    constants |= {key: getattr(tl, str(switches[key])) for key in constants if key.endswith("dtype")}
    if op.removesuffix("_blocks") in ORDER:
        from fedcore.kernels import order

        itemsize = 4 if switches["row_dtype"] == "float32" else 2
        own = {"ROWS": order.ROWS, "COLUMNS": order.COLUMNS}
        if "N" in switches:
            own["BLOCK"] = order.columns_of(int(str(switches["N"])), itemsize)
        constants |= {key: value for key, value in own.items() if key in constants}
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, (kind, parameter) in enumerate(zip(signature.values(), kernel.params, strict=True))
        if (kind.startswith("*") and not parameter.do_not_specialize_on_alignment)
        or (parameter.name == "d_in" and switches.get("FULL"))  # a multiple of a tile's width
    }
    return ASTSource(kernel, signature, constants, aligned)


def compile_all(folder: Path) -> None:
    """Write the assembly of every variant for its targets. Runs in a process without TRITON_INTERPRET."""
    import torch
    import triton
    from triton.backends.compiler import GPUTarget

    from fedcore.errors import BackendError
    from fedcore.kernels import gram, order

    targets = {"cuda": GPUTarget("cuda", 90, 32), "hip": GPUTarget("hip", "gfx942", 64)}
    amd = set(hip_variants())
    for name, (op, switches, special) in variants().items():
        module = import_module(f"fedcore.kernels.{HOME.get(op, op.removesuffix('_blocks'))}")
        for target, listing, binary in (("cuda", "ptx", "cubin"), ("hip", "amdgcn", "hsaco")):
            if target == "hip" and name not in amd:
                continue
            if op == "gram":
                options = gram.options(int(str(switches["TILE"])))
            elif op.removesuffix("_blocks") in ORDER:
                options = order.NETWORK_OPTIONS if op in ORDER else order.block_options(targets[target].warp_size)
            else:
                options = getattr(module, "ORDERED_OPTIONS" if op == "ordered" else "OPTIONS")
            built = triton.compile(source(module, op, switches, special), targets[target], options)
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


@pytest.mark.parametrize("variant", hip_variants())
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


if __name__ == "__main__":
    compile_all(Path(sys.argv[1]))
