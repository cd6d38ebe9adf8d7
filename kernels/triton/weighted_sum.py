"""Triton weighted_sum: one program for a tile of columns, rows in order, so the bits are those of the definition.

The pass is bound by memory bandwidth: each thread loads 16 bytes at a time, and the unrolled loop over rows keeps
UNROLL rows of a tile in flight (16 KB a program in fp32) before the first is needed.
"""

from __future__ import annotations

import numpy as np
import torch
import triton
import triton.language as tl

from fedcore.kernels.rounding import round_once
from fedcore.kernels.rows import DTYPES, address_table, check_device, load, on_device, pieces, row_pointer, store, widen

BLOCK = 1024
UNROLL = tl.constexpr(4)
OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}


@triton.jit(do_not_specialize=("n", "d", "first"))
def _weighted_sum_kernel(
    addresses,  # (n,) int64: rows of d elements of row_dtype
    weights,  # (n,) fp64 that hold fp32 values
    divisor,  # (1,) fp64, or None
    out,  # (d,) out_dtype; int16 bits where out_dtype is bf16
    suspect,  # (1,) int32: set to 1 if an output is not finite
    n,
    d,
    first,  # first tile of this launch
    row_dtype: tl.constexpr,
    out_dtype: tl.constexpr,
    BLOCK: tl.constexpr,
    ALIGNED: tl.constexpr,
    FULL: tl.constexpr,
):
    columns = (first + tl.program_id(0)).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = columns < d
    total = tl.zeros([BLOCK], tl.float64)
    for i in tl.range(0, n, loop_unroll_factor=UNROLL):
        x = load(row_pointer(tl.load(addresses + i), row_dtype, ALIGNED) + columns, mask, FULL)
        total += tl.load(weights + i) * widen(x).to(tl.float64)
    if divisor is not None:
        total /= tl.load(divisor)
    rounded, finite = round_once(total, out_dtype)
    store(out + columns, rounded, mask, FULL)
    # every program that writes here writes the same 1
    tl.store(suspect, 1, mask=tl.max((finite == 0).to(tl.int32), axis=0) != 0)


def weighted_sum(
    tensors: list[torch.Tensor], weights: np.ndarray, divisor: float | None, out: torch.Tensor, threads: int = 1
) -> bool:
    """Write Σ w_i x_i, divided by `divisor`, into `out` (d,); True if any output is not finite.

    tensors   n contiguous 1-D rows of d elements, one of fp32, fp16, bf16, one device
    weights   (n,) fp32; a row whose weight is 0 is not read
    out       (d,) fp32, fp64, fp16 or bf16 on the rows' device
    threads   has no meaning here

    The bits are those of fedcore/reference/weighted_sum.py. Raises BackendError if the rows lie where the kernel
    cannot run.
    """
    device, d = out.device, out.numel()
    check_device("weighted_sum", _weighted_sum_kernel, device)
    counted = np.flatnonzero(weights)
    with on_device(device):
        addresses, aligned = address_table([tensors[i] for i in counted] or [out])
        # fp64 numbers travel in tensors: Triton passes a Python float as fp32
        scales = torch.tensor(weights[counted].astype(np.float64), device=device)
        by = None if divisor is None else torch.tensor([divisor], dtype=torch.float64, device=device)
        suspect = torch.zeros(1, dtype=torch.int32, device=device)
        target = out.view(torch.int16) if out.dtype == torch.bfloat16 else out
        for first, tiles, full in pieces(d, BLOCK):
            _weighted_sum_kernel[(tiles,)](
                addresses, scales, by, target, suspect, len(counted), d, first,
                row_dtype=DTYPES[tensors[0].dtype], out_dtype=DTYPES[out.dtype], BLOCK=BLOCK, ALIGNED=aligned,
                FULL=full, **OPTIONS,
            )  # fmt: skip
    return bool(suspect.item())
