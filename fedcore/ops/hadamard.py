"""The public hadamard."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedcore.backends import default, implementation, requested
from fedcore.errors import DTypeError, NonFiniteError, ShapeError
from fedcore.numbers import as_whole, got, shown
from fedcore.ops.rows import thread_count
from fedcore.ops.tensors import check_plain, check_reach, is_torch


def hadamard(x: Any, block: int, *, backend: str | None = None, threads: int | None = None) -> Any:
    """The orthonormal fast Walsh–Hadamard transform of each block of `x`, in place; returns `x`.

    x       (d,) contiguous, aligned, writable fp32 array or tensor
    block   a power of two that divides d: pad the end with zeros otherwise

    It keeps the norm of each block, and is its own inverse, up to fp32 rounding. The same bits on every backend, ISA
    and thread count (definition and error bound: fedcore/reference/hadamard.py).
    Raises ShapeError, DTypeError, and NonFiniteError where a block holds NaN or Inf or its sums pass fp32; what `x`
    holds is then not defined.
    """
    if not isinstance(x, np.ndarray) and not is_torch(x):
        raise DTypeError(f"hadamard: got {type(x).__name__}, expected a NumPy array or a torch tensor")
    check_plain("hadamard: x", x)
    if str(x.dtype).removeprefix("torch.") != "float32":
        raise DTypeError(f"hadamard: got {x.dtype}, expected float32; convert it first")
    usable = x.is_contiguous() and x.data_ptr() % 4 == 0 if is_torch(x) else x.flags.carray
    if x.ndim != 1 or not usable:
        raise ShapeError(f"hadamard: got shape {tuple(x.shape)}, expected one contiguous, aligned, writable dimension")
    size = _checked_block(block, x.shape[0])
    on_gpu = is_torch(x) and x.device.type != "cpu"
    name = requested(backend) or default(on_gpu)
    if on_gpu:
        check_reach("hadamard: x", x.device, name)
    held: Any = x.detach() if is_torch(x) else x
    if name == "triton" and not is_torch(held):
        import torch

        held = torch.from_numpy(held)
    elif name != "triton" and is_torch(held):
        held = held.numpy()
    if implementation("hadamard", name)(held, size, thread_count(threads)):
        raise NonFiniteError(
            "hadamard: an output is not finite: x held NaN or Inf, or its sums pass fp32; check x first"
        )
    return x


def _checked_block(block: Any, d: int) -> int:
    size = as_whole(block)
    if size is None:
        raise ShapeError(f"{got('block', block)}, expected a whole number")
    if size < 1 or size & (size - 1):
        raise ShapeError(f"{got('block', block)}, expected a power of two")
    if d % size:
        raise ShapeError(
            f"hadamard: got {d} elements, expected a multiple of the block {shown(size)}; pad with zeros to "
            f"{shown(-d % size + d)}"
        )
    return size
