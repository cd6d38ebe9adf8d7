"""Triton lora_blocks: tiles of terms against tiles of terms over chunks of elements, partials folded in order.

A term is a column of some B or a row of some A; a table says where it begins and how far apart its elements lie, so
factors of any rank are read in place. Products are exact in fp64 and added there by tl.dot, in the hardware's order
inside a chunk of CHUNK elements; chunks are folded in order and nothing is added atomically: the same bits every time
on one device, within the bound of fedcore/reference/lora_blocks.py. Where the compiler uses fp64 matrix instructions
(DMMA, MFMA) those are IEEE fused multiply-adds. Only pairs of tiles on and above the diagonal are formed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import triton
import triton.language as tl

from fedcore.kernels.fold import fold
from fedcore.kernels.gram import assemble
from fedcore.kernels.rows import DTYPES, check_device, on_device, row_pointer

#: the same number as in fedcore/reference/lora_blocks.py
CHUNK = 1024
#: terms of a tile, and elements of one tl.dot
TILE, DEPTH = 32, 16
OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}


@triton.jit
def _elements(addresses, strides, first, terms, elements, mask, row_dtype: tl.constexpr, TILE: tl.constexpr):
    """(TILE, DEPTH) fp64 elements of terms `first` and after; terms past the last repeat it and are not used."""
    term = tl.minimum(first + tl.arange(0, TILE), terms - 1)
    rows = row_pointer(tl.load(addresses + term), row_dtype, False)
    x = tl.load(rows[:, None] + elements[None, :] * tl.load(strides + term)[:, None], mask=mask[None, :], other=0.0)
    return x.to(tl.float64)


@triton.jit(do_not_specialize=("terms", "d"))
def _lora_blocks_kernel(
    addresses,  # (terms,) int64: where each term begins
    strides,  # (terms,) int64: elements from one of its elements to the next
    pairs,  # (2, count) int32: tile numbers of the left and the right terms
    partials,  # (chunks, count, TILE, TILE) fp64
    terms,
    d,
    row_dtype: tl.constexpr,
    CHUNK: tl.constexpr,
    TILE: tl.constexpr,
    DEPTH: tl.constexpr,
):
    pair, count, chunk = tl.program_id(0), tl.num_programs(0), tl.program_id(1)
    left, right = tl.load(pairs + pair) * TILE, tl.load(pairs + count + pair) * TILE
    total = tl.zeros([TILE, TILE], tl.float64)
    for k in tl.range(0, CHUNK, DEPTH):
        elements = chunk.to(tl.int64) * CHUNK + k + tl.arange(0, DEPTH)
        x = _elements(addresses, strides, left, terms, elements, elements < d, row_dtype, TILE)
        y = _elements(addresses, strides, right, terms, elements, elements < d, row_dtype, TILE)
        total = tl.dot(x, tl.trans(y), total, input_precision="ieee", out_dtype=tl.float64)
    within = tl.arange(0, TILE)
    offset = (chunk.to(tl.int64) * count + pair) * TILE * TILE
    tl.store(partials + offset + within[:, None] * TILE + within[None, :], total)


def blocks(factors: tuple[Sequence[torch.Tensor], Sequence[torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
    """(G_B, G_A) of n of B (d_out, r_i) and n of A (r_i, d_in): (R, R) fp64 on their device.

    A side with a factor of fp64 is widened to fp64 first, any other to fp32: Triton 3.7 fails to compile fp64 products
    of 16-bit elements for NVIDIA. Raises BackendError if they lie where the kernel cannot run.
    """
    b, a = factors
    check_device("lora_blocks", _lora_blocks_kernel, b[0].device)
    ranks = np.array([len(x) for x in a], np.int64)
    within = np.concatenate([np.arange(r) for r in ranks]).astype(np.int64)
    d_out, d_in = b[0].shape[0], a[0].shape[1]
    with on_device(b[0].device):
        return (
            _gram(b, ranks, within, np.repeat(ranks, ranks), d_out),
            _gram(a, ranks, within * d_in, np.ones(len(within), np.int64), d_in),
        )


def _gram(
    side: Sequence[torch.Tensor], ranks: np.ndarray, offsets: np.ndarray, strides: np.ndarray, d: int
) -> torch.Tensor:
    """Inner products of terms that begin `offsets` elements into their factor, `strides` apart: (R, R) fp64."""
    wide = torch.float64 if any(x.dtype == torch.float64 for x in side) else torch.float32
    side = [x.to(wide) for x in side]
    device, terms = side[0].device, len(offsets)
    if not terms:
        return torch.zeros((0, 0), dtype=torch.float64, device=device)
    addresses = np.repeat(np.array([x.data_ptr() for x in side], np.int64), ranks) + offsets * side[0].element_size()
    tiles = triton.cdiv(terms, TILE)
    pairs = torch.triu_indices(tiles, tiles, dtype=torch.int32, device=device)
    count, chunks = pairs.shape[1], max(triton.cdiv(d, CHUNK), 1)
    partials = torch.empty((chunks, count * TILE * TILE), dtype=torch.float64, device=device)
    sums = torch.zeros(count * TILE * TILE, dtype=torch.float64, device=device)
    tables = [torch.from_numpy(np.ascontiguousarray(table)).to(device) for table in (addresses, strides)]
    _lora_blocks_kernel[(count, chunks)](
        *tables, pairs, partials, terms, d, row_dtype=DTYPES[side[0].dtype], CHUNK=CHUNK, TILE=TILE, DEPTH=DEPTH,
        **OPTIONS,
    )  # fmt: skip
    fold(partials, sums)
    return assemble(sums.view(count, TILE, TILE), pairs.long(), terms)


def lora_blocks(
    factors: tuple[Sequence[torch.Tensor], Sequence[torch.Tensor]], threads: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """As `blocks`, in NumPy; threads has no meaning here."""
    gram_b, gram_a = blocks(factors)
    return gram_b.cpu().numpy(), gram_a.cpu().numpy()
