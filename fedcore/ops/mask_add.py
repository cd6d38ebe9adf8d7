"""The public mask_add and unmask_sum: masks of secure aggregation, put on and taken off."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedcore.backends import implementation
from fedcore.errors import DTypeError, NonFiniteError, RangeError, ShapeError
from fedcore.numbers import shown, whole
from fedcore.ops.host_numbers import host_number
from fedcore.ops.pack_bits import pack_bits
from fedcore.ops.residues import (
    in_kind,
    modulus_bits,
    packed_size,
    residue_dtype,
    residue_vector,
    signed,
    target,
    vector,
)
from fedcore.ops.rows import thread_count
from fedcore.ops.streams import key_rows, plus_or_minus, stream_backend, word_counter
from fedcore.ops.tensors import check_reach, is_torch

#: integers that fp64 holds one by one
MOST_LIMIT = 1 << 53


def mask_add(
    values: Any,
    keys: Any,
    signs: Any,
    bits: int,
    *,
    scale: float | None = None,
    limit: int | None = None,
    counter: int = 0,
    stream: str = "chacha20",
    packed: bool = False,
    out: np.ndarray | None = None,
    backend: str | None = None,
    threads: int | None = None,
) -> Any:
    """Quantise a vector and add the keystreams of several keys modulo 2^bits, in one pass: (d,) residues.

    values    (d,) array or tensor without gaps: fp32 or fp64, with `scale` and `limit`; or integers, int64, uint64 or
              uint32, which are taken modulo 2^bits
    keys      k keys of 32 bytes, or a (k, 32) uint8 array; none: quantise only. A key serves one vector
    signs     k numbers, each 1 (add) or −1 (subtract)
    bits      of the modulus, 1 to 64; the result is uint32 up to 32 and uint64 above, always below 2^bits
    scale     of fp values, above 0: q = clamp(value · scale, ±limit) rounded to an integer, ties to even
    limit     a whole number, at most 2^53 and (2^bits − 1) / 2: other integers would share a residue. The sum of n
              vectors does not wrap where 2 · n · limit < 2^bits
    counter   number of the first element: f(v, c)[i:] is f(v[i:], c + i), so a vector may come in parts
    stream    as in keystream: 'chacha20', or 'aes256ctr' in C with AES instructions
    packed    True: the result is pack_bits' of the residues, (⌈d · bits / 8⌉,) uint8, which never lie in memory
              unpacked; counter is then a multiple of 8
    out       where to write: (d,) of the result's dtype, `values` itself where the dtypes are equal; or packed bytes

    Element i gets word counter + i of each stream, of 32 bits up to bits = 32, else 64, under the nonce of zeros:
    fedcore/reference/mask_add.py. The same on every backend that has the stream.

    Raises NonFiniteError naming the first value that is not finite (`out` is of no use then), DTypeError, ShapeError,
    RangeError for bits, scale, limit or a counter out of range, BackendError as keystream does.
    """
    width, data = modulus_bits("mask_add", bits), vector("mask_add", "values", values)
    kind = str(data.dtype).removeprefix("torch.")
    if kind in ("float32", "float64"):
        factor, most = _scale(scale), _limit(limit, width)
    elif kind in ("uint32", "uint64", "int64"):
        if scale is not None or limit is not None:
            raise RangeError(f"mask_add: got scale or limit for values of {kind}, which are not quantised; leave both")
        factor, most = 1.0, 0
    else:
        raise DTypeError(f"mask_add: got {kind} as values, expected float32, float64, int64, uint64 or uint32")
    if packed and whole("counter", counter, 0, 1 << 63, of="mask_add", error=RangeError) % 8:
        raise RangeError(f"mask_add: got counter={counter} for packed residues, expected a multiple of 8")
    settings = (keys, signs, width, factor, most, counter, stream)
    if packed and (is_torch(data) or stream_backend("mask_add", stream, backend, on_gpu=False) != "c"):
        residues = _run("mask_add", data, *settings, None, backend, threads, values)
        return pack_bits(residues, width, out, backend=backend, threads=threads)
    return _run("mask_add", data, *settings, out, backend, threads, values, packed=packed)


def unmask_sum(
    total: Any,
    keys: Any,
    signs: Any,
    bits: int,
    *,
    counter: int = 0,
    stream: str = "chacha20",
    out: np.ndarray | None = None,
    backend: str | None = None,
    threads: int | None = None,
) -> Any:
    """Add the keystreams of many keys to a sum of masked vectors: (d,) residues, total + Σ sign · stream mod 2^bits.

    total     (d,) residues: uint32 up to 32 bits, else uint64
    keys, signs, bits, counter, stream, out    as in mask_add. A server gives the keys of the masks that the sum still
              holds, each with the opposite sign: of self masks of those who are in the sum, of pair masks of those who
              are not. There may be thousands

    Threads share the columns, and each keeps what lies in its first-level cache there until all keys are added.
    Raises as mask_add does.
    """
    width = modulus_bits("unmask_sum", bits)
    data = residue_vector("unmask_sum", "total", total, width)
    return _run("unmask_sum", data, keys, signs, width, 1.0, 0, counter, stream, out, backend, threads, total)


def _scale(scale: Any) -> float:
    value = host_number("mask_add: scale", scale)
    if value is None or not 0 < value < np.inf:
        raise RangeError(f"mask_add: got scale={shown(scale)} for fp values, expected a finite number above 0")
    return value


def _limit(limit: Any, bits: int) -> int:
    most = min(MOST_LIMIT, ((1 << bits) - 1) // 2)
    return whole("limit", limit, 0, most, of="mask_add", error=RangeError)


def _run(
    op: str, data: Any, keys: Any, signs: Any, bits: int, scale: float, limit: int, counter: Any, stream: str,
    out: Any, backend: str | None, threads: int | None, given: Any, packed: bool = False,
) -> Any:  # fmt: skip
    on_gpu, dtype = is_torch(data), residue_dtype(bits)
    name = stream_backend(op, stream, backend, on_gpu=on_gpu)
    if is_torch(data):
        check_reach(op, data.device, name)
    secrets = key_rows(op, keys)
    first = word_counter(op, stream, counter, len(data), dtype.itemsize)
    directions, count = plus_or_minus(signs, len(secrets)), thread_count(threads)
    settings = (secrets, directions, bits, scale, limit, first, stream, count)
    work = implementation("mask_add", name)
    if on_gpu:
        result = _like(op, data, out, dtype)
        finite = work(signed(data), signed(result), *settings)
    else:
        size, kind = (packed_size(len(data), bits), np.dtype(np.uint8)) if packed else (len(data), dtype)
        result = np.empty(size, kind) if out is None else target(op, "out", out, size, kind)
        source = data.view(np.uint64) if data.dtype == np.int64 else data
        if np.may_share_memory(result, source) and (result.ctypes.data, result.dtype) != (
            source.ctypes.data,
            source.dtype,
        ):
            raise ShapeError(f"{op}: out overlaps the values in another place or dtype; pass other memory")
        pair = (signed(source), signed(result)) if name == "triton" else (source, result)
        finite = work(*pair, *settings)
    if not finite:
        _refuse(op, data)
    if out is not None or on_gpu:
        return result if out is None else out
    return in_kind(result, given)


def _like(op: str, data: Any, out: Any, dtype: np.dtype) -> Any:
    """Residues on the GPU of `data`."""
    import torch

    if out is not None:
        raise ShapeError(f"{op}: got out for values on {data.device}; leave it, the result is a new tensor")
    return torch.empty(len(data), dtype=getattr(torch, str(dtype)), device=data.device)


def _refuse(op: str, data: Any) -> None:
    if is_torch(data):
        import torch

        index = int(torch.nonzero(~torch.isfinite(data))[0])
    else:
        index = int(np.flatnonzero(~np.isfinite(data))[0])
    raise NonFiniteError(
        f"{op}: values hold {float(data[index])} at index {index}; repair the vector or leave this round", column=index
    )
