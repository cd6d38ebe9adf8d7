"""Triton clip_round: one program for a tile of columns; the squares of the integers are added in int64, exactly.

The pass is bound by memory bandwidth.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from fedcore.kernels.rows import DTYPES, address_table, check_device, load, on_device, pieces, row_pointer, store, widen

BLOCK = 1024
OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}


@triton.jit
def round_even(x):
    """int64 of fp64 numbers below 2**51 in size, ties to even: added to 1.5 · 2**52, they end up in its low bits."""
    return (x + 6755399441055744.0).to(tl.int64, bitcast=True) - 0x4338000000000000


@triton.jit(do_not_specialize=("d", "first"))
def _clip_round_kernel(
    addresses,  # (1,) int64: a row of d elements of row_dtype
    scales,  # (1,) fp64
    out,  # (d,) int32
    squares,  # (tiles,) int64: Σ out² of each tile
    d,
    first,  # first tile of this launch
    row_dtype: tl.constexpr,
    BLOCK: tl.constexpr,
    ALIGNED: tl.constexpr,
    FULL: tl.constexpr,
):
    tile = first + tl.program_id(0)
    columns = tile.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = columns < d
    x = widen(load(row_pointer(tl.load(addresses), row_dtype, ALIGNED) + columns, mask, FULL))
    integers = round_even(x.to(tl.float64) * tl.load(scales))
    store(out + columns, integers.to(tl.int32), mask, FULL)
    tl.store(squares + tile, tl.sum(integers * integers, axis=0))


def clip_round(tensors: list[torch.Tensor], scale: float, out: torch.Tensor, threads: int = 1) -> int:
    """Write the row, times `scale`, rounded to integers, into `out` (d,) int32; returns the sum of their squares.

    tensors   one contiguous 1-D row of d elements of fp32, fp16 or bf16, finite
    threads   has no meaning here

    The numbers are those of fedcore/reference/clip_round.py. Raises BackendError if the row lies where the kernel
    cannot run.
    """
    device, d = out.device, out.numel()
    check_device("clip_round", _clip_round_kernel, device)
    with on_device(device):
        addresses, aligned = address_table(tensors)
        scales = torch.tensor([scale], dtype=torch.float64, device=device)
        squares = torch.zeros(triton.cdiv(d, BLOCK), dtype=torch.int64, device=device)
        for first, tiles, full in pieces(d, BLOCK):
            _clip_round_kernel[(tiles,)](
                addresses, scales, out, squares, d, first,
                row_dtype=DTYPES[tensors[0].dtype], BLOCK=BLOCK, ALIGNED=aligned, FULL=full, **OPTIONS,
            )  # fmt: skip
    return int(squares.sum())
