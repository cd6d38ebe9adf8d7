"""Triton clip_noise_accumulate: one program for a tile of columns, whose integer sum stays in registers.

The pass is bound by memory bandwidth and loads as weighted_sum does.
"""

from __future__ import annotations

import numpy as np
import torch
import triton
import triton.language as tl

from fedcore.kernels.clip_round import round_even
from fedcore.kernels.rounding import round_once
from fedcore.kernels.rows import DTYPES, address_table, check_device, load, on_device, pieces, row_pointer, store, widen

BLOCK = 1024
UNROLL = tl.constexpr(4)
MOST = tl.constexpr(1 << 50)
OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}


@triton.jit(do_not_specialize=("n", "d", "first"))
def _clip_noise_accumulate_kernel(
    addresses,  # (n,) int64: rows of d elements of row_dtype
    scales,  # (n,) fp64
    grid,  # (1,) fp64, a power of two
    noise,  # (d,) int64, or None
    divisor,  # (1,) fp64, or None
    out,  # (d,) out_dtype; int16 bits where out_dtype is bf16
    suspect,  # (1,) int32: set to 1 if a noise is out of range or an output is not finite
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
    total = tl.zeros([BLOCK], tl.int64)
    for i in tl.range(0, n, loop_unroll_factor=UNROLL):
        x = load(row_pointer(tl.load(addresses + i), row_dtype, ALIGNED) + columns, mask, FULL)
        total += round_even(tl.load(scales + i) * widen(x).to(tl.float64))
    bad = tl.zeros([BLOCK], tl.int32)
    if noise is not None:
        drawn = load(noise + columns, mask, FULL)
        bad = ((drawn < -MOST) | (drawn >= MOST)).to(tl.int32)
        total += drawn
    value = total.to(tl.float64) * tl.load(grid)
    if divisor is not None:
        value /= tl.load(divisor)
    rounded, finite = round_once(value, out_dtype)
    store(out + columns, rounded, mask, FULL)
    # every program that writes here writes the same 1
    tl.store(suspect, 1, mask=tl.max(bad | (finite == 0).to(tl.int32), axis=0) != 0)


def clip_noise_accumulate(
    tensors: list[torch.Tensor],
    scales: np.ndarray,
    grid: float,
    noise: torch.Tensor | None,
    divisor: float | None,
    out: torch.Tensor,
    threads: int = 1,
) -> bool:
    """Write (Σ rounded rows + noise) · grid / divisor into `out` (d,); True if a noise or an output is out of range.

    tensors   n contiguous 1-D rows of d elements, one of fp32, fp16, bf16, one device
    scales    (n,) fp64; a row of scale 0 is not read
    noise     (d,) int64 on the rows' device, or None
    out       (d,) fp32, fp64, fp16 or bf16 on the rows' device
    threads   has no meaning here

    The bits are those of fedcore/reference/clip_noise_accumulate.py. Raises BackendError if the rows lie where the
    kernel cannot run.
    """
    device, d = out.device, out.numel()
    check_device("clip_noise_accumulate", _clip_noise_accumulate_kernel, device)
    counted = np.flatnonzero(scales)
    with on_device(device):
        addresses, aligned = address_table([tensors[i] for i in counted] or [out])
        # fp64 numbers travel in tensors: Triton passes a Python float as fp32
        factors = torch.tensor(scales[counted], dtype=torch.float64, device=device)
        step = torch.tensor([grid], dtype=torch.float64, device=device)
        by = None if divisor is None else torch.tensor([divisor], dtype=torch.float64, device=device)
        suspect = torch.zeros(1, dtype=torch.int32, device=device)
        target = out.view(torch.int16) if out.dtype == torch.bfloat16 else out
        for first, tiles, full in pieces(d, BLOCK):
            _clip_noise_accumulate_kernel[(tiles,)](
                addresses, factors, step, noise, by, target, suspect, len(counted), d, first,
                row_dtype=DTYPES[tensors[0].dtype], out_dtype=DTYPES[out.dtype], BLOCK=BLOCK, ALIGNED=aligned,
                FULL=full, **OPTIONS,
            )  # fmt: skip
    return bool(suspect.item())
