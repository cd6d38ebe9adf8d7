"""Where an op writes: what the caller gave as `out`, checked, or new memory of the kind that the data is of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fedcore.dtypes import BF16, OUT_DTYPES, STORAGE, name_of
from fedcore.errors import DTypeError, ShapeError
from fedcore.ops.tensors import check_plain, extent, is_torch, tensor_of, view_of_tensor


def output_dtype(out: Any, out_dtype: Any) -> str:
    """The name of what is written: the dtype of `out` where it is given. Raises DTypeError for no output's."""
    dtype = name_of(getattr(out, "dtype", out_dtype))
    if dtype not in OUT_DTYPES:
        raise DTypeError(f"out_dtype: got {dtype}, expected one of {', '.join(OUT_DTYPES)}")
    return dtype


def output_for(
    data: Any, shape: tuple[int, ...], out: Any, dtype: str, backend: str, overlapped: Callable[[int, int], str | None]
) -> tuple[Any, Any]:
    """(what the caller gets, what the backend writes, bf16 always as BF16): two views of the same memory.

    data        `Rows` or `FactorPairs`: says the device and the NumPy dtype of bf16
    out         None makes one, by the library and on the device of the data
    overlapped  the name of what is read between two addresses, or None

    Raises DTypeError for what is no array or wants gradients, and ShapeError for an `out` of another shape, kind or
    device, that is not contiguous and writable, or that overlaps what is read.
    """
    if out is not None:
        _check(out, shape, data.device)
        low, high = extent(out)
        name = overlapped(low, high) if low < high else None
        if name is not None:
            raise ShapeError(f"out: it overlaps {name}; give memory of its own")
    elif data.device is not None:
        import torch

        out = torch.empty(shape, dtype=getattr(torch, dtype), device=data.device)
    else:
        out = np.empty(shape, data.bfloat16 if dtype == "bfloat16" else STORAGE[dtype])
    if backend == "triton":
        return out, tensor_of(out)
    if is_torch(out):
        return out, view_of_tensor(out)
    # NumPy would write the one field of BF16 to ml_dtypes.bfloat16 as an integer, not as bits
    return out, out.view(BF16) if dtype == "bfloat16" else out


def _grad_enabled() -> bool:
    """Torch's own rule for writing in place to a leaf that requires gradients, such as a layer's weight."""
    import torch

    return torch.is_grad_enabled()


def _check(out: Any, shape: tuple[int, ...], device: Any) -> None:
    if not is_torch(out) and not isinstance(out, np.ndarray):
        raise DTypeError(f"out: got {type(out).__name__}, expected a NumPy array or a torch tensor")
    check_plain("out", out)
    if is_torch(out) and out.requires_grad and _grad_enabled():
        raise DTypeError("out: requires gradients, which pass no kernel; pass out.detach()")
    if tuple(out.shape) != shape:
        raise ShapeError(f"out: got shape {tuple(out.shape)}, expected {shape}")
    if not (out.is_contiguous() if is_torch(out) else out.flags.c_contiguous and out.flags.writeable):
        raise ShapeError("out: expected a contiguous, writable array")
    if is_torch(out) != (device is not None) or (is_torch(out) and out.device != device):
        raise ShapeError("out: expected the same kind of array on the same device as the data")
