"""The public clip_noise_accumulate."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from fedcore.backends import implementation
from fedcore.errors import DTypeError, RangeError, ShapeError
from fedcore.ops.clip_round import checked_clip, row_scales
from fedcore.ops.outputs import output_dtype, output_for
from fedcore.ops.rows import Rows, as_rows, choose, thread_count
from fedcore.ops.tensors import check_plain, is_torch
from fedcore.ops.tiles import tiles_of
from fedcore.ops.weighted_sum import checked_divisor

#: sums and noise are below this in size
MOST = 1 << 50
#: columns whose noise is drawn at a time: it is used while it is in cache
TILE = 1 << 20


class ClippedSum(NamedTuple):
    """What clip_noise_accumulate gives. The norms are private: noise covers the sum alone."""

    sum: Any  #: (d,) in out_dtype, on the rows' device
    squared_norms: np.ndarray  #: (n,) fp64 before the clip; not finite where a row is not and counted as zeros


def clip_noise_accumulate(
    rows: Any,
    clip: float,
    grid: float | None = None,
    noise: Any = None,
    divisor: float | None = None,
    out: Any = None,
    out_dtype: Any = "float32",
    *,
    backend: str | None = None,
    threads: int | None = None,
) -> ClippedSum:
    """Rows clipped and rounded as clip_round does, summed with integer noise, times the grid: rounded once.

    rows      (n, d) array or tensor, a sequence of n 1-D arrays, or a RowTable; fp32, fp16 or bf16: changes and
              not models. Read twice, for norms and for the sum; nothing of their size is held.
    clip      the largest 2-norm of a row, from 2**-120 to 2**120
    grid      what one integer is worth, as in clip_round; None takes clip_grid(clip, d)
    noise     (d,) int64 in steps of the grid, each from −2**50 to 2**50 − 1; or a function (start, count) that gives
              those of columns start to start + count − 1, which is asked for stretches in order; None adds none
    divisor   one fp64 number, such as the fixed cohort of a mean; never a count that depends on the data
    out       (d,) array to write into, of any output dtype (then `out_dtype` is not used); must not overlap the rows
    out_dtype 'float32', 'float64', 'float16' or 'bfloat16'

    The integer sum of n rows differs from that of n − 1 of them by a vector of norm at most clip/grid, whatever the
    row holds: the sensitivity that noise is calibrated to. A row that is not finite counts as zeros. Sums of integers
    have no order: every backend, ISA and thread count gives the same bits (fedcore/reference/clip_noise_accumulate.py).
    Raises ShapeError, DTypeError, WeightError for the divisor, and RangeError for a clip, grid or noise out of range,
    so many rows that their sum could leave 2**50 steps, or a sum that `out_dtype` cannot hold.
    """
    data = as_rows(rows)
    clip, step = checked_clip(clip, grid, data.d)
    if data.n * clip / step > MOST:
        raise RangeError(f"grid: the sum of {data.n} rows of {clip / step:g} steps exceeds 2**50; use a coarser grid")
    if divisor is not None:
        divisor = checked_divisor(divisor)
    drawn = noise if callable(noise) else _checked_noise(noise, data.d, data)
    name = choose(data, backend)
    dtype = output_dtype(out, out_dtype)
    result, target = output_for(data, (data.d,), out, dtype, name, data.overlapped)
    squared, scales = row_scales(data, clip, step, backend, threads)
    work, count = implementation("clip_noise_accumulate", name), thread_count(threads)
    suspect = outside = False
    if name == "triton":
        if callable(drawn):
            drawn = _checked_noise(drawn(0, data.d), data.d, data)
        for columns, tensors in tiles_of(data):
            part = None if drawn is None else _tensor(drawn)[columns]
            suspect |= work(tensors, scales, step, part, divisor, target[columns], count)
    elif callable(drawn):
        assert data.table is not None
        for start in range(0, data.d, TILE):
            size = min(TILE, data.d - start)
            part = _checked_noise(drawn(start, size), size, data)
            tile = data.table.slice(start, start + size)
            if work(tile, scales, step, part, divisor, target[start : start + size], count):
                suspect, outside = True, outside or _outside(part)
    else:
        held = drawn.numpy() if is_torch(drawn) else drawn
        suspect = work(data.table, scales, step, held, divisor, target, count)
    if suspect:
        if outside or (drawn is not None and not callable(drawn) and _outside(drawn)):
            raise RangeError("noise: it leaves the range from -2**50 to 2**50 - 1; use a coarser grid")
        raise RangeError(f"clip_noise_accumulate: a finite sum does not fit {dtype}; ask for a wider out_dtype")
    return ClippedSum(result, squared)


def _outside(noise: Any) -> bool:
    return bool(((noise < -MOST) | (noise >= MOST)).any())


def _checked_noise(noise: Any, size: int, data: Rows) -> Any:
    """Noise as a contiguous (size,) int64 array, or a tensor on the rows' device. Raises by name."""
    if noise is None:
        return None
    if not isinstance(noise, np.ndarray) and not is_torch(noise):
        raise DTypeError(f"noise: got {type(noise).__name__}, expected an int64 array or tensor")
    check_plain("noise", noise)
    if str(noise.dtype).removeprefix("torch.") != "int64":
        raise DTypeError(f"noise: got {noise.dtype}, expected int64 steps of the grid")
    if tuple(noise.shape) != (size,):
        raise ShapeError(f"noise: got shape {tuple(noise.shape)}, expected ({size},), one integer for each column")
    if data.on_gpu and (not is_torch(noise) or noise.device != data.device):
        raise ShapeError(f"noise: expected a tensor on {data.device} like the rows; move it there")
    if is_torch(noise):
        if not data.on_gpu and noise.device.type != "cpu":
            raise ShapeError(f"noise: on {noise.device}, expected main memory like the rows; pass noise.cpu()")
        found = noise.contiguous()
        return found if found.data_ptr() % found.element_size() == 0 else found.clone()
    return np.require(noise, requirements=["C", "A"])


def _tensor(noise: Any) -> Any:
    if is_torch(noise):
        return noise
    import torch

    return torch.from_numpy(noise)
