"""Triton gram: tiles of rows against tiles of rows over chunks of columns, and the chunks' partials folded in order.

Products of RUN columns accumulate in fp32 with IEEE arithmetic (no tf32), those sums and chunks are folded in fp64 in
order, and nothing is added atomically: the same bits every time on one device. A row of a block whose largest
magnitude is outside [2⁻⁴⁰, 2⁴⁰] is scaled by a power of two first, which costs a second pass over that block only.
Pairs of tiles change fastest over programs, so a chunk's rows are read from memory once and then from the L2 cache.
Only pairs of tiles on and above the diagonal are formed.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from fedcore.kernels.fold import fold
from fedcore.kernels.rows import DTYPES, address_table, check_device, load, on_device, pieces, row_pointer, widen

# these fix the order of additions: the same numbers as in fedcore/reference/gram.py
BLOCK = 256
#: columns of one tl.dot
RUN = 32
CHUNK = 1 << 13
#: limit of the partials buffer, bytes
PARTIALS = 64 << 20
#: largest second dimension of a launch
MOST_CHUNKS = 65535


def tile_of(n: int) -> int:
    """Rows of a tile. A cohort of 16 or fewer would leave three quarters of a 32 × 32 tile empty."""
    return 16 if n <= 16 else 32


def options(tile: int) -> dict[str, object]:
    """Launch options: few warps, so that a thread holds 8 or 16 products of the tile and reuses its operands."""
    return {"num_warps": 1 if tile == 16 else 2, "enable_fp_fusion": False}


@triton.jit
def _power_of_two(exponent):
    """2^exponent in fp64 from its bits, exactly; exp2 is approximate on a GPU. exponent: int32 in [−1022, 1023]."""
    return ((exponent + 1023).to(tl.int64) << 52).to(tl.float64, bitcast=True)


@triton.jit
def _scale_exponent(largest):
    """The exponent to divide a row by: 0 inside [2⁻⁴⁰, 2⁴⁰] and for zero, else that of its largest magnitude (fp32).

    Clamped to ±126, so that 2^−exponent is a normal fp32 number; Inf, an overflowed difference, is clamped as well.
    """
    exponent = (largest.to(tl.int32, bitcast=True) >> 23) - 127
    exponent = tl.minimum(tl.maximum(exponent, -126), 126)
    inside = (largest >= 2.0**-40) & (largest <= 2.0**40)
    return tl.where(inside | (largest == 0), 0, exponent)


@triton.jit
def _centred(rows, center, columns, mask, exponent, FULL: tl.constexpr, SCALED: tl.constexpr):
    """(TILE, RUN) fp32: x − center with one rounding, divided by 2^exponent (TILE,) if SCALED."""
    x = widen(load(rows[:, None] + columns[None, :], mask[None, :], FULL))
    # dividing before the difference keeps a large one from overflowing; multiplying after it keeps a small one whole
    before = ((127 - tl.maximum(exponent, 0)) << 23).to(tl.float32, bitcast=True)[:, None]
    after = ((127 - tl.minimum(exponent, 0)) << 23).to(tl.float32, bitcast=True)[:, None]
    if SCALED:
        x *= before
    if center is not None:
        c = widen(load(center + columns, mask, FULL))[None, :]
        if SCALED:
            c *= before
        x -= c
    if SCALED:
        x *= after
    return x


@triton.jit
def _block_product(
    left, right, center, start, d, left_exponent, right_exponent,
    TILE: tl.constexpr, BLOCK: tl.constexpr, RUN: tl.constexpr, FULL: tl.constexpr, SCALED: tl.constexpr,
):  # fmt: skip
    """Inner products (TILE, TILE) fp64 over one block of columns, and the largest magnitudes (TILE,) of both sides."""
    product = tl.zeros([TILE, TILE], tl.float64)
    left_largest = tl.zeros([TILE, RUN], tl.float32)
    right_largest = tl.zeros([TILE, RUN], tl.float32)
    for k in tl.range(0, BLOCK, RUN):
        columns = start + k + tl.arange(0, RUN)
        mask = columns < d
        a = _centred(left, center, columns, mask, left_exponent, FULL, SCALED)
        b = _centred(right, center, columns, mask, right_exponent, FULL, SCALED)
        left_largest = tl.maximum(left_largest, tl.abs(a))
        right_largest = tl.maximum(right_largest, tl.abs(b))
        product += tl.dot(a, tl.trans(b), input_precision="ieee").to(tl.float64)
    return product, tl.max(left_largest, axis=1), tl.max(right_largest, axis=1)


@triton.jit(do_not_specialize=("n", "d", "first", "blocks"))
def _gram_kernel(
    addresses,  # (n,) int64: rows of d elements of row_dtype
    center,  # (d,) of any row dtype, or None
    pairs,  # (2, count) int32: tile numbers of the left and the right rows
    partials,  # (chunks, count, TILE, TILE) fp64
    n,
    d,
    first,  # first chunk of this launch
    blocks,  # blocks of a chunk
    row_dtype: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
    RUN: tl.constexpr,
    ALIGNED: tl.constexpr,
    FULL: tl.constexpr,
):
    pair, count, chunk = tl.program_id(0), tl.num_programs(0), tl.program_id(1)
    within = tl.arange(0, TILE)
    # rows past the last one repeat it; what they give is not used
    left = tl.minimum(tl.load(pairs + pair) * TILE + within, n - 1)
    right = tl.minimum(tl.load(pairs + count + pair) * TILE + within, n - 1)
    left_rows = row_pointer(tl.load(addresses + left), row_dtype, ALIGNED)
    right_rows = row_pointer(tl.load(addresses + right), row_dtype, ALIGNED)
    zero = tl.zeros([TILE], tl.int32)
    total = tl.zeros([TILE, TILE], tl.float64)
    for block in range(blocks):
        start = (first + chunk).to(tl.int64) * CHUNK + block * BLOCK
        product, left_largest, right_largest = _block_product(
            left_rows, right_rows, center, start, d, zero, zero, TILE, BLOCK, RUN, FULL, False
        )
        left_exponent = _scale_exponent(left_largest)
        right_exponent = _scale_exponent(right_largest)
        if tl.max(tl.maximum(tl.abs(left_exponent), tl.abs(right_exponent)), axis=0) > 0:
            product, left_largest, right_largest = _block_product(
                left_rows, right_rows, center, start, d, left_exponent, right_exponent, TILE, BLOCK, RUN, FULL, True
            )  # fmt: skip
        scale = _power_of_two(left_exponent)[:, None] * _power_of_two(right_exponent)[None, :]
        total += product * scale
    offset = (chunk.to(tl.int64) * count + pair) * TILE * TILE
    tl.store(partials + offset + within[:, None] * TILE + within[None, :], total)


def gram(
    tensors: list[torch.Tensor],
    center: torch.Tensor | None = None,
    threads: int = 1,
    total: torch.Tensor | None = None,
) -> torch.Tensor:
    """Inner products ⟨x_i − center, x_j − center⟩: (n, n) fp64, symmetric, on the rows' device.

    tensors   n contiguous 1-D rows of d elements, one of fp32, fp16, bf16, one device
    center    (d,) of any row dtype, or None for zero
    threads   has no meaning here
    total     (n, n) fp64 of other columns, which are added to; None is zero

    Error bound: fedcore/reference/gram.py. Row i is not finite on the diagonal if x_i is not. Memory beside the result:
    PARTIALS bytes, or 2 · n² · 8 if that is more. Raises BackendError if the rows lie where the kernel cannot run.
    """
    n, d, device = len(tensors), tensors[0].numel(), tensors[0].device
    check_device("gram", _gram_kernel, device)
    tile = tile_of(n)
    pairs = torch.triu_indices(triton.cdiv(n, tile), triton.cdiv(n, tile), dtype=torch.int32, device=device)
    count = pairs.shape[1]
    sums = torch.zeros(count * tile * tile, dtype=torch.float64, device=device)
    slots = min(max(PARTIALS // (8 * sums.numel()), 1), MOST_CHUNKS, max(triton.cdiv(d, CHUNK), 1))
    partials = torch.empty((slots, sums.numel()), dtype=torch.float64, device=device)
    with on_device(device):
        addresses, aligned = address_table(tensors)
        for first, chunks, full in pieces(d, CHUNK):
            blocks = triton.cdiv(min(d - first * CHUNK, CHUNK), BLOCK)
            for start in range(first, first + chunks, slots):
                used = min(slots, first + chunks - start)
                _gram_kernel[(count, used)](
                    addresses, center, pairs, partials, n, d, start, blocks,
                    row_dtype=DTYPES[tensors[0].dtype], TILE=tile, BLOCK=BLOCK, CHUNK=CHUNK, RUN=RUN,
                    ALIGNED=aligned, FULL=full, **options(tile),
                )  # fmt: skip
                fold(partials[:used], sums)
        found = assemble(sums.view(count, tile, tile), pairs.long(), n)
        return found if total is None else total + found


def assemble(tiles: torch.Tensor, pairs: torch.Tensor, n: int) -> torch.Tensor:
    """The (n, n) symmetric matrix of the tiles (count, tile, tile) on and above its diagonal."""
    tile, side = tiles.shape[1], int(pairs.max()) + 1
    grid = tiles.new_zeros((side, side, tile, tile))
    grid[pairs[0], pairs[1]] = tiles
    upper = grid.permute(0, 2, 1, 3).reshape(side * tile, side * tile)[:n, :n].triu()
    return upper + upper.triu(1).T
