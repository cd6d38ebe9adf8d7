"""Triton decode: a tile of columns of rows in any format, as fp32, which the other kernels then read.

The formats and the order of their operations are those of fedcore/quantized.py, so the bits are too. A tile is small
enough to stay in a GPU's second-level cache between the kernel that writes it and the one that reads it, so that the
rows travel from memory in the format that they lie in. A program takes one row and BLOCK columns; the formats of rows
may differ.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from fedcore.errors import ShapeError
from fedcore.kernels.rows import check_device, on_device, widen

BLOCK = 1024
#: numbers of formats, as in fedcore/encoding.py
FLOAT32, FLOAT16, BFLOAT16, INT8, NF4 = (tl.constexpr(code) for code in (0, 1, 2, 4, 5))
#: elements of a quantised block, blocks under one nested scale: as in fedcore/quantized.py
QUANTISED = tl.constexpr(64)
NESTED = tl.constexpr(256)
OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}


@triton.jit
def _elements(address, element, mask, dtype: tl.constexpr):
    """Elements of an array at an int64 address; 0 wherever `mask` is off."""
    return tl.load(address.to(tl.pointer_type(dtype)) + element, mask=mask, other=0)


@triton.jit
def _decode_kernel(
    addresses,  # (n,) int64: where the tensors begin
    scales,  # (3, n) int64: where their scale arrays begin
    formats,  # (n,) int32
    firsts,  # (n,) int64: element of each tensor that the first column is
    nf4_code,  # (16,) fp32
    dynamic_code,  # (256,) fp32
    out,  # (n, stride) fp32
    n,
    length,  # columns
    stride,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0)
    columns = tl.program_id(1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = columns < length
    element = tl.load(firsts + row) + columns
    block = element // QUANTISED
    address, format = tl.load(addresses + row), tl.load(formats + row)
    absmax = tl.load(scales + row)
    if format == NF4:
        pair = _elements(address, element // 2, mask, tl.uint8).to(tl.int32)
        code = tl.load(nf4_code + tl.where(element % 2 == 0, pair >> 4, pair & 15))
        inner = tl.load(dynamic_code + _elements(absmax, block, mask, tl.uint8).to(tl.int32))
        outer = _elements(tl.load(scales + n + row), block // NESTED, mask, tl.float32)
        offset = tl.load(tl.load(scales + 2 * n + row).to(tl.pointer_type(tl.float32)))
        value = code * (inner * outer + offset)
    elif format == INT8:
        largest = _elements(absmax, block, mask, tl.float32)
        # `/` would be an approximate division
        factor = tl.div_rn(largest, tl.full([BLOCK], 127.0, tl.float32))
        value = _elements(address, element, mask, tl.int8).to(tl.float32) * factor
    elif format == BFLOAT16:
        value = widen(_elements(address, element, mask, tl.bfloat16))
    elif format == FLOAT16:
        value = widen(_elements(address, element, mask, tl.float16))
    else:
        value = _elements(address, element, mask, tl.float32)
    tl.store(out + row.to(tl.int64) * stride + columns, value, mask=mask)


def decode(
    addresses: torch.Tensor,
    scales: torch.Tensor,
    formats: torch.Tensor,
    codes: tuple[torch.Tensor, torch.Tensor],
    firsts: torch.Tensor,
    out: torch.Tensor,
) -> None:
    """w elements of each of n tensors, from a first one on, into `out`, (n, w) fp32, whose rows may lie apart.

    addresses   (n,) int64: where each tensor begins
    scales      (3, n) int64: where its scale arrays begin, in the order of fedcore.quantized.SCALES
    formats     (n,) int32: numbers as in fedcore.encoding.FORMATS
    firsts      (n,) int64: the first element of each tensor
    codes       the NF4 code (16,) and the dynamic code (256,), fp32

    All on the device of `out`, where everything that the addresses lead to lies. Raises BackendError if the kernel
    cannot run there, ShapeError for an array of wider elements that a GPU could not read at its address.
    """
    n, length = out.shape
    check_device("decode", _decode_kernel, out.device)
    if out.device.type != "cpu":
        _check_aligned(addresses, scales, formats)
    if not length:
        return
    with on_device(out.device):
        _decode_kernel[(n, triton.cdiv(length, BLOCK))](
            addresses, scales, formats, firsts, *codes, out, n, length, out.stride(0), BLOCK=BLOCK, **OPTIONS
        )


def _check_aligned(addresses: torch.Tensor, scales: torch.Tensor, formats: torch.Tensor) -> None:
    """A GPU reads an element only at a multiple of its size."""
    itemsize = torch.tensor([4, 2, 2, 1, 1, 1], device=formats.device)[formats]
    wide = torch.stack((formats == INT8.value, formats == NF4.value, formats == NF4.value))
    bad = (addresses % itemsize != 0) | ((scales % 4 != 0) & wide).any(0)
    if bad.any():
        row = int(torch.nonzero(bad)[0])
        raise ShapeError(f"row {row}: an array of it does not begin at a multiple of its element size; copy the row")
