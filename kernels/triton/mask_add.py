"""Triton mask_add: a program quantises its elements and keeps them in registers until all keys have been added.

A lane works on a ChaCha20 block of each key: 16 elements of 32 bits, or 8 of 64. What bounds it is the rate of integer
instructions, some 60 an element and key.
"""

from __future__ import annotations

import numpy as np
import torch
import triton
import triton.language as tl

from fedcore.kernels import chacha20
from fedcore.kernels.chacha20 import BLOCK_BYTES, LANES
from fedcore.kernels.rows import check_device, on_device

OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}


@triton.jit
def round_half_even(x):
    """int64 of fp64 numbers up to 2**53 in size, from their bits: AMD's own conversion would fuse multiply-adds."""
    bits = x.to(tl.int64, bitcast=True)
    digits = (bits & 0xFFFFFFFFFFFFF) | 0x10000000000000
    point = 1075 - ((bits >> 52) & 0x7FF)  # digits behind it; above 54 nothing is left before it
    behind = tl.minimum(tl.maximum(point, 0), 55)
    whole = (digits << tl.maximum(-point, 0)) >> behind
    rest, half = digits & ((behind * 0 + 1 << behind) - 1), (behind * 0 + 1 << behind) >> 1
    up = (behind > 0) & ((rest > half) | ((rest == half) & ((whole & 1) != 0)))
    size = whole + up.to(tl.int64)
    return tl.where(bits < 0, -size, size)


@triton.jit
def quantised(x, settings):
    """clamp(x · scale, ±limit), ties to even, as int64; settings: scale and limit. 0 where x is not finite."""
    wide = x.to(tl.float64)
    limit = tl.load(settings + 1)
    product = wide * tl.load(settings)
    product = tl.where(product > limit, limit, product)
    product = tl.where(product < -limit, -limit, product)
    return round_half_even(tl.where(wide - wide == 0, product, 0.0))


@triton.jit(do_not_specialize=("at", "length", "block", "n"))
def _mask_add_kernel(
    values,  # (length,) fp32, fp64, int32 (as uint32) or int64
    out,  # (length,) int32, or int64 where WIDE
    keys,  # (n, 8) int32
    nonce,  # (3,) int32: zeros
    signs,  # (n,) int64: 1 or -1
    settings,  # (2,) fp64: scale, limit
    mask,  # (1,) int64: 2^bits - 1
    suspect,  # (1,) int32: becomes 1 if a value is not finite
    at,  # int64: which element the first word of `block` belongs to; those before 0 go nowhere
    length,  # int64
    block,  # int64: the first block
    n,
    WIDE: tl.constexpr,
    LANES: tl.constexpr,
):
    WORDS: tl.constexpr = 8 if WIDE else 16
    lane = tl.program_id(0).to(tl.int64) * LANES + tl.arange(0, LANES)
    blocks = (block + lane).to(tl.uint32)
    to = at + lane[:, None] * WORDS + tl.arange(0, WORDS)[None, :]
    inside = (to >= 0) & (to < length)
    x = tl.load(values + to, mask=inside, other=0)
    if x.dtype.is_floating():
        if tl.sum((~(x - x == 0)).to(tl.int32)) > 0:
            tl.store(suspect, 1)
        q = quantised(x, settings)
    elif x.dtype == tl.int32:
        q = x.to(tl.uint32, bitcast=True).to(tl.int64)
    else:
        q = x
    total = q if WIDE else q.to(tl.int32)
    for i in tl.range(0, n):
        made = chacha20.rows(chacha20.block(keys + i * 8, nonce, blocks))
        sign = tl.load(signs + i)
        if WIDE:
            low, high = tl.split(made.reshape([LANES, 8, 2]))
            word = low.to(tl.uint32, bitcast=True).to(tl.int64) | (high.to(tl.int64) << 32)
            total += word * sign
        else:
            total += made * sign.to(tl.int32)
    if WIDE:
        total &= tl.load(mask)
    else:
        total &= tl.load(mask).to(tl.int32)
    tl.store(out + to, total, mask=inside)


def mask_add(
    values: torch.Tensor,
    out: torch.Tensor,
    keys: np.ndarray,
    signs: np.ndarray,
    bits: int,
    scale: float,
    limit: int,
    counter: int,
    stream: str = "chacha20",
    threads: int = 1,
) -> bool:
    """As fedcore.reference.mask_add, on int32 and int64 where it has unsigned integers; `threads` has no meaning here.

    Raises BackendError if `values` lie where the kernel cannot run.
    """
    device, length = values.device, values.numel()
    check_device("mask_add", _mask_add_kernel, device)
    if not length:
        return True
    words = BLOCK_BYTES // out.element_size()
    block, skip = divmod(counter, words)
    blocks = triton.cdiv(skip + length, words)
    mask = np.array([(1 << bits) - 1], np.uint64).view(np.int64)
    with on_device(device):
        suspect = torch.zeros(1, dtype=torch.int32, device=device)
        _mask_add_kernel[(triton.cdiv(blocks, LANES),)](
            values, out, chacha20.words(keys.tobytes(), device), chacha20.words(bytes(12), device),
            torch.from_numpy(signs.astype(np.int64)).to(device),
            torch.tensor([scale, float(limit)], dtype=torch.float64, device=device), torch.from_numpy(mask).to(device),
            suspect, -skip, length, block, len(keys), WIDE=bits > 32, LANES=LANES, **OPTIONS,
        )  # fmt: skip
    return not int(suspect)
