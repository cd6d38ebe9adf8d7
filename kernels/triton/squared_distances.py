"""Triton squared_distances: the strictly ordered sum of the definition, most of it in parallel.

A sum of terms t ≥ 0 only grows. While it stays in one binade [M, 2M), M a power of two, its unit in the last place is
u = M · 2⁻⁵², and adding t adds t rounded to a multiple of u, whatever the sum is: to the nearest one, unless t lies
halfway between two, where the sum's last bit decides. So inside a binade, without such a tie, the ordered sum is a sum
of integers, which has no order. Three passes:

1. The plain sums of all chunks of CHUNK columns, in any order. From their running sums M is guessed for each chunk.
2. For each chunk, the sum K of its terms rounded to that u, or NaN if there is a tie: (t + M) − M rounds so.
3. In column order: where the sum has the guessed M and sum + K < 2M, or K is 0, it becomes sum + K, which is exact and
   what adding one by one would have given. Otherwise the chunk is added one by one.

A guess decides about speed only. A sum of d terms of like size passes some log₂ d binades, and its c-th chunk holds a
tie with a probability near 1 / c, so a few tens of chunks are added one by one, out of d / CHUNK; where all are, the
time is that of a chain of d additions. Passes 1 and 2 read both rows of a pair.
"""

from __future__ import annotations

import numpy as np
import torch
import triton
import triton.language as tl

from fedcore.kernels.rows import DTYPES, address_table, check_device, load, on_device, pieces, row_pointer, widen

CHUNK = 4096
BLOCK = 1024
UNROLL = tl.constexpr(16)
#: limit of the memory for chunks of a batch of pairs, bytes, unless one pair needs more
PARTIALS = 192 << 20
OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}
ORDERED_OPTIONS = {"num_warps": 1, "enable_fp_fusion": False}
#: sign and fraction off: the power of two at or below a number
EXPONENT = 0x7FF0000000000000
#: largest second dimension of a launch
MOST_CHUNKS = 65535


@triton.jit
def _squares(left, right, columns, mask, FULL: tl.constexpr):
    """(x − y)² in fp64, a difference and a product; where FULL is off, 0 wherever `mask` is off."""
    x = widen(load(left + columns, mask, FULL)).to(tl.float64)
    difference = x - widen(load(right + columns, mask, FULL)).to(tl.float64)
    return difference * difference


@triton.jit(do_not_specialize=("d", "first"))
def _squared_distances_kernel(
    addresses,  # (n,) int64: rows of d elements of row_dtype
    pairs,  # (count, 2) int64 row numbers
    powers,  # (chunks, count) fp64: M of each chunk; None for plain sums
    sums,  # (chunks, count) fp64
    d,
    first,  # first chunk of this launch
    row_dtype: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
    ALIGNED: tl.constexpr,
    FULL: tl.constexpr,
):
    # pairs change fastest, so that programs that run together find their rows in the L2 cache
    pair, count = tl.program_id(0), tl.num_programs(0)
    chunk = (first + tl.program_id(1)).to(tl.int64)
    left = row_pointer(tl.load(addresses + tl.load(pairs + 2 * pair)), row_dtype, ALIGNED)
    right = row_pointer(tl.load(addresses + tl.load(pairs + 2 * pair + 1)), row_dtype, ALIGNED)
    total = tl.zeros([BLOCK], tl.float64)
    tied = tl.zeros([BLOCK], tl.int32)
    for start in tl.range(0, CHUNK, BLOCK):
        columns = chunk * CHUNK + start + tl.arange(0, BLOCK)
        term = _squares(left, right, columns, columns < d, FULL)
        if powers is not None:
            power = tl.load(powers + chunk * count + pair)
            rounded = (term + power) - power
            rest = tl.abs(term - rounded)  # exact
            tied = tied | ((rest != 0.0) & (rest == power * 2.0**-53)).to(tl.int32)
            term = rounded
        total += term
    result = tl.sum(total, axis=0)
    if powers is not None:
        result = tl.where(tl.max(tied, axis=0) != 0, float("nan"), result)
    tl.store(sums + chunk * count + pair, result)


@triton.jit(do_not_specialize=("d", "chunks"))
def _ordered_kernel(
    addresses,  # (n,) int64
    pairs,  # (count, 2) int64
    powers,  # (chunks, count) fp64
    sums,  # (chunks, count) fp64: the sums of rounded terms, NaN for a tie
    total,  # (count,) fp64, added to
    d,
    chunks,
    row_dtype: tl.constexpr,
    CHUNK: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    pair, count = tl.program_id(0), tl.num_programs(0)
    left = row_pointer(tl.load(addresses + tl.load(pairs + 2 * pair)), row_dtype, ALIGNED)
    right = row_pointer(tl.load(addresses + tl.load(pairs + 2 * pair + 1)), row_dtype, ALIGNED)
    value = tl.load(total + pair)
    slot = tl.full([], 0, tl.int64) + pair
    start = tl.full([], 0, tl.int64)
    for _ in range(chunks):
        power, step = tl.load(powers + slot), tl.load(sums + slot)
        reached = (value.to(tl.int64, bitcast=True) & EXPONENT_MASK).to(tl.float64, bitcast=True)
        known = (reached == power) & ((value + step < 2.0 * power) | (step == 0.0))
        if known:
            value += step
        elif tl.abs(value) < float("inf"):  # else it stays what it is, not finite
            end = tl.minimum(start + CHUNK, d)
            for column in tl.range(start, end, loop_unroll_factor=UNROLL):
                value += _squares(left, right, column, True, True)
        slot += count
        start += CHUNK
    tl.store(total + pair, value)


EXPONENT_MASK = tl.constexpr(EXPONENT)


def squared_distances(
    tensors: list[torch.Tensor], pairs: np.ndarray, threads: int = 1, total: torch.Tensor | None = None
) -> torch.Tensor:
    """‖x_i − x_j‖² for pairs of rows: (m,) fp64 on the rows' device; not finite where a row is not.

    tensors   n contiguous 1-D rows of d elements, one of fp32, fp16, bf16, one device
    pairs     (m, 2) int64 row numbers
    threads   has no meaning here
    total     (m,) fp64 on the rows' device, of the columns before: added to in place and returned

    The bits are those of fedcore/reference/squared_distances.py. Memory: PARTIALS bytes, or 24 · d / CHUNK if that is
    more. Raises BackendError if the rows lie where the kernel cannot run.
    """
    d, device, m = tensors[0].numel(), tensors[0].device, len(pairs)
    check_device("squared_distances", _squared_distances_kernel, device)
    if total is None:
        total = torch.zeros(m, dtype=torch.float64, device=device)
    chunks = triton.cdiv(d, CHUNK)
    batch = max(1, PARTIALS // (24 * max(chunks, 1)))
    with on_device(device):
        addresses, aligned = address_table(tensors)
        index = torch.tensor(pairs, dtype=torch.int64, device=device)
        for start in range(0, m if d else 0, batch):
            some, value = index[start : start + batch], total[start : start + batch]
            _add(addresses, some, value, d, chunks, {"row_dtype": DTYPES[tensors[0].dtype], "ALIGNED": aligned})
    return total


def _add(
    addresses: torch.Tensor, pairs: torch.Tensor, total: torch.Tensor, d: int, chunks: int, rows: dict[str, object]
) -> None:
    """Add the squared distances of `pairs` to `total`, which both are parts of a batch."""
    sums = torch.empty((chunks, len(pairs)), dtype=torch.float64, device=total.device)

    def sum_chunks(powers: torch.Tensor | None) -> None:
        for first, count, full in pieces(d, CHUNK):
            for start in range(first, first + count, MOST_CHUNKS):
                _squared_distances_kernel[(len(pairs), min(first + count - start, MOST_CHUNKS))](
                    addresses, pairs, powers, sums, d, start, CHUNK=CHUNK, BLOCK=BLOCK, FULL=full, **rows, **OPTIONS
                )

    sum_chunks(None)
    powers = _guessed_powers(sums, total)
    sum_chunks(powers)
    _ordered_kernel[(len(pairs),)](
        addresses, pairs, powers, sums, total, d, chunks, CHUNK=CHUNK, **rows, **ORDERED_OPTIONS
    )


def _guessed_powers(sums: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
    """M of each chunk (chunks, count) fp64, if the ordered sum is what the plain `sums` add up to; 0 for a sum of 0."""
    before = torch.cumsum(sums, dim=0) - sums + total
    return (before.view(torch.int64) & EXPONENT).view(torch.float64)
