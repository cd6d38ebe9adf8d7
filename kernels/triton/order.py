"""Sorted columns for the order statistics: in registers up to NETWORK_MOST rows, through a scratch buffer above.

Every column belongs to one lane, so a sum in ascending order is a plain loop. Elements are compared as integer keys
(see fedcore/reference/order.py), held as int32 for every row dtype. A comparison is one min and one max, of which an
H200 does 64 a cycle and multiprocessor, 15 · 10¹² a second; it copies 4.3 · 10¹² bytes a second, counting both ways.

Up to 32 rows: Batcher's odd-even merge sort for exactly n rows, a register a row and column; the compiler drops the
exchanges that no used output depends on. A median of 32 rows is 800 integer operations for two columns, 27 ps a
column, beside 31 ps for its 132 bytes. One variant is compiled for each n, in about a second.

Above: blocks of 64 rows are sorted as a (64, COLUMNS) tile by a bitonic network, whose axes lie in registers, and
written to the program's slice of a scratch buffer. A sorting network on blocks then sorts the column, each exchange of
two blocks replaced by a merge that leaves the lower half in the first (Knuth, The Art of Computer Programming 3,
5.3.4): memory is read in whole lines whatever the data, where a merge by comparing heads would scatter its reads. 1024
rows are 63 merges of 896 min and max after 16 sorts of 1344, 5 ns a column; a bisection over the 32 bits of a key
needs as many comparisons and gives no order. One variant serves every n, and is compiled in about three seconds.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import triton
import triton.language as tl

from fedcore.kernels.rounding import round_once, unsigned_zero
from fedcore.kernels.rows import DTYPES, address_table, check_device, load, on_device, pieces, row_pointer, store, widen

#: most rows that are sorted in registers alone
NETWORK_MOST = 32
NETWORK_OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}
#: rows of a block and columns of a program above that
ROWS = 64
COLUMNS = 128
#: limit of the scratch buffer, bytes, unless one program needs more
SCRATCH = 256 << 20
#: programs that fit a multiprocessor by their registers; a CPU gets so few that each takes several tiles
RESIDENT = 3
ON_CPU = 2


@triton.constexpr_function
def exchange_layers(n):
    """Batcher's odd-even merge sort of n as layers: layer[i] is what i is exchanged with, i itself if with nothing.

    Of two partners the lower takes the smaller value (Knuth 3, 5.2.2, algorithm M).
    """
    layers = []
    run = 1
    while run < n:
        step = run
        while step >= 1:
            layer = list(range(n))
            for start in range(step % run, n - step, 2 * step):
                for low in range(start, min(start + step, n - step)):
                    if low // (2 * run) == (low + step) // (2 * run):
                        layer[low], layer[low + step] = low + step, low
            layers.append(tuple(layer))
            step //= 2
        run *= 2
    return tuple(layers)


@triton.constexpr_function
def halvings(size):
    """How often a power of two can be halved."""
    return size.bit_length() - 1


@triton.constexpr_function
def bits_of(row_dtype):
    """(integer dtype of the same width, mask of the magnitude bits, bits of infinity)."""
    if row_dtype == tl.float32:
        return tl.int32, 0x7FFFFFFF, 0x7F800000
    return tl.int16, 0x7FFF, 0x7C00 if row_dtype == tl.float16 else 0x7F80


@triton.jit
def _flip(bits, MAGNITUDE: tl.constexpr):
    """int32 bits, sign-extended, to keys, and keys to bits."""
    return bits ^ ((bits >> 31) & MAGNITUDE)


@triton.jit
def value_of(keys, row_dtype: tl.constexpr):
    """The elements of int32 `keys`, as fp64."""
    form: tl.constexpr = bits_of(row_dtype)
    bits = _flip(keys, form[1])
    if row_dtype == tl.float32:
        value = bits.to(tl.float32, bitcast=True)
    else:
        value = widen(bits.to(tl.int16).to(row_dtype, bitcast=True))
    return value.to(tl.float64)


@triton.jit
def write(out, suspect, columns, mask, value, largest, row_dtype: tl.constexpr, out_dtype: tl.constexpr,
          FULL: tl.constexpr):  # fmt: skip
    """Round `value` fp64 once into `out`; set `suspect` if it, or the largest magnitude read, is not finite."""
    form: tl.constexpr = bits_of(row_dtype)
    rounded, finite = round_once(value, out_dtype)
    store(out + columns, unsigned_zero(rounded), mask, FULL)
    bad = (finite == 0) | (largest >= form[2])
    # every program that writes here writes the same 1
    tl.store(suspect, 1, mask=tl.max(bad.to(tl.int32), axis=0) != 0)


@triton.jit
def _exchanged(keys, N: tl.constexpr, LAYER: tl.constexpr):
    layers: tl.constexpr = exchange_layers(N)
    found = ()
    for i in tl.static_range(N):
        if layers[LAYER][i] > i:
            found += (tl.minimum(keys[i], keys[layers[LAYER][i]]),)
        elif layers[LAYER][i] < i:
            found += (tl.maximum(keys[i], keys[layers[LAYER][i]]),)
        else:
            found += (keys[i],)
    return found


@triton.jit
def sorted_in_registers(addresses, columns, mask, row_dtype: tl.constexpr, N: tl.constexpr, ALIGNED: tl.constexpr,
                        FULL: tl.constexpr):  # fmt: skip
    """(keys, largest): N tensors of keys, ascending in each column, and the largest magnitude bits of each column."""
    form: tl.constexpr = bits_of(row_dtype)
    layers: tl.constexpr = exchange_layers(N)
    largest = tl.zeros(columns.shape, tl.int32)
    keys = ()
    for i in tl.static_range(N):
        bits = load(row_pointer(tl.load(addresses + i), form[0], ALIGNED) + columns, mask, FULL).to(tl.int32)
        largest = tl.maximum(largest, bits & form[1])
        keys += (_flip(bits, form[1]),)
    for layer in tl.static_range(len(layers)):
        keys = _exchanged(keys, N, layer)
    return keys, largest


@triton.jit
def _halved(keys, SIZE: tl.constexpr, HALF: tl.constexpr):
    """(rows, columns): row i exchanged with row i + HALF inside each 2 · HALF rows, up and down in turn of SIZE · 2."""
    TURNS: tl.constexpr = 2 if keys.shape[0] > 2 * SIZE else 1
    RUNS: tl.constexpr = keys.shape[0] // (2 * SIZE)
    pairs = tl.reshape(keys, [RUNS, SIZE // HALF, 2, HALF, keys.shape[1]])
    low = tl.min(pairs, axis=2, keep_dims=True)
    high = tl.max(pairs, axis=2, keep_dims=True)
    down = (tl.arange(0, RUNS) % TURNS)[:, None, None, None, None]
    side = tl.arange(0, 2)[None, None, :, None, None]
    return tl.reshape(tl.where(side == down, low, high), keys.shape)


@triton.jit
def _merged(keys, SIZE: tl.constexpr):
    """(rows, columns) of bitonic runs of 2 · SIZE rows: each run sorted, up and down in turn, a single one up."""
    for halving in tl.static_range(halvings(SIZE) + 1):
        keys = _halved(keys, SIZE, SIZE >> halving)
    return keys


@triton.jit
def sorted_through_scratch(addresses, merges, scratch, columns, mask, n, count, row_dtype: tl.constexpr,
                           ROWS: tl.constexpr):  # fmt: skip
    """Sort the rows' `columns` into `scratch` (blocks · ROWS, COLUMNS), keys ascending; return the largest magnitudes.

    merges   (2, count) int32: the blocks that are merged, in order
    scratch  of unknown alignment, so that a lane gets one column of a tile and all of its rows: loads of 16 bytes would
             spread the rows over lanes
    """
    form: tl.constexpr = bits_of(row_dtype)
    COLUMNS: tl.constexpr = columns.shape[0]
    within = tl.arange(0, COLUMNS)[None, :]
    row = tl.arange(0, ROWS)
    largest = tl.zeros([COLUMNS], tl.int32)
    for start in range(0, n, ROWS):
        real = start + row < n
        address = tl.load(addresses + start + row, mask=real, other=0)
        rows = row_pointer(address, form[0], False)
        bits = tl.load(rows[:, None] + columns[None, :], mask=real[:, None] & mask[None, :], other=0).to(tl.int32)
        largest = tl.maximum(largest, tl.max(bits & form[1], axis=0))
        # what is past the last row sorts past every element
        keys = tl.where(real[:, None], _flip(bits, form[1]), form[1])
        for doubling in tl.static_range(halvings(ROWS)):
            keys = _merged(keys, 1 << doubling)
        tl.store(scratch + (start + row)[:, None] * COLUMNS + within, keys.to(form[0]))
    both = tl.arange(0, 2 * ROWS)
    for merge in range(count):
        tl.debug_barrier()  # a lane reads its own columns only, but where lanes outnumber columns one of them writes
        first = tl.load(merges + merge) * ROWS
        second = tl.load(merges + count + merge) * ROWS
        # one block up and the other down are a bitonic run
        bitonic = tl.where(both < ROWS, first + both, second + 2 * ROWS - 1 - both)
        keys = _merged(tl.load(scratch + bitonic[:, None] * COLUMNS + within).to(tl.int32), ROWS)
        ascending = tl.where(both < ROWS, first + both, second - ROWS + both)
        tl.store(scratch + ascending[:, None] * COLUMNS + within, keys.to(form[0]))
    tl.debug_barrier()
    return largest


@triton.jit
def element(scratch, row, COLUMNS: tl.constexpr, row_dtype: tl.constexpr):
    """Row `row` of the sorted columns in `scratch`, as fp64."""
    return value_of(tl.load(scratch + row * COLUMNS + tl.arange(0, COLUMNS)).to(tl.int32), row_dtype)


@functools.lru_cache(maxsize=64)
def block_merges(blocks: int) -> torch.Tensor:
    """(2, count) int32: a sorting network on blocks, lower block first, in an order that it can run in."""
    pairs = [(i, j) for layer in exchange_layers(blocks) for i, j in enumerate(layer) if i < j]
    return torch.tensor(pairs, dtype=torch.int32).reshape(-1, 2).T.contiguous()


def block_options(lanes: int) -> dict[str, object]:
    """Launch options above NETWORK_MOST rows: a lane a column. `lanes` of a warp, 32, or of an AMD wave, 64."""
    return {"num_warps": COLUMNS // lanes, "enable_fp_fusion": False}


def columns_of(n: int, itemsize: int) -> int:
    """Columns of a program in registers: 16 bytes of a row a lane, while that is no more than 64 keys."""
    return 128 * min(16 // itemsize, max(64 // triton.next_power_of_2(n), 2))


def order_statistic(
    op: str, network: Callable, blocks: Callable, tensors: list[torch.Tensor], out: torch.Tensor, f: int | None
) -> bool:
    """Launch `network` or `blocks` over all columns; True if an element or an output is not finite.

    network   kernel (addresses, out, suspect, d, first, row_dtype, out_dtype, N, BLOCK, ALIGNED, FULL), and F with f
    blocks    kernel (addresses, merges, scratch, out, suspect, n, d, count, row_dtype, out_dtype, ROWS, COLUMNS), and f
              after n
    """
    n, d, device = len(tensors), out.numel(), out.device
    check_device(op, network, device)
    row_dtype, itemsize = DTYPES[tensors[0].dtype], tensors[0].element_size()
    dtypes = {"row_dtype": row_dtype, "out_dtype": DTYPES[out.dtype]}
    with on_device(device):
        addresses, aligned = address_table(tensors)
        suspect = torch.zeros(1, dtype=torch.int32, device=device)
        target = out.view(torch.int16) if out.dtype == torch.bfloat16 else out
        if n <= NETWORK_MOST:
            size = columns_of(n, itemsize)
            drop = {} if f is None else {"F": f}
            for first, tiles, full in pieces(d, size):
                network[(tiles,)](
                    addresses, target, suspect, d, first, **dtypes, **drop, N=n, BLOCK=size, ALIGNED=aligned, FULL=full,
                    **NETWORK_OPTIONS,
                )  # fmt: skip
        elif d:
            rows = triton.cdiv(n, ROWS) * ROWS
            merges = block_merges(rows // ROWS).to(device)
            programs = _programs(device, triton.cdiv(d, COLUMNS), rows * COLUMNS * itemsize)
            scratch = torch.empty(programs * rows * COLUMNS, dtype=SCRATCH_DTYPES[itemsize], device=device)
            counts = (n,) if f is None else (n, f)
            blocks[(programs,)](
                addresses, merges, scratch, target, suspect, *counts, d, merges.shape[1], **dtypes, ROWS=ROWS,
                COLUMNS=COLUMNS, **block_options(64 if torch.version.hip else 32),
            )  # fmt: skip
    return bool(suspect.item())


SCRATCH_DTYPES = {4: torch.int32, 2: torch.int16}


def _programs(device: torch.device, tiles: int, size: int) -> int:
    """How many programs share `tiles`, with a scratch of `size` bytes each."""
    if device.type == "cpu":
        resident = ON_CPU
    else:
        resident = RESIDENT * torch.cuda.get_device_properties(device).multi_processor_count
    return max(1, min(tiles, resident, SCRATCH // size))
