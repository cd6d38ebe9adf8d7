"""Triton squared_norms: the lanes, blocks and order of the definition, so the bits are those of the definition.

A program takes one row and GROUP blocks of it as a (GROUP, LANES) tile, 8 columns a thread, so that a thread loads 16
bytes at a time though a lane adds one column at a time. It writes one fp64 number a block; `fold` adds a row's blocks
in order. The pass is bound by memory bandwidth.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from fedcore.kernels.fold import fold
from fedcore.kernels.rows import DTYPES, address_table, check_device, load, on_device, pieces, row_pointer, widen

# BLOCK and LANES are part of the law: the same numbers as in fedcore/reference/squared_norms.py
BLOCK = 4096
LANES = 32
GROUP = 16
UNROLL = tl.constexpr(8)
OPTIONS = {"num_warps": 2, "enable_fp_fusion": False}


@triton.jit
def _fold_half(lanes, GROUP: tl.constexpr, HALF: tl.constexpr):
    """(GROUP, 2 · HALF) -> (GROUP, HALF): lane l takes lane l + HALF. A sum of two has one order only."""
    return tl.sum(tl.reshape(lanes, [GROUP, 2, HALF]), axis=1)


@triton.jit(do_not_specialize=("n", "d", "first", "steps"))
def _squared_norms_kernel(
    addresses,  # (n,) int64: rows of d elements of row_dtype
    center,  # (d,) of any row dtype, or None
    sums,  # (blocks, n) fp64: one number per block and row
    n,
    d,
    first,  # first group of blocks of this launch
    steps,  # of LANES columns in a block
    row_dtype: tl.constexpr,
    BLOCK: tl.constexpr,
    LANES: tl.constexpr,
    GROUP: tl.constexpr,
    ALIGNED: tl.constexpr,
    FULL: tl.constexpr,
):
    # rows change fastest, so that programs that run together share the centre's columns
    program = tl.program_id(0)
    row = program % n
    pointer = row_pointer(tl.load(addresses + row), row_dtype, ALIGNED)
    blocks = (first + program // n).to(tl.int64) * GROUP + tl.arange(0, GROUP)
    tile = blocks[:, None] * BLOCK + tl.arange(0, LANES)[None, :]
    lanes = tl.zeros([GROUP, LANES], tl.float64)
    for step in tl.range(0, steps, loop_unroll_factor=UNROLL):
        columns = tile + step * LANES
        mask = columns < d
        x = widen(load(pointer + columns, mask, FULL)).to(tl.float64)
        if center is not None:
            x -= widen(load(center + columns, mask, FULL)).to(tl.float64)
        lanes += x * x
    lanes = _fold_half(lanes, GROUP, 16)
    lanes = _fold_half(lanes, GROUP, 8)
    lanes = _fold_half(lanes, GROUP, 4)
    lanes = _fold_half(lanes, GROUP, 2)
    total = tl.reshape(_fold_half(lanes, GROUP, 1), [GROUP])
    tl.store(sums + blocks * n + row, total, mask=blocks * BLOCK < d)


def squared_norms(
    tensors: list[torch.Tensor],
    center: torch.Tensor | None = None,
    threads: int = 1,
    total: torch.Tensor | None = None,
) -> torch.Tensor:
    """‖x_i − center‖² of each row: (n,) fp64 on the rows' device; not finite where the row is not.

    tensors   n contiguous 1-D rows of d elements, one of fp32, fp16, bf16, one device
    center    (d,) of any row dtype, or None for zero
    threads   has no meaning here
    total     (n,) fp64 of the columns before these, a multiple of BLOCK: the norms go on from there, and it is
              overwritten; None is zero

    The bits are those of fedcore/reference/squared_norms.py. Memory: n · d / 512 bytes for the blocks' sums. Raises
    BackendError if the rows lie where the kernel cannot run.
    """
    n, d, device = len(tensors), tensors[0].numel(), tensors[0].device
    check_device("squared_norms", _squared_norms_kernel, device)
    total = torch.zeros(n, dtype=torch.float64, device=device) if total is None else total
    with on_device(device):
        addresses, aligned = address_table(tensors)
        sums = torch.empty((triton.cdiv(d, BLOCK), n), dtype=torch.float64, device=device)
        steps = triton.cdiv(min(d, BLOCK), LANES)
        for first, groups, full in pieces(d, BLOCK * GROUP):
            _squared_norms_kernel[(groups * n,)](
                addresses, center, sums, n, d, first, steps,
                row_dtype=DTYPES[tensors[0].dtype], BLOCK=BLOCK, LANES=LANES, GROUP=GROUP, ALIGNED=aligned, FULL=full,
                **OPTIONS,
            )  # fmt: skip
        fold(sums, total)
    return total
