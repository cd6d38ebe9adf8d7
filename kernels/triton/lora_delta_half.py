"""Triton lora_delta_sum of factors that are all fp16 or all bf16: on matrix units, whose products of these are exact.

A step is up to DEPTH terms of one client: B_i A_i of those by one tl.dot from zero, summed in fp32, then multiplied by
c_i in fp32 and added. Factors go in as they lie, so no coefficient is rounded into them: B_i by two or three 16-bit
parts would cost two or three products. STEPS steps make a chain, no more terms than one of the definition has; chains
are added in fp64. Where each result has one chain alone its tiles are larger, since a total in fp64 takes no registers.

Error, with u = 2⁻²⁴ and P as in fedcore/reference/lora_delta_sum.py: (min(K, CHAIN) + 6) · u · P. Matrix units may
truncate where the definition rounds, which is 2 u at each addition; within a step they add in one go, and scaling takes
2 u, the rounding of c_i one. A sum without c_i can overflow, or lose what is subnormal, where one with c_i does not:
the launcher is told of the first and takes the other kernel; the second is K · 2⁻¹⁴⁹ · max |c| more, where c is within
RANGE; other coefficients are not taken.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import triton
import triton.language as tl

from fedcore.kernels.rounding import store_tile
from fedcore.kernels.rows import DTYPES, VECTOR, on_device, row_pointer, widen

#: terms of a step, and steps of a chain
DEPTH, STEPS = 16, 16
#: rows and columns of a tile where there is one chain, and where there are more
LARGE, SMALL = 128, 64
#: sizes of coefficients that fp32 holds with room to spare
RANGE = 2.0**-64, 2.0**64
OPTIONS = {"num_warps": 8, "enable_fp_fusion": False}


@triton.jit
def _steps_sum(
    b_starts, strides, a_starts, counts, scales, rows, row_mask, columns, column_mask, d_in, first, last,
    dtype: tl.constexpr, DEPTH: tl.constexpr, WHOLE: tl.constexpr, FULL: tl.constexpr, COMPILED: tl.constexpr,
):  # fmt: skip
    """fp32 tile: the sum of c · (B A) over steps first to last, the last one excluded."""
    total = tl.zeros([rows.shape[0], columns.shape[0]], tl.float32)
    inner = tl.arange(0, DEPTH)
    for step in tl.range(first, last):
        left = row_pointer(tl.load(b_starts + step), dtype, WHOLE)
        right = row_pointer(tl.load(a_starts + step), dtype, WHOLE)
        stride = tl.load(strides + step)
        if WHOLE:
            stride = tl.multiple_of(stride, 8)
            b_mask, a_mask = row_mask[:, None], column_mask[None, :]
        else:
            used = inner < tl.load(counts + step)
            b_mask, a_mask = row_mask[:, None] & used[None, :], column_mask[None, :] & used[:, None]
        b = tl.load(left + rows[:, None] * stride + inner[None, :], mask=b_mask, other=0.0)
        at = right + inner[:, None].to(tl.int64) * d_in + columns[None, :]
        if WHOLE and FULL:
            a = tl.load(at)
        else:
            a = tl.load(at, mask=a_mask, other=0.0)
        if COMPILED:
            product = tl.dot(b, a)
        else:  # the interpreter would multiply bf16's bits
            product = tl.dot(widen(b), widen(a), input_precision="ieee")
        total += product * tl.load(scales + step)
    return total


@triton.jit(do_not_specialize=("d_out", "tiles"))
def _lora_delta_half_kernel(
    b_starts,  # (steps,) int64: where a step's columns of B begin
    strides,  # (steps,) int64: elements from one row of that B to the next
    a_starts,  # (steps,) int64: where its rows of A begin
    counts,  # (steps,) int64: its terms
    scales,  # (steps,) fp32: its coefficient
    starts,  # (groups + 1,) int64: steps before each group
    base,  # (d_out, d_in) of any row dtype, or None
    out,  # (groups, d_out, d_in) out_dtype; int16 bits where out_dtype is bf16
    suspect,  # (1,) int32: set to 1 if an output is not finite
    d_out,
    d_in,
    tiles,  # tiles of columns
    dtype: tl.constexpr,
    out_dtype: tl.constexpr,
    TILE: tl.constexpr,
    DEPTH: tl.constexpr,
    STEPS: tl.constexpr,
    SINGLE: tl.constexpr,
    WHOLE: tl.constexpr,
    FULL: tl.constexpr,
    COMPILED: tl.constexpr,
):
    group = tl.program_id(1)
    rows = (tl.program_id(0) // tiles).to(tl.int64) * TILE + tl.arange(0, TILE)
    columns = (tl.program_id(0) % tiles).to(tl.int64) * TILE + tl.arange(0, TILE)
    row_mask, column_mask = rows < d_out, columns < d_in
    start, end = tl.load(starts + group), tl.load(starts + group + 1)
    if SINGLE:
        total = _steps_sum(
            b_starts, strides, a_starts, counts, scales, rows, row_mask, columns, column_mask, d_in, start, end, dtype,
            DEPTH, WHOLE, FULL, COMPILED,
        ).to(tl.float64)  # fmt: skip
    else:
        total = tl.zeros([TILE, TILE], tl.float64)
        while start < end:
            total += _steps_sum(
                b_starts, strides, a_starts, counts, scales, rows, row_mask, columns, column_mask, d_in, start,
                tl.minimum(start + STEPS, end), dtype, DEPTH, WHOLE, FULL, COMPILED,
            ).to(tl.float64)  # fmt: skip
            start += STEPS
    at = rows[:, None] * d_in + columns[None, :]
    mask = row_mask[:, None] & column_mask[None, :]
    if base is not None:
        total += widen(tl.load(base + at, mask=mask, other=0.0)).to(tl.float64)
    store_tile(out, group.to(tl.int64) * d_out * d_in + at, total, mask, suspect, out_dtype)


def takes(b: Sequence[torch.Tensor], a: Sequence[torch.Tensor], coefficients: np.ndarray) -> bool:
    """Whether all factors are of one 16-bit dtype, and there are some, and coefficients are 0 or within RANGE."""
    size = np.abs(coefficients[coefficients != 0])
    within = ((size >= RANGE[0]) & (size <= RANGE[1])).all()
    return bool(within) and len({x.dtype for x in (*b, *a)}) == 1 and b[0].element_size() == 2


def lora_delta_half(
    b: Sequence[torch.Tensor],
    a: Sequence[torch.Tensor],
    coefficients: np.ndarray,
    groups: np.ndarray,
    base: torch.Tensor | None,
    out: torch.Tensor,
) -> bool:
    """As `launch` of fedcore/kernels/lora_delta_sum.py; True also where a sum without its coefficient overflows."""
    d_out, d_in = out.shape[-2:]
    ranks = np.array([len(x) for x in a], np.int64)
    steps = -(-ranks // DEPTH)
    client = np.repeat(np.arange(len(ranks)), steps)
    first = DEPTH * np.concatenate([np.arange(count) for count in steps]).astype(np.int64)
    counts = np.minimum(ranks[client] - first, DEPTH)
    b_starts = np.array([x.data_ptr() for x in b], np.int64)[client] + 2 * first
    a_starts = np.array([x.data_ptr() for x in a], np.int64)[client] + 2 * first * d_in
    starts = np.concatenate(([0], np.cumsum(steps)))[groups]
    whole = (counts == DEPTH).all() and d_in % 8 == 0 and not ((b_starts | a_starts) % VECTOR).any()
    single = bool((np.diff(starts) <= STEPS).all())
    tile = LARGE if single else SMALL
    tiles = triton.cdiv(d_in, tile)
    scales = coefficients.astype(np.float32)[client]
    with on_device(out.device):
        tables = [
            torch.from_numpy(np.ascontiguousarray(table)).to(out.device)
            for table in (b_starts, ranks[client], a_starts, counts, scales, starts)
        ]
        suspect = torch.zeros(1, dtype=torch.int32, device=out.device)
        target = out.view(torch.int16) if out.dtype == torch.bfloat16 else out
        _lora_delta_half_kernel[(triton.cdiv(d_out, tile) * tiles, len(groups) - 1)](
            *tables, base, target, suspect, d_out, d_in, tiles, dtype=DTYPES[b[0].dtype], out_dtype=DTYPES[out.dtype],
            TILE=tile, DEPTH=DEPTH, STEPS=STEPS, SINGLE=single, WHOLE=bool(whole), FULL=d_in % tile == 0,
            COMPILED=isinstance(_lora_delta_half_kernel, triton.JITFunction), **OPTIONS,
        )  # fmt: skip
    return bool(suspect.item())
