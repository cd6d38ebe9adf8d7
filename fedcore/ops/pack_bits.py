"""The public pack_bits and unpack_add: residues on the wire."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedcore.backends import default, implementation, requested
from fedcore.errors import DTypeError, FormatError, RangeError, ShapeError
from fedcore.numbers import whole
from fedcore.ops.residues import in_kind, modulus_bits, packed_size, residue_vector, signed, target, vector
from fedcore.ops.rows import thread_count
from fedcore.ops.tensors import check_reach, extent, is_torch


def pack_bits(
    residues: Any,
    bits: int,
    out: np.ndarray | None = None,
    *,
    backend: str | None = None,
    threads: int | None = None,
) -> Any:
    """Residues without gaps: (⌈d · bits / 8⌉,) uint8, bit j of residue i at bit i · bits + j, little-endian.

    residues  (d,) array or tensor: uint32 up to 32 bits, else uint64; their low `bits` bits are packed
    bits      1 to 64
    out       where to write

    The bits after the last residue, fewer than 8, are 0. 8 residues take whole bytes, so the parts of a vector that is
    cut at multiples of 8 elements pack to the parts of its bytes. The same on every backend.
    Raises DTypeError, ShapeError, RangeError for bits, BackendError.
    """
    width = modulus_bits("pack_bits", bits)
    data = residue_vector("pack_bits", "residues", residues, width)
    size, name = packed_size(len(data), width), requested(backend) or default(is_torch(data))
    if is_torch(data):
        check_reach("pack_bits", data.device, name)
    work, count = implementation("pack_bits", name), thread_count(threads)
    if is_torch(data):
        import torch

        if out is not None:
            raise ShapeError(f"pack_bits: got out for residues on {data.device}; leave it, the result is a new tensor")
        made = torch.empty(size, dtype=torch.uint8, device=data.device)
        work(signed(data), width, made, count)
        return made
    result = np.empty(size, np.uint8) if out is None else target("pack_bits", "out", out, size, np.dtype(np.uint8))
    if np.may_share_memory(result, data):
        raise ShapeError("pack_bits: out overlaps the residues; pass other memory")
    work(*((signed(data), width, signed(result)) if name == "triton" else (data, width, result)), count)
    return in_kind(result, residues) if out is None else out


def unpack_add(
    packed: Any,
    bits: int,
    total: Any,
    start: int = 0,
    *,
    backend: str | None = None,
    threads: int | None = None,
) -> Any:
    """Add packed residues to total[start : start + m] modulo 2^bits, in place; returns `total`.

    packed    (⌈m · bits / 8⌉,) uint8 array or tensor, or bytes, as pack_bits makes them. m is as many as the bytes
              hold and `total` has room for
    total     (d,) residues: uint32 up to 32 bits, else uint64; must not overlap `packed`
    start     where the part begins in `total`

    Raises FormatError, with `total` unchanged, for bytes that no vector packs to: too many for `total`, or with a 1
    after the last residue. Else as pack_bits.
    """
    width = modulus_bits("unpack_add", bits)
    sums = residue_vector("unpack_add", "total", total, width)
    first = whole("start", start, 0, len(sums), of="unpack_add", error=RangeError)
    if isinstance(packed, (bytes, bytearray, memoryview)):
        packed = np.frombuffer(packed, np.uint8)
    data = vector("unpack_add", "packed", packed)
    if str(data.dtype).removeprefix("torch.") != "uint8":
        raise DTypeError(f"unpack_add: got {data.dtype} as packed, expected uint8")
    if is_torch(sums) != is_torch(data):
        raise ShapeError("unpack_add: packed and total lie on different devices; move one")
    (low, high), (begin, end) = extent(data), extent(sums)
    if low < end and begin < high:
        raise ShapeError("unpack_add: packed overlaps total; pass other memory")
    count = min(len(data) * 8 // width, len(sums) - first)
    if len(data) != packed_size(count, width):
        raise FormatError(
            f"unpack_add: got {len(data)} bytes for elements from {first} on, expected at most "
            f"{packed_size(len(sums) - first, width)}, and as many as whole residues of {width} bits take"
        )
    if count * width % 8 and int(data[-1]) >> count * width % 8:
        raise FormatError("unpack_add: got a 1 in the bits after the last residue, expected 0; the bytes are damaged")
    name = requested(backend) or default(is_torch(sums))
    if is_torch(sums):
        check_reach("unpack_add", sums.device, name)
    work, part, threads = implementation("unpack_add", name), sums[first : first + count], thread_count(threads)
    if not is_torch(sums):
        target("unpack_add", "total", sums, len(sums), sums.dtype)
    if name == "triton":
        work(data if is_torch(data) else signed(data.copy()), width, signed(part), threads)
    else:
        work(data, width, part, threads)
    return total
