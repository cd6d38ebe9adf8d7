"""Torch tensors beside NumPy arrays, seen by the other without copying; torch is imported only where one is at hand."""

from __future__ import annotations

import sys
import warnings
from typing import Any

import numpy as np

from fedcore.dtypes import BF16, name_of
from fedcore.errors import DTypeError, FedcoreError, ShapeError


def is_torch(value: object) -> bool:
    """Whether a value is a torch tensor, of the plain class or one made from it, without importing torch."""
    # the attribute first: of most others that tells sooner than a look at the classes that torch calls tensors
    return hasattr(value, "data_ptr") and isinstance(value, getattr(sys.modules.get("torch"), "Tensor", ()))


def check_plain(what: str, value: Any) -> None:
    """Refuse an array or a tensor whose memory no kernel reads for what it holds; any other value passes.

    Raises DTypeError for a masked array and for a sparse, nested or lazily negated tensor, ShapeError for a tensor on a
    device that no backend reads, and as `memory_problem` says.
    """
    if isinstance(value, np.ma.MaskedArray):
        raise DTypeError(f"{what}: got a masked array, whose masked elements no op leaves out; pass .filled(value)")
    if not is_torch(value):
        return
    if not (value.is_cpu or value.is_cuda):
        raise ShapeError(f"{what}: on {value.device}, expected main memory or a GPU that torch calls cuda; move it")
    if str(value.layout) != "torch.strided" or value.is_nested or value.is_neg() or value.is_conj():
        raise DTypeError(f"{what}: a sparse, nested or lazily negated tensor, expected a plain one; pass a dense clone")
    if problem := memory_problem(value):
        raise problem[0](f"{what}: {problem[1]}")


def memory_problem(tensor: Any) -> tuple[type[FedcoreError], str] | None:
    """Why the elements of a strided tensor do not lie in its storage, and the error that it is; None where they do.

    DTypeError for a class that holds them elsewhere, such as DTensor, and for what torch.vmap or torch.func puts in
    place of a tensor, and ShapeError where the storage was freed or cut, as FSDP does between uses.
    """
    kind, plain = type(tensor), sys.modules["torch"].Tensor
    if kind is not plain and kind.__torch_dispatch__ is not plain.__torch_dispatch__:
        remedy = ".full_tensor()" if hasattr(tensor, "full_tensor") else "a plain tensor"
        return DTypeError, f"got {kind.__name__}, whose elements lie in no memory of its own; pass {remedy}"
    try:
        held = tensor.untyped_storage().nbytes() if tensor.data_ptr() else 0
    except RuntimeError:
        return DTypeError, "a tensor inside torch.vmap or torch.func has no memory; call it outside"
    needed = tensor.nbytes
    if needed and not tensor.is_contiguous():
        last = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
        needed = (last + 1) * tensor.itemsize
    if needed and (before := tensor.storage_offset()):
        needed += before * tensor.itemsize
    if held >= needed:
        return None
    freed = "it was freed, as FSDP does between uses; gather it first"
    return ShapeError, f"its storage has {held} bytes, expected {needed}: {freed}"


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
