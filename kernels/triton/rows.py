"""What every launcher does with its rows: check where they lie, and make the table of addresses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
import triton
import triton.language as tl

from fedcore.errors import BackendError

DTYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16, torch.float64: tl.float64}
#: bytes of one vectorised load
VECTOR = 16


def check_device(op: str, kernel: object, device: torch.device) -> None:
    """Raise BackendError where the kernel, compiled or interpreted, cannot reach rows on `device`."""
    compiled = isinstance(kernel, triton.JITFunction)
    if compiled and device.type == "cpu":
        raise BackendError(
            f"{op}: the rows are on the CPU, where Triton only runs interpreted; set TRITON_INTERPRET=1 before "
            "triton is imported, or use backend 'c'"
        )
    if not compiled and device.type != "cpu":
        raise BackendError(
            f"{op}: the rows are on {device}, but TRITON_INTERPRET was set when triton was imported; unset it and "
            "start again"
        )


def on_device(device: torch.device) -> AbstractContextManager:
    """Make a GPU the current one, since Triton launches there; nothing to do on a CPU."""
    return nullcontext() if device.type == "cpu" else torch.cuda.device(device)


def address_table(tensors: Sequence[torch.Tensor]) -> tuple[torch.Tensor, bool]:
    """(n,) int64 addresses on the rows' device, and whether all of them allow vectorised loads."""
    addresses = [tensor.data_ptr() for tensor in tensors]
    table = torch.tensor(addresses, dtype=torch.int64, device=tensors[0].device)
    return table, all(address % VECTOR == 0 for address in addresses)


def pieces(d: int, tile: int) -> Iterator[tuple[int, int, bool]]:
    """(first tile, tiles, full): the tiles that lie wholly inside d columns, then the one that d cuts, if there is one.

    Two launches, so that full tiles need no mask: a mask whose end is not a multiple of 16 would turn every 16-byte
    load of the row into single ones.
    """
    full, rest = divmod(d, tile)
    if full:
        yield 0, full, True
    if rest:
        yield full, 1, False


@triton.jit
def row_pointer(address, row_dtype: tl.constexpr, ALIGNED: tl.constexpr):
    """Pointers to rows of row_dtype from int64 addresses; ALIGNED promises that each is a multiple of 16."""
    pointer = address.to(tl.pointer_type(row_dtype))
    if ALIGNED:
        pointer = tl.multiple_of(pointer, 16)
    return pointer


@triton.jit
def load(pointers, mask, FULL: tl.constexpr):
    """Elements at `pointers`; where FULL is off, 0 wherever `mask` is off."""
    if FULL:
        return tl.load(pointers)
    return tl.load(pointers, mask=mask, other=0.0)


@triton.jit
def store(pointers, values, mask, FULL: tl.constexpr):
    """Write `values`; where FULL is off, only where `mask` is on."""
    if FULL:
        tl.store(pointers, values)
    else:
        tl.store(pointers, values, mask=mask)


@triton.jit
def widen(x):
    """fp32 elements of fp32, fp16 or bf16 ones, exactly: bf16 by its bits, since the interpreter flushes subnormals."""
    if x.dtype == tl.bfloat16:
        wide = (x.to(tl.int16, bitcast=True).to(tl.int32) << 16).to(tl.float32, bitcast=True)
    else:
        wide = x.to(tl.float32)
    return wide
