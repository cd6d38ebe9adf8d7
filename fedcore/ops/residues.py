"""What the ops over residues modulo 2^bits accept: vectors of uint32 up to 32 bits, of uint64 up to 64."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedcore.errors import DTypeError, RangeError, ShapeError
from fedcore.numbers import whole
from fedcore.ops.tensors import check_plain, is_torch


def modulus_bits(op: str, bits: Any) -> int:
    """The modulus' exponent. Raises RangeError."""
    return whole("bits", bits, 1, 64, of=op, error=RangeError)


def residue_dtype(bits: int) -> np.dtype:
    """What residues of `bits` bits are held in: uint32 or uint64."""
    return np.dtype(np.uint32 if bits <= 32 else np.uint64)


def packed_size(count: int, bits: int) -> int:
    """Bytes that residues take without gaps."""
    return -(-count * bits // 8)


def vector(op: str, name: str, value: Any) -> Any:
    """An array over the memory of an array or CPU tensor, or a GPU tensor as it is: one dimension without gaps.

    Raises DTypeError and ShapeError.
    """
    check_plain(f"{op}: {name}", value)
    if is_torch(value):
        gaps = not value.is_contiguous() or value.data_ptr() % value.element_size() != 0
        found = value.detach()
        try:
            found = found.numpy() if value.device.type == "cpu" else found
        except TypeError:
            dtype = str(value.dtype).removeprefix("torch.")
            raise DTypeError(f"{op}: got {dtype} as {name}, which NumPy does not have; convert it first") from None
    elif isinstance(value, np.ndarray):
        gaps, found = not (value.flags.c_contiguous and value.flags.aligned), value
    else:
        raise DTypeError(f"{op}: got {type(value).__name__} as {name}, expected a NumPy array or a torch tensor")
    if found.ndim != 1 or gaps:
        raise ShapeError(
            f"{op}: got shape {tuple(found.shape)} as {name}, expected one dimension without gaps, aligned; pass a copy"
        )
    return found


def residue_vector(op: str, name: str, value: Any, bits: int) -> Any:
    """A vector of residues of `bits` bits. Raises DTypeError and ShapeError."""
    found, expected = vector(op, name, value), residue_dtype(bits)
    dtype = str(found.dtype).removeprefix("torch.")
    if dtype != str(expected):
        raise DTypeError(f"{op}: got {dtype} as {name}, expected {expected} for {bits} bits")
    return found


def target(op: str, name: str, value: Any, length: int, expected: np.dtype) -> np.ndarray:
    """An array to write `length` elements of one dtype to. Raises DTypeError and ShapeError."""
    found = vector(op, name, value)
    if not isinstance(found, np.ndarray) or found.dtype != expected:
        raise DTypeError(f"{op}: got {value.dtype} as {name}, expected {expected} in main memory")
    if len(found) != length or not found.flags.writeable:
        raise ShapeError(f"{op}: got {len(found)} elements as {name}, expected {length} that can be written to")
    return found


def signed(value: Any) -> Any:
    """A tensor over the memory of an array or tensor, its integers as signed ones, which all of torch computes with."""
    import torch

    if not is_torch(value):
        return torch.from_numpy(value if value.dtype == np.uint8 else value.view(value.dtype.str.replace("u", "i")))
    return value.view({torch.uint32: torch.int32, torch.uint64: torch.int64}.get(value.dtype, value.dtype))


def in_kind(result: np.ndarray, like: Any) -> Any:
    """A new result as a tensor on the CPU where the input was one."""
    if not is_torch(like):
        return result
    import torch

    return torch.from_numpy(result)
