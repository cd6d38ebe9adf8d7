"""Triton unpack_add: a lane takes the bytes that its residue overlaps, and adds it to the total.

Bound by memory bandwidth; neighbours share bytes in the first-level cache.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from fedcore.kernels.rows import check_device, on_device

BLOCK = 1024
OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}


@triton.jit(do_not_specialize=("length", "size"))
def _unpack_add_kernel(
    packed,  # (size,) uint8
    total,  # (length,) int32, or int64 where BITS > 32, changed
    length,  # int64
    size,  # int64
    BITS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    k = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    byte, shift = k * BITS // 8, k * BITS % 8
    found = tl.zeros([BLOCK], tl.uint64)
    for j in tl.static_range((7 + BITS + 7) // 8):
        x = tl.load(packed + byte + j, mask=(k < length) & (byte + j < size), other=0).to(tl.uint64)
        if j == 0:
            found |= x >> shift.to(tl.uint64)
        else:
            # in two steps: a shift of 64 bits by 64 has no meaning
            found |= (x << (8 * j - 1 - shift).to(tl.uint64)) << 1
    sums = tl.load(total + k, mask=k < length, other=0)
    sums += found.to(tl.int64, bitcast=True).to(sums.dtype)
    if BITS < 32:
        sums &= (1 << BITS) - 1
    if (BITS > 32) & (BITS < 64):
        sums &= (1 << BITS) - 1
    tl.store(total + k, sums, mask=k < length)


def unpack_add(packed: torch.Tensor, bits: int, total: torch.Tensor, threads: int = 1) -> None:
    """As fedcore.reference.unpack_add, on int32 or int64; `threads` has no meaning here.

    Raises BackendError if `total` lies where the kernel cannot run.
    """
    check_device("unpack_add", _unpack_add_kernel, total.device)
    if not total.numel():
        return
    with on_device(total.device):
        _unpack_add_kernel[(triton.cdiv(total.numel(), BLOCK),)](
            packed, total, total.numel(), packed.numel(), BITS=bits, BLOCK=BLOCK, **OPTIONS
        )
