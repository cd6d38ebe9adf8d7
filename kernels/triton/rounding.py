"""The one rounding of an output, straight from fp64 to its dtype, and whether it is finite."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _round_to_odd(value):
    """fp64 to fp32 as int32 bits: the exact value, or the neighbour whose last bit is 1.

    A second rounding to 16 bits then equals one direct rounding (Boldo and Melquiond, 2008, "Emulation of a FMA and
    correctly rounded sums: proved algorithms using rounding to odd").
    """
    nearest = value.to(tl.float32)
    back = tl.abs(nearest.to(tl.float64))
    bits = nearest.to(tl.int32, bitcast=True)
    even = (bits & 1) == 0
    # magnitude bits order like magnitudes: one step of the integer is one ulp; NaN compares false and stays
    toward_zero = even & (back > tl.abs(value))
    away = even & (back < tl.abs(value))
    return tl.where(toward_zero, bits - 1, tl.where(away, bits + 1, bits))


@triton.jit
def round_once(value, out_dtype: tl.constexpr):
    """(rounded, finite) of fp64 `value`: to nearest even in out_dtype; bf16 as its int16 bits."""
    if out_dtype == tl.bfloat16:
        bits = _round_to_odd(value)
        bits = tl.where(value == value, (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16, 0x7FC0)
        finite = (bits & 0x7F80) != 0x7F80
        rounded = bits.to(tl.int16)
    else:
        if out_dtype == tl.float16:
            rounded = _round_to_odd(value).to(tl.float32, bitcast=True).to(tl.float16)
        else:
            rounded = value.to(out_dtype)
        finite = tl.abs(rounded.to(tl.float64)) < float("inf")
    return rounded, finite


@triton.jit
def store_tile(out, at, total, mask, suspect, out_dtype: tl.constexpr):
    """Writes a 2-d fp64 tile at offsets `at` of `out`, where `mask`, rounded once; a value that is not finite sets
    `suspect`, (1,) int32, to 1."""
    rounded, finite = round_once(total, out_dtype)
    tl.store(out + at, rounded, mask=mask)
    bad = mask & (finite == 0)
    # every program that writes here writes the same 1
    tl.store(suspect, 1, mask=tl.max(tl.max(bad.to(tl.int32), axis=1), axis=0) != 0)


@triton.jit
def unsigned_zero(rounded):
    """`rounded`, with +0 for −0; int16 is the bits of bf16."""
    if rounded.dtype == tl.int16:
        found = tl.where((rounded & 0x7FFF) == 0, tl.zeros_like(rounded), rounded)
    else:
        found = tl.where(rounded == 0, tl.zeros_like(rounded), rounded)
    return found
