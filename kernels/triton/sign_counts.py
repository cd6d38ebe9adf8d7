"""Triton sign_counts: one program for a tile of columns, comparisons in fp32, which holds fp16 and bf16 exactly.

The pass is bound by memory bandwidth, like weighted_sum's, and loads in the same way.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from fedcore.kernels.rows import DTYPES, address_table, check_device, load, on_device, pieces, row_pointer, store, widen

BLOCK = 1024
UNROLL = tl.constexpr(4)
OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}


@triton.jit(do_not_specialize=("n", "d", "first"))
def _sign_counts_kernel(
    addresses,  # (n,) int64: rows of d elements of row_dtype
    center,  # (d,) of any row dtype, or None
    out,  # (d,) int32
    suspect,  # (1,) int32: set to 1 if an element is not finite
    n,
    d,
    first,  # first tile of this launch
    row_dtype: tl.constexpr,
    BLOCK: tl.constexpr,
    ALIGNED: tl.constexpr,
    FULL: tl.constexpr,
):
    columns = (first + tl.program_id(0)).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = columns < d
    middle = tl.zeros([BLOCK], tl.float32)
    if center is not None:
        middle = widen(load(center + columns, mask, FULL))
    votes = tl.zeros([BLOCK], tl.int32)
    bad = (tl.abs(middle) < float("inf")) == 0
    for i in tl.range(0, n, loop_unroll_factor=UNROLL):
        x = widen(load(row_pointer(tl.load(addresses + i), row_dtype, ALIGNED) + columns, mask, FULL))
        votes += (x > middle).to(tl.int32) - (x < middle).to(tl.int32)
        bad = bad | ((tl.abs(x) < float("inf")) == 0)
    store(out + columns, votes, mask, FULL)
    # every program that writes here writes the same 1
    tl.store(suspect, 1, mask=tl.max(bad.to(tl.int32), axis=0) != 0)


def sign_counts(tensors: list[torch.Tensor], center: torch.Tensor | None, out: torch.Tensor, threads: int = 1) -> bool:
    """Write #{i : x_i > center} − #{i : x_i < center} of each column into `out` (d,); True if anything is not finite.

    tensors   n contiguous 1-D rows of d elements, one of fp32, fp16, bf16, one device
    center    (d,) of any row dtype, or None for zero
    out       (d,) int32 on the rows' device
    threads   has no meaning here

    The numbers are those of fedcore/reference/sign_counts.py. Raises BackendError if the rows lie where the kernel
    cannot run.
    """
    n, d, device = len(tensors), out.numel(), out.device
    check_device("sign_counts", _sign_counts_kernel, device)
    with on_device(device):
        addresses, aligned = address_table([*tensors] if center is None else [*tensors, center])
        suspect = torch.zeros(1, dtype=torch.int32, device=device)
        for first, tiles, full in pieces(d, BLOCK):
            _sign_counts_kernel[(tiles,)](
                addresses, center, out, suspect, n, d, first,
                row_dtype=DTYPES[tensors[0].dtype], BLOCK=BLOCK, ALIGNED=aligned, FULL=full, **OPTIONS,
            )  # fmt: skip
    return bool(suspect.item())
