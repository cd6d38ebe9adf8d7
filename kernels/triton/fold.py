"""Sums of fp64 partials in a fixed order, the second stage of every statistic: no atomics, the same bits every time."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

WIDTH = 32
OPTIONS = {"num_warps": 1, "enable_fp_fusion": False}


@triton.jit(do_not_specialize=("count", "width"))
def _fold_kernel(
    partials,  # (count, width) fp64
    total,  # (width,) fp64, added to
    count,
    width,
    WIDTH: tl.constexpr,
):
    columns = tl.program_id(0).to(tl.int64) * WIDTH + tl.arange(0, WIDTH)
    mask = columns < width
    value = tl.load(total + columns, mask=mask, other=0.0)
    pointers = partials + columns
    for _ in tl.range(0, count, loop_unroll_factor=8):
        value += tl.load(pointers, mask=mask, other=0.0)
        pointers += width
    tl.store(total + columns, value, mask=mask)


def fold(partials: torch.Tensor, total: torch.Tensor) -> None:
    """Add the rows of `partials` (count, width) fp64 to `total` (width,) fp64, one after the other, in row order."""
    count, width = partials.shape
    _fold_kernel[(triton.cdiv(width, WIDTH),)](partials, total, count, width, WIDTH=WIDTH, **OPTIONS)
