"""Rows as torch tensors, and how results are compared, for the tests of the Triton kernels."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the Triton kernels take torch tensors")

from fedcore.dtypes import STORAGE, to_float64  # noqa: E402
from fedcore.ops.tensors import view_of_tensor  # noqa: E402
from fedcore.rowtable import RowTable  # noqa: E402

DTYPES = ("float32", "float16", "bfloat16")
OUT_DTYPES = ("float32", "float64", "float16", "bfloat16")


def make_rows(n: int, d: int, dtype: str, device: str, seed: int = 0, spread: float = 1.0) -> list:
    """n rows with magnitudes over several powers of ten, each between NaNs in its own buffer, on varied alignment."""
    rng = np.random.default_rng(seed)
    found = []
    for i in range(n):
        values = rng.normal(size=d) * 10.0 ** rng.uniform(-spread, spread, size=d)
        found.append(place(values, dtype, device, lead=(0, 16, 3)[i % 3] if seed % 2 else 16 * i))
    return found


def place(values, dtype: str, device: str, lead: int = 0):
    """A row with NaN before and after it, so that a read outside the row shows."""
    values = torch.as_tensor(values, dtype=torch.float64)
    buffer = torch.full((lead + len(values) + 9,), float("nan"), dtype=getattr(torch, dtype), device=device)
    row = buffer[lead : lead + len(values)]
    row.copy_(values)
    return row


def table(tensors) -> RowTable:
    return RowTable.from_arrays([view_of_tensor(t.cpu()) for t in tensors])


def check_bits(got, expected: np.ndarray) -> None:
    """Assert that a tensor holds the bits of an array."""
    found = view_of_tensor(got.cpu())
    same = np.frombuffer(found.tobytes(), np.uint8) == np.frombuffer(expected.tobytes(), np.uint8)
    assert same.all(), f"first differing element {np.flatnonzero(~same)[0] // found.itemsize}"


def check_kernel(kernel: Callable, definition: Callable, tensors, arguments: tuple, shape, out_dtype: str) -> bool:
    """Run kernel and definition into `out`; assert equal flags and, where nothing is wrong, bits; return the flag."""
    out = torch.full(shape, 77, dtype=getattr(torch, out_dtype), device=tensors[0].device)
    expected = np.empty(shape, STORAGE.get(out_dtype, out_dtype))
    flag = kernel(tensors, *arguments, out)
    held = [table([a]) if isinstance(a, torch.Tensor) else a for a in arguments]
    assert flag == definition(table(tensors), *held, expected)
    if not flag:
        check_bits(out, expected)
    return bool(flag)


def values(tensor) -> np.ndarray:
    """The elements as fp64."""
    return to_float64(view_of_tensor(tensor.cpu()))
