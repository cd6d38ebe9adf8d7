"""Triton weighted_sums: a (SUMS, BLOCK) tile of fp64 sums a program, so that a row is read once for SUMS of them.

Groups of sums change fastest over programs, so that those which share a tile of columns find its rows in the L2 cache.
A product of two fp32 numbers is exact in fp64, so the fused multiply-add used here rounds as a product and an addition
do, and takes half the fp64 instructions, which are the bound from some 15 sums on: an H200 does 7.4 · 10¹² a second.
"""

from __future__ import annotations

import numpy as np
import torch
import triton
import triton.language as tl

from fedcore.kernels.rounding import store_tile
from fedcore.kernels.rows import DTYPES, address_table, check_device, load, on_device, pieces, row_pointer, widen

#: sums and columns of a program: 64 fp64 sums a thread
SUMS = 16
BLOCK = 512
UNROLL = tl.constexpr(4)
OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}


@triton.jit(do_not_specialize=("n", "d", "m", "groups", "first"))
def _weighted_sums_kernel(
    addresses,  # (n,) int64: rows of d elements of row_dtype
    weights,  # (n, groups · SUMS) fp64 that hold fp32 values
    divisors,  # (groups · SUMS,) fp64, or None
    out,  # (m, d) out_dtype; int16 bits where out_dtype is bf16
    suspect,  # (1,) int32: set to 1 if an output is not finite
    n,
    d,
    m,
    groups,
    first,  # first tile of this launch
    row_dtype: tl.constexpr,
    out_dtype: tl.constexpr,
    SUMS: tl.constexpr,
    BLOCK: tl.constexpr,
    FULL: tl.constexpr,
):
    program = tl.program_id(0)
    sums = program % groups * SUMS + tl.arange(0, SUMS)
    columns = (first + program // groups).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = columns < d
    total = tl.zeros([SUMS, BLOCK], tl.float64)
    for i in tl.range(0, n, loop_unroll_factor=UNROLL):
        # single loads: vectors would give a lane other columns than the tile does, and a trip through shared memory
        x = widen(load(row_pointer(tl.load(addresses + i), row_dtype, False) + columns, mask, FULL)).to(tl.float64)
        w = tl.load(weights + sums)
        weights += groups * SUMS
        total = tl.fma(tl.broadcast_to(w[:, None], [SUMS, BLOCK]), tl.broadcast_to(x[None, :], [SUMS, BLOCK]), total)
    if divisors is not None:
        total /= tl.load(divisors + sums)[:, None]
    real = (sums < m)[:, None]
    if not FULL:
        real = real & mask[None, :]
    store_tile(out, sums[:, None].to(tl.int64) * d + columns[None, :], total, real, suspect, out_dtype)


def weighted_sums(
    tensors: list[torch.Tensor],
    weights: np.ndarray,
    divisors: np.ndarray | None,
    out: torch.Tensor,
    threads: int = 1,
) -> bool:
    """Write Σ_i w_ai x_i, divided by divisor_a, into `out` (m, d); True if any output is not finite.

    tensors   n contiguous 1-D rows of d elements, one of fp32, fp16, bf16, one device
    weights   (m, n) fp32; a row whose weights are all 0 is not read
    divisors  (m,) fp64, or None
    out       (m, d) fp32, fp64, fp16 or bf16 on the rows' device
    threads   has no meaning here

    The bits are those of fedcore/reference/weighted_sums.py. Raises BackendError if the rows lie where the kernel
    cannot run.
    """
    (m, d), device = out.shape, out.device
    check_device("weighted_sums", _weighted_sums_kernel, device)
    groups = triton.cdiv(m, SUMS)
    counted = np.flatnonzero(weights.any(axis=0))
    # sums past the last one are of weight 0 and are not written
    padded = np.zeros((len(counted), groups * SUMS))
    padded[:, :m] = weights[:, counted].T
    by = np.ones(groups * SUMS)
    if divisors is not None:
        by[:m] = divisors
    with on_device(device):
        addresses, _ = address_table([tensors[i] for i in counted] or [out])
        scales = torch.tensor(padded, device=device)
        parts = None if divisors is None else torch.tensor(by, device=device)
        suspect = torch.zeros(1, dtype=torch.int32, device=device)
        target = out.view(torch.int16) if out.dtype == torch.bfloat16 else out
        for first, tiles, full in pieces(d, BLOCK) if m else ():
            _weighted_sums_kernel[(tiles * groups,)](
                addresses, scales, parts, target, suspect, len(counted), d, m, groups, first,
                row_dtype=DTYPES[tensors[0].dtype], out_dtype=DTYPES[out.dtype], SUMS=SUMS, BLOCK=BLOCK,
                FULL=full, **OPTIONS,
            )  # fmt: skip
    return bool(suspect.item())
