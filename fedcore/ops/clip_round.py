"""The public clip_round, and the grid that clipped rows are rounded to."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from fedcore.backends import implementation
from fedcore.errors import RangeError, ShapeError
from fedcore.numbers import got
from fedcore.ops.host_numbers import host_number
from fedcore.ops.rows import Rows, as_rows, choose, thread_count
from fedcore.ops.squared_norms import run_statistic
from fedcore.ops.tensors import is_torch
from fedcore.ops.tiles import tiles_of
from fedcore.reference.clip_round import clip_scales
from fedcore.rowtable import RowTable

#: a clip's bounds, and the most grid steps in it: integers then fit int32 and every product is exact in fp64
LEAST_CLIP, LARGEST_CLIP, MOST_STEPS = 2.0**-120, 2.0**120, 2.0**30
MOST_COLUMNS = 1 << 40


class Clipped(NamedTuple):
    """What clip_round gives: row ≈ integers · grid, with grid² · squared_norm ≤ clip²."""

    integers: Any  #: (d,) int32, on the row's device
    grid: float  #: a power of two
    squared_norm: int  #: Σ integers², exact
    finite: bool  #: False: the row held NaN or Inf and counts as zeros


def clip_round(
    row: Any, clip: float, grid: float | None = None, *, backend: str | None = None, threads: int | None = None
) -> Clipped:
    """A row scaled so that its norm after rounding to a grid is at most `clip`, which is proven, as integers.

    row      (d,) array or tensor of fp32, fp16 or bf16, or a RowTable of one row: a change, not a model
    clip     the largest 2-norm, from 2**-120 to 2**120
    grid     what one integer is worth: a power of two, at most 0.02 · clip/√d and at least clip/2**30; None takes
             clip_grid(clip, d). At this grid a row is at most 1 % shorter than one clipped without rounding.

    A row that is not finite gives zeros and `finite` False, so that a sum does not show its presence; the zero row
    gives zeros. The proof of the bound stands in fedcore/reference/clip_round.py; the integers are checked against it
    again here. The same on every backend, ISA and thread count.
    Raises ShapeError, DTypeError, and RangeError for a clip or a grid out of range.
    """
    data = as_rows(row if isinstance(row, RowTable) else [row])
    if data.n != 1:
        raise ShapeError(f"clip_round: got {data.n} rows, expected one; use clip_noise_accumulate for a cohort")
    clip, step = checked_clip(clip, grid, data.d)
    scales = row_scales(data, clip, step, backend, threads)[1]
    name = choose(data, backend)
    if name == "triton":
        import torch

        out: Any = torch.zeros(data.d, dtype=torch.int32, device=data.device)
    else:
        out = np.zeros(data.d, np.int32)
    squares = 0
    if scales[0] != 0:
        work = implementation("clip_round", name)
        parts = tiles_of(data) if name == "triton" else [(slice(None), data.table)]
        squares = sum(work(part, float(scales[0]), out[columns], thread_count(threads)) for columns, part in parts)
    most, over = (clip / step).as_integer_ratio()  # exact: the step is a power of two
    if squares * over**2 > most**2:
        raise RangeError(f"clip_round: {squares} steps of {step} squared exceed the clip {clip}; report this as a bug")
    if not is_torch(out) and data.device is not None:
        import torch

        out = torch.from_numpy(out)
    elif is_torch(out) and data.device is None:
        out = out.numpy()
    return Clipped(out, step, squares, bool(scales[0] != 0))


def clip_grid(clip: float, d: int) -> float:
    """The largest power of two that is at most 0.02 · clip/√d: the grid for rows of d columns clipped to `clip`."""
    return math.ldexp(0.5, math.frexp(_coarsest(clip, d))[1])


def _coarsest(clip: float, d: int) -> float:
    return 0.02 * clip / math.sqrt(max(d, 1))


def checked_clip(clip: Any, grid: Any, d: int) -> tuple[float, float]:
    """(clip, grid) as floats. Raises RangeError that names what is out of range."""
    value = _number("clip", clip)
    if not LEAST_CLIP <= value <= LARGEST_CLIP:
        raise RangeError(f"clip: got {value}, expected a number from 2**-120 to 2**120")
    if d > MOST_COLUMNS:
        raise RangeError(f"clip: got rows of {d} columns, expected at most 2**40; clip them in parts")
    step = clip_grid(value, d) if grid is None else _number("grid", grid)
    if math.frexp(step)[0] != 0.5 or not value / MOST_STEPS <= step <= _coarsest(value, d):
        raise RangeError(
            f"grid: got {step}, expected a power of two from clip / 2**30 = {value / MOST_STEPS:g} to "
            f"0.02 * clip / sqrt({d}) = {_coarsest(value, d):g}; clip_grid({value:g}, {d}) is {clip_grid(value, d)}"
        )
    return value, step


def _number(name: str, value: Any) -> float:
    number = host_number(name, value)
    if number is None:
        raise RangeError(f"{got(name, value)}, expected a number")
    return number


def row_scales(
    data: Rows, clip: float, grid: float, backend: str | None, threads: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """(squared norms, scales) of the rows, both (n,) fp64 in main memory; a row that is not finite has scale 0."""
    norms = run_statistic("squared_norms", data, None, backend, threads)
    squared = np.asarray(norms.cpu() if is_torch(norms) else norms)
    return squared, clip_scales(squared, clip, grid, data.d)
