"""Triton pack_bits: a lane makes a byte of the result from the residues that overlap it.

8 residues take `bits` bytes. Bound by memory bandwidth.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from fedcore.kernels.rows import check_device, on_device

BLOCK = 1024
OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}


@triton.jit(do_not_specialize=("length", "size"))
def _pack_bits_kernel(
    residues,  # (length,) int32, or int64 where BITS > 32
    out,  # (size,) uint8
    length,  # int64
    size,  # int64: ceil(length * BITS / 8)
    BITS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    byte = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    first = byte * 8 // BITS  # the residue that holds the byte's bit 0
    made = tl.zeros([BLOCK], tl.int64)
    for j in tl.static_range((7 + BITS - 1) // BITS + 1):
        low = ((first + j) * BITS - byte * 8).to(tl.int64)  # where it begins, in bits of the byte
        x = tl.load(residues + first + j, mask=(byte < size) & (first + j < length), other=0).to(tl.int64)
        if BITS < 64:
            x &= (1 << BITS) - 1
        down, up = tl.maximum(-low, 0), tl.minimum(tl.maximum(low, 0), 8)
        made |= (x >> down) << up  # a shift of 8 leaves nothing in the byte
    tl.store(out + byte, made.to(tl.uint8), mask=byte < size)


def pack_bits(residues: torch.Tensor, bits: int, out: torch.Tensor, threads: int = 1) -> None:
    """As fedcore.reference.pack_bits, of int32 or int64; `threads` has no meaning here.

    Raises BackendError if `residues` lie where the kernel cannot run.
    """
    check_device("pack_bits", _pack_bits_kernel, residues.device)
    if not out.numel():
        return
    with on_device(residues.device):
        _pack_bits_kernel[(triton.cdiv(out.numel(), BLOCK),)](
            residues, out, residues.numel(), out.numel(), BITS=bits, BLOCK=BLOCK, **OPTIONS
        )
