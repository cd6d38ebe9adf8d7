"""Triton mean_around_median: a window of the sorted columns of fedcore/kernels/order.py, added in ascending order."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from fedcore.kernels.order import element, order_statistic, sorted_in_registers, sorted_through_scratch, value_of, write

UNROLL = tl.constexpr(8)


@triton.jit(do_not_specialize=("d", "first"))
def _mean_around_median_kernel(
    addresses,  # (N,) int64: rows of d elements of row_dtype
    out,  # (d,) out_dtype; int16 bits where out_dtype is bf16
    suspect,  # (1,) int32: set to 1 if an element or an output is not finite
    d,
    first,  # first tile of this launch
    row_dtype: tl.constexpr,
    out_dtype: tl.constexpr,
    N: tl.constexpr,
    F: tl.constexpr,
    BLOCK: tl.constexpr,
    ALIGNED: tl.constexpr,
    FULL: tl.constexpr,
):
    columns = (first + tl.program_id(0)).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = columns < d
    keys, largest = sorted_in_registers(addresses, columns, mask, row_dtype, N, ALIGNED, FULL)
    middle = (value_of(keys[(N - 1) // 2], row_dtype) + value_of(keys[N // 2], row_dtype)) * 0.5
    FROM: tl.constexpr = max(0, (N - 1) // 2 + 1 - (N - F))
    start = tl.full([BLOCK], FROM, tl.int32)
    for s in tl.static_range(FROM, F):
        above = tl.abs(value_of(keys[s + N - F], row_dtype) - middle)
        start += (above < tl.abs(value_of(keys[s], row_dtype) - middle)).to(tl.int32)
    total = tl.zeros([BLOCK], tl.float64)
    for row in tl.static_range(N):
        kept = (row >= start) & (row < start + (N - F))
        total += tl.where(kept, value_of(keys[row], row_dtype), 0.0)
    value = total / tl.full([BLOCK], N - F, tl.float64)
    write(out, suspect, columns, mask, value, largest, row_dtype, out_dtype, FULL)


@triton.jit(do_not_specialize=("n", "f", "d", "count"), do_not_specialize_on_alignment=("scratch",))
def _mean_around_median_blocks_kernel(
    addresses,  # (n,) int64
    merges,  # (2, count) int32: what sorted_through_scratch merges
    scratch,  # (programs, rows, COLUMNS) int32, or int16 for rows of 16 bits; rows: n rounded up to whole blocks
    out,
    suspect,
    n,
    f,
    d,
    count,
    row_dtype: tl.constexpr,
    out_dtype: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    program, programs = tl.program_id(0), tl.num_programs(0)
    mine = scratch + program.to(tl.int64) * (tl.cdiv(n, ROWS) * ROWS * COLUMNS)
    columns = program.to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    for _ in range(tl.cdiv(tl.cdiv(d.to(tl.int64), COLUMNS) - program, programs)):
        mask = columns < d
        largest = sorted_through_scratch(addresses, merges, mine, columns, mask, n, count, row_dtype, ROWS)
        low = element(mine, (n - 1) // 2, COLUMNS, row_dtype)
        middle = (low + element(mine, n // 2, COLUMNS, row_dtype)) * 0.5
        reached = tl.maximum(0, (n - 1) // 2 + 1 - (n - f))  # see the definition
        start = tl.zeros([COLUMNS], tl.int32) + reached
        for s in tl.range(reached, f, loop_unroll_factor=UNROLL):
            above = tl.abs(element(mine, s + n - f, COLUMNS, row_dtype) - middle)
            start += (above < tl.abs(element(mine, s, COLUMNS, row_dtype) - middle)).to(tl.int32)
        total = tl.zeros([COLUMNS], tl.float64)
        for row in tl.range(0, n, loop_unroll_factor=UNROLL):
            kept = (row >= start) & (row < start + (n - f))
            total += tl.where(kept, element(mine, row, COLUMNS, row_dtype), 0.0)
        value = total / (n - f).to(tl.float64)
        write(out, suspect, columns, mask, value, largest, row_dtype, out_dtype, False)
        columns += programs * COLUMNS
        tl.debug_barrier()


def mean_around_median(tensors: list[torch.Tensor], f: int, out: torch.Tensor, threads: int = 1) -> bool:
    """Write the mean of the n − f elements closest to the median into `out` (d,); True if anything is not finite.

    tensors   n contiguous 1-D rows of d elements, one of fp32, fp16, bf16, one device
    f         how many are left out of each column; 0 ≤ f < n
    out       (d,) fp32, fp64, fp16 or bf16 on the rows' device
    threads   has no meaning here

    The bits are those of fedcore/reference/mean_around_median.py; where the answer is True, `out` is not defined. One
    variant is compiled for each n and f up to 32 rows, one for all above. Memory above 32 rows: the scratch buffer of
    fedcore/kernels/order.py. Raises BackendError if the rows lie where the kernel cannot run.
    """
    network, blocks = _mean_around_median_kernel, _mean_around_median_blocks_kernel
    return order_statistic("mean_around_median", network, blocks, tensors, out, f)
