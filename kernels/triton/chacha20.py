"""ChaCha20 (RFC 8439) for Triton: a lane works on a block of its own, in integers alone; nothing is looked up.

The arithmetic is 960 additions, XORs and rotations for a block of 64 bytes: on a GPU the rate of 32-bit integer
instructions is the bound.
"""

from __future__ import annotations

import numpy as np
import torch
import triton
import triton.language as tl

#: blocks that one program makes
LANES = 128
BLOCK_BYTES = 64
WORDS = tl.constexpr(16)


def words(data: bytes, device: torch.device) -> torch.Tensor:
    """Little-endian words as int32, which every version of torch computes with."""
    return torch.from_numpy(np.frombuffer(data, "<i4").copy()).to(device)


@triton.jit
def turn(x, n: tl.constexpr):
    """x rotated to the left by n bits."""
    return (x << n) | (x >> (32 - n))


@triton.jit
def quarter(a, b, c, d):
    """A quarter round (RFC 8439 section 2.1)."""
    a += b
    d = turn(d ^ a, 16)
    c += d
    b = turn(b ^ c, 12)
    a += b
    d = turn(d ^ a, 8)
    c += d
    b = turn(b ^ c, 7)
    return a, b, c, d


@triton.jit
def word(pointer, like):
    """The uint32 at an int32 pointer, in every lane of `like`."""
    return like * 0 + tl.load(pointer).to(tl.uint32, bitcast=True)


@triton.jit
def block(key, nonce, counter):
    """The 16 words of block counter[lane], counter a uint32 vector; key and nonce point to 8 and 3 int32 words."""
    zero = counter * 0
    k0, k1, k2, k3 = word(key, zero), word(key + 1, zero), word(key + 2, zero), word(key + 3, zero)
    k4, k5, k6, k7 = word(key + 4, zero), word(key + 5, zero), word(key + 6, zero), word(key + 7, zero)
    n0, n1, n2 = word(nonce, zero), word(nonce + 1, zero), word(nonce + 2, zero)
    x0, x1, x2, x3 = zero + 0x61707865, zero + 0x3320646E, zero + 0x79622D32, zero + 0x6B206574
    x4, x5, x6, x7, x8, x9, x10, x11 = k0, k1, k2, k3, k4, k5, k6, k7
    x12, x13, x14, x15 = counter, n0, n1, n2
    for _ in tl.range(10):
        x0, x4, x8, x12 = quarter(x0, x4, x8, x12)
        x1, x5, x9, x13 = quarter(x1, x5, x9, x13)
        x2, x6, x10, x14 = quarter(x2, x6, x10, x14)
        x3, x7, x11, x15 = quarter(x3, x7, x11, x15)
        x0, x5, x10, x15 = quarter(x0, x5, x10, x15)
        x1, x6, x11, x12 = quarter(x1, x6, x11, x12)
        x2, x7, x8, x13 = quarter(x2, x7, x8, x13)
        x3, x4, x9, x14 = quarter(x3, x4, x9, x14)
    return (
        x0 + 0x61707865, x1 + 0x3320646E, x2 + 0x79622D32, x3 + 0x6B206574, x4 + k0, x5 + k1, x6 + k2, x7 + k3,
        x8 + k4, x9 + k5, x10 + k6, x11 + k7, x12 + counter, x13 + n0, x14 + n1, x15 + n2,
    )  # fmt: skip


@triton.jit
def rows(x):
    """The 16 words of each lane side by side: (lanes, 16). They stay in their lane, which stores 16 bytes at once."""
    a0, a1, a2, a3 = tl.join(x[0], x[8]), tl.join(x[1], x[9]), tl.join(x[2], x[10]), tl.join(x[3], x[11])
    a4, a5, a6, a7 = tl.join(x[4], x[12]), tl.join(x[5], x[13]), tl.join(x[6], x[14]), tl.join(x[7], x[15])
    b0, b1, b2, b3 = tl.join(a0, a4), tl.join(a1, a5), tl.join(a2, a6), tl.join(a3, a7)
    joined = tl.join(tl.join(b0, b2), tl.join(b1, b3))
    return joined.reshape([x[0].shape[0], 16]).to(tl.int32, bitcast=True)
