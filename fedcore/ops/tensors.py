"""Torch tensors beside NumPy arrays, seen by the other without copying; torch is imported only where one is at hand."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from fedcore.dtypes import BF16, name_of
from fedcore.errors import DTypeError, ShapeError


def is_torch(value: object) -> bool:
    """Whether a value is a torch tensor, without importing torch."""
    return type(value).__module__.partition(".")[0] == "torch" and hasattr(value, "data_ptr")


def check_plain(what: str, value: Any) -> None:
    """Refuse an array or a tensor whose memory no kernel reads for what it holds; any other value passes.

    Raises DTypeError for a masked array and for a sparse, nested or lazily negated tensor, and ShapeError for a tensor
    on a device that no backend reads.
    """
    if isinstance(value, np.ma.MaskedArray):
        raise DTypeError(f"{what}: got a masked array, whose masked elements no op leaves out; pass .filled(value)")
    if not is_torch(value):
        return
    if value.device.type not in ("cpu", "cuda"):
        raise ShapeError(f"{what}: on {value.device}, expected main memory or a GPU that torch calls cuda; move it")
    if str(value.layout) != "torch.strided" or value.is_nested or value.is_neg() or value.is_conj():
        raise DTypeError(f"{what}: a sparse, nested or lazily negated tensor, expected a plain one; pass a dense clone")


def check_reach(what: str, device: Any, backend: str) -> None:
    """Raise ShapeError for data on a GPU where the backend is not the one that reads it there."""
    if backend != "triton":
        raise ShapeError(f"{what}: on {device}, which backend {backend!r} cannot read; use 'triton' or .cpu()")


def view_of_tensor(tensor: Any) -> np.ndarray:
    """A NumPy view of a CPU tensor; bf16 becomes BF16."""
    import torch

    tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(BF16)
    return tensor.numpy()


def tensor_of(array: Any) -> Any:
    """A torch tensor of a NumPy array, or the tensor that it is; a view."""
    if is_torch(array):
        return array
    import torch

    with warnings.catch_warnings():  # torch warns of read-only memory; what is only read may be
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        if name_of(array.dtype) == "bfloat16":
            return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(array)


def extent(array: Any) -> tuple[int, int]:
    """(address of the first byte, address after the last) of a contiguous array or tensor."""
    if is_torch(array):
        return array.data_ptr(), array.data_ptr() + array.numel() * array.element_size()
    return array.ctypes.data, array.ctypes.data + array.nbytes
