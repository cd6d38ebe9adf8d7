"""Triton lora_delta_sum: one launch for all clients, whatever their ranks; factors are read where they lie.

A table says of each rank-one term where its row of A and its column of B begin; terms that follow each other in one B
lie side by side, so a tile of B is loaded in whole lines. A program holds one tile of the result and walks all terms:
DEPTH at a time through tl.dot with IEEE fp32 arithmetic (no tf32), chains of CHAIN terms added in fp64 as the
definition has it. The order inside a chain is the hardware's, so results are within the definition's bound, not equal
to its bits; they are the same every time on one device, and do not depend on how many groups or rows a launch has.

Factors of one 16-bit dtype go to fedcore/kernels/lora_delta_half.py first, which is for matrix units; where it says
that a sum is not finite they come here, which decides.

Several groups of clients may be summed side by side: the dense products of single clients are groups of one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import triton
import triton.language as tl

from fedcore.kernels.lora_delta_half import lora_delta_half, takes
from fedcore.kernels.rounding import store_tile
from fedcore.kernels.rows import DTYPES, VECTOR, check_device, load, on_device, row_pointer, widen

#: fixes the order of additions: the same number as in fedcore/reference/lora_delta_sum.py
CHAIN = 256
#: rows and columns of a tile, and terms of one tl.dot
HIGH, WIDE, DEPTH = 64, 64, 32
OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}


@triton.jit
def _terms_product(
    b_columns, strides, scales, a_rows, rows, row_mask, columns, column_mask, start, end,
    b_dtype: tl.constexpr, a_dtype: tl.constexpr, CHAIN: tl.constexpr, DEPTH: tl.constexpr, ALIGNED: tl.constexpr,
    FULL: tl.constexpr,
):  # fmt: skip
    """(HIGH, WIDE) fp32: the sum of terms start to the end of their chain."""
    product = tl.zeros([rows.shape[0], columns.shape[0]], tl.float32)
    for first in tl.range(0, CHAIN, DEPTH):
        term = start + first + tl.arange(0, DEPTH)
        used = term < end
        left = row_pointer(tl.load(b_columns + term, mask=used, other=0), b_dtype, False)
        stride = tl.load(strides + term, mask=used, other=0)
        right = row_pointer(tl.load(a_rows + term, mask=used, other=0), a_dtype, ALIGNED)
        scale = tl.load(scales + term, mask=used, other=0.0)
        b = load(left[None, :] + rows[:, None] * stride[None, :], used[None, :] & row_mask[:, None], False)
        scaled = (scale[None, :] * widen(b).to(tl.float64)).to(tl.float32)
        if FULL:
            a = tl.load(right[:, None] + columns[None, :], mask=used[:, None], other=0.0)
        else:
            a = tl.load(right[:, None] + columns[None, :], mask=used[:, None] & column_mask[None, :], other=0.0)
        product = tl.dot(scaled, widen(a), product, input_precision="ieee")
    return product


@triton.jit(do_not_specialize=("d_out", "tiles"))
def _lora_delta_sum_kernel(
    b_columns,  # (terms,) int64: where each term's column of B begins
    strides,  # (terms,) int64: elements from one row of that B to the next
    scales,  # (terms,) fp64
    a_rows,  # (terms,) int64: where each term's row of A begins
    starts,  # (groups + 1,) int64: terms before each group
    base,  # (d_out, d_in) of any row dtype, or None
    out,  # (groups, d_out, d_in) out_dtype; int16 bits where out_dtype is bf16
    suspect,  # (1,) int32: set to 1 if an output is not finite
    d_out,
    d_in,
    tiles,  # tiles of columns
    b_dtype: tl.constexpr,
    a_dtype: tl.constexpr,
    out_dtype: tl.constexpr,
    CHAIN: tl.constexpr,
    HIGH: tl.constexpr,
    WIDE: tl.constexpr,
    DEPTH: tl.constexpr,
    ALIGNED: tl.constexpr,
    FULL: tl.constexpr,
):
    group = tl.program_id(1)
    rows = (tl.program_id(0) // tiles).to(tl.int64) * HIGH + tl.arange(0, HIGH)
    columns = (tl.program_id(0) % tiles).to(tl.int64) * WIDE + tl.arange(0, WIDE)
    row_mask, column_mask = rows < d_out, columns < d_in
    start, end = tl.load(starts + group), tl.load(starts + group + 1)
    total = tl.zeros([HIGH, WIDE], tl.float64)
    while start < end:
        total += _terms_product(
            b_columns, strides, scales, a_rows, rows, row_mask, columns, column_mask, start, end, b_dtype, a_dtype,
            CHAIN, DEPTH, ALIGNED, FULL,
        ).to(tl.float64)  # fmt: skip
        start += CHAIN
    at = rows[:, None] * d_in + columns[None, :]
    mask = row_mask[:, None] & column_mask[None, :]
    if base is not None:
        total += widen(tl.load(base + at, mask=mask, other=0.0)).to(tl.float64)
    store_tile(out, group.to(tl.int64) * d_out * d_in + at, total, mask, suspect, out_dtype)


def lora_delta_sum(
    factors: tuple[Sequence[torch.Tensor], Sequence[torch.Tensor]],
    coefficients: np.ndarray,
    base: torch.Tensor | None,
    out: torch.Tensor,
    threads: int = 1,
) -> bool:
    """Write Σ c_i B_i A_i + base into `out` (d_out, d_in); True if any output is not finite.

    factors       n of B (d_out, r_i) and n of A (r_i, d_in), contiguous, of any row dtype; where those of one side
                  differ in dtype they are widened to fp32 first
    coefficients  (n,) fp64
    base          (d_out, d_in) of any row dtype, or None
    threads       has no meaning here

    The bound is that of fedcore/reference/lora_delta_sum.py. Raises BackendError if the factors lie where the kernel
    cannot run.
    """
    counted = np.flatnonzero(coefficients).tolist()
    b, a = ([side[i] for i in counted] for side in factors)
    return launch(b, a, coefficients[counted], np.array([0, len(counted)]), base, out)


def launch(
    b: Sequence[torch.Tensor],
    a: Sequence[torch.Tensor],
    coefficients: np.ndarray,
    groups: np.ndarray,
    base: torch.Tensor | None,
    out: torch.Tensor,
) -> bool:
    """Sums of clients groups[g] to groups[g + 1], each into its part of `out` (groups, d_out, d_in)."""
    device = out.device
    d_out, d_in = out.shape[-2:]
    check_device("lora_delta_sum", _lora_delta_sum_kernel, device)
    if not out.numel():
        return False
    if takes(b, a, coefficients) and not lora_delta_half(b, a, coefficients, groups, base, out):
        return False
    b, a = _of_one_dtype(b), _of_one_dtype(a)
    ranks = np.array([len(x) for x in a], np.int64)
    within = np.concatenate([np.arange(r) for r in ranks] or [np.arange(0)]).astype(np.int64)
    sizes = [(x[0].element_size() if x else 4) for x in (b, a)]
    b_columns = np.repeat(np.array([x.data_ptr() for x in b], np.int64), ranks) + within * sizes[0]
    a_rows = np.repeat(np.array([x.data_ptr() for x in a], np.int64), ranks) + within * d_in * sizes[1]
    starts = np.concatenate(([0], np.cumsum(ranks)))[groups]
    tiles = triton.cdiv(d_in, WIDE)
    with on_device(device):
        tables = [
            torch.from_numpy(np.ascontiguousarray(table)).to(device)
            for table in (b_columns, np.repeat(ranks, ranks), np.repeat(coefficients, ranks), a_rows, starts)
        ]
        suspect = torch.zeros(1, dtype=torch.int32, device=device)
        target = out.view(torch.int16) if out.dtype == torch.bfloat16 else out
        _lora_delta_sum_kernel[(triton.cdiv(d_out, HIGH) * tiles, len(groups) - 1)](
            *tables, base, target, suspect, d_out, d_in, tiles,
            b_dtype=DTYPES[b[0].dtype] if b else tl.float32, a_dtype=DTYPES[a[0].dtype] if a else tl.float32,
            out_dtype=DTYPES[out.dtype], CHAIN=CHAIN, HIGH=HIGH, WIDE=WIDE, DEPTH=DEPTH,
            ALIGNED=bool((a_rows % VECTOR == 0).all()), FULL=d_in % WIDE == 0, **OPTIONS,
        )  # fmt: skip
    return bool(suspect.item())


def _of_one_dtype(side: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return list(side) if len({x.dtype for x in side}) <= 1 else [x.float() for x in side]
