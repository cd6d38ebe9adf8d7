"""The Triton kernels' variants, and the script that compiles them ahead of time.

`python triton_variants.py FOLDER` writes FOLDER/<variant>.<target> for an NVIDIA H100/H200 (cuda) and an AMD MI300
(hip), the LLVM IR that they were made from as <variant>.<target>.ll, and the kernel as Triton has it, with types, as
<variant>.ttir. It needs no GPU, and a process of its own: Triton decides on import whether it interprets.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

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
    for b, a in zip(DTYPES, ("bfloat16", "float32", "float16"), strict=True):
        whole = {"b_dtype": b, "a_dtype": a, "out_dtype": "float32", "ALIGNED": True, "FULL": True}
        edge = {"b_dtype": b, "a_dtype": a, "out_dtype": a, "ALIGNED": False, "FULL": False}
        found[f"lora_delta_sum-{b}-{a}"] = ("lora_delta_sum", whole, terms)
        found[f"lora_delta_sum-{b}-{a}-based-cut"] = ("lora_delta_sum", edge, terms | {"base": f"*{SHORT[a]}"})
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
    passes = {"x": "*fp32", "stride": "i32"}
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
        drop = 4 if op == "mean_around_median" else 2  # more than half of them, where the op takes that
        found[f"{op}-odd-cut"] = (op, {**most, "N": 7, "F": drop, "ALIGNED": False, "FULL": False}, {"d": "i64"})
    return found


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
    """Write the listings of every variant for every target. Runs in a process without TRITON_INTERPRET."""
    import torch
    import triton
    from triton.backends.compiler import GPUTarget

    from fedcore.errors import BackendError
    from fedcore.kernels import gram, order

    targets = {"cuda": GPUTarget("cuda", 90, 32), "hip": GPUTarget("hip", "gfx942", 64)}
    for name, (op, switches, special) in variants().items():
        module = import_module(f"fedcore.kernels.{HOME.get(op, op.removesuffix('_blocks'))}")
        for target, listing, binary in (("cuda", "ptx", "cubin"), ("hip", "amdgcn", "hsaco")):
            if op == "gram":
                options = gram.options(int(str(switches["TILE"])))
            elif op.removesuffix("_blocks") in ORDER:
                options = order.NETWORK_OPTIONS if op in ORDER else order.block_options(targets[target].warp_size)
            else:
                options = getattr(module, "ORDERED_OPTIONS" if op == "ordered" else "OPTIONS")
            built = triton.compile(source(module, op, switches, special), targets[target], options)
            assert built.asm[binary]
            (folder / f"{name}.{target}").write_text(built.asm[listing])
            (folder / f"{name}.{target}.ll").write_text(built.asm["llir"])
        (folder / f"{name}.ttir").write_text(built.asm["ttir"])
    try:
        gram.gram([torch.zeros(4)])
    except BackendError as error:
        (folder / "refusal").write_text(str(error))


if __name__ == "__main__":
    compile_all(Path(sys.argv[1]))
