"""Arrays and tensors of the caller, copied into one buffer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fedcore.dtypes import ROW_DTYPES, STORAGE, bf16_bits, name_of
from fedcore.errors import DTypeError, LayoutError
from fedcore.numbers import got, shown
from fedcore.ops.tensors import is_torch, memory_problem
from fedcore.updates.header import arrange
from fedcore.updates.layout import MOST_DIMENSIONS, Layout, name_problem


def names_values(value: Any) -> bool:
    """Whether dict(value) is taken by name: torch.nn.ParameterDict is no Mapping."""
    return hasattr(value, "keys") and hasattr(value, "__getitem__")


def gather(tensors: Mapping[str, Any]) -> tuple[Layout, np.ndarray, np.ndarray]:
    """Copy named arrays (NumPy, or torch on the CPU; any strides) into one uint8 buffer, laid out like a file.

    Returns the layout, the buffer and the byte offset of each tensor in it, in canonical order. Raises LayoutError,
    DTypeError or ShapeError (a tensor whose storage was freed), naming the tensor.
    """
    if not names_values(tensors):
        raise LayoutError(f"{got('tensors', tensors)}, expected a mapping of names to arrays, such as `update.tensors`")
    if not tensors:
        raise LayoutError("tensors: got none, expected at least one named tensor")
    arrays = {}
    for name, tensor in dict(tensors).items():
        if problem := name_problem(name):
            raise LayoutError(f"tensor {shown(name)}: {problem}")
        arrays[name] = _array(name, tensor)
    layout = Layout.from_entries((name, array.shape, name_of(array.dtype)) for name, array in arrays.items())
    _, offsets = arrange(layout)
    buffer = np.empty(int(layout.nbytes.sum()), np.uint8)
    for name, start, size, dtype in zip(layout.names, offsets, layout.nbytes, layout.dtypes, strict=True):
        array = arrays[name]
        # bits, so that a structured bf16 and an ml_dtypes one are copied alike
        bits, storage = (bf16_bits(array), np.dtype("<u2")) if dtype == "bfloat16" else (array, STORAGE[dtype])
        buffer[start : start + size].view(storage).reshape(array.shape)[...] = bits
    return layout, buffer, offsets


def _array(name: str, tensor: Any) -> np.ndarray:
    """One tensor as a NumPy array of a row dtype, its data shared where that is possible."""
    if is_torch(tensor):
        array = _from_torch(name, tensor)
    else:
        if isinstance(tensor, np.ma.MaskedArray):
            raise DTypeError(f"tensor {shown(name)}: is a masked array, which no update can hold; pass .filled(value)")
        array = np.asarray(tensor)
        if not array.dtype.isnative:
            array = array.astype(array.dtype.newbyteorder("="))
    try:
        dtype = name_of(array.dtype)
    except DTypeError:
        dtype = str(array.dtype)
    if dtype not in ROW_DTYPES:
        raise DTypeError(
            f"tensor {shown(name)}: got {dtype}, expected one of {', '.join(ROW_DTYPES)}; convert it first"
        )
    if array.ndim > MOST_DIMENSIONS:
        raise LayoutError(f"tensor {shown(name)}: has {array.ndim} dimensions, expected at most {MOST_DIMENSIONS}")
    return array


def _from_torch(name: str, tensor: Any) -> np.ndarray:
    import torch

    if tensor.device.type != "cpu":
        raise DTypeError(f"tensor {shown(name)}: lies on {tensor.device}, expected the CPU; call .cpu() first")
    if tensor.layout != torch.strided:
        raise DTypeError(f"tensor {shown(name)}: has layout {tensor.layout}, expected a dense tensor; call .to_dense()")
    if problem := memory_problem(tensor):
        raise problem[0](f"tensor {shown(name)}: {problem[1]}")
    tensor = (tensor.detach() if tensor.requires_grad else tensor).resolve_neg()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(STORAGE["bfloat16"])
    if tensor.dtype not in (torch.float32, torch.float16):
        raise DTypeError(
            f"tensor {shown(name)}: got {tensor.dtype}, expected one of {', '.join(ROW_DTYPES)}; convert it first"
        )
    return tensor.numpy()
