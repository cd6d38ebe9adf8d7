"""clip_round: integers whose norm never passes the clip, whatever the row holds; the same on every ISA."""

from __future__ import annotations

import sys
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from inputs import BLOCKS, LANES, TILES, make_rows, same_bits

import fedcore as fc
from fedcore.dtypes import round_from_float64
from fedcore.errors import RangeError, ShapeError
from fedcore.ops.clip_round import MOST_COLUMNS, checked_clip
from fedcore.reference.clip_round import clip_scales
from fedcore.rowtable import RowTable


def check_bound(found, clip: float) -> int:
    """Assert in Python's integers that the rounded row is inside the clip; return the sum of squares."""
    squares = sum(int(q) ** 2 for q in found.integers.tolist())
    assert squares == found.squared_norm
    assert squares * Fraction(found.grid) ** 2 <= Fraction(clip) ** 2
    return squares


@pytest.mark.parametrize("d", LANES + BLOCKS + TILES)
def test_same_integers_at_every_boundary(compiled, dtype, d):
    row = make_rows(1, d, dtype)[0]
    for clip in (1e-3, 1e6):
        expected = fc.ops.clip_round(row, clip, backend="reference")
        for threads in (1, 3):
            got = fc.ops.clip_round(row, clip, threads=threads, **compiled)
            assert same_bits(got.integers, expected.integers)
            assert got[1:] == expected[1:]
        check_bound(got, clip)


def adversaries(d: int, clip: float) -> dict[str, np.ndarray]:
    """Rows of d columns that try to pass the clip after rounding."""
    grid, rng = fc.ops.clip_grid(clip, d), np.random.default_rng(d)
    gauss = rng.normal(size=d)
    unit = gauss / np.linalg.norm(gauss)
    spike = np.full(d, grid / 2)
    spike[d // 2] = 3e38
    steps = np.round(clip / grid / np.sqrt(d))
    return {
        "zeros": np.zeros(d),
        "half a grid step": np.full(d, grid / 2),
        "just above half a step": np.full(d, grid * (0.5 + 2.0**-20)),
        "every entry rounds up at the clip": np.full(d, grid * (steps + 0.5 + 2.0**-10)),
        "one huge coordinate": spike,
        "all huge": np.full(d, 3.4e38),
        "subnormal": np.full(d, 1e-45),
        "norm a little below the clip": unit * clip * (1 - 1e-7),
        "norm at the clip": unit * clip,
        "norm a little above the clip": unit * clip * (1 + 1e-7),
        "norm where scaling begins": unit * (clip - grid * np.sqrt(d) / 2),
    }


@pytest.mark.parametrize("d", [1, 2, 3, 5, 31, 1000, 4097])
@pytest.mark.parametrize("clip", [1.0, 0.3, 1e-30, 7e9])
def test_adversaries_stay_inside_the_clip(compiled, d, clip):
    grid = fc.ops.clip_grid(clip, d)
    finest = 2.0 ** (np.floor(np.log2(clip)) - 29)
    for name, values in adversaries(d, clip).items():
        row = values.astype(np.float32)
        for step in (grid, finest):
            found = fc.ops.clip_round(row, clip, step, **compiled)
            squares = check_bound(found, clip)
            norm = np.linalg.norm(row.astype(np.float64))
            if norm >= clip:  # the price of the bound: at most 1 % shorter, and the rounding of each entry
                assert np.sqrt(squares) * step >= 0.989 * clip - step * np.sqrt(d) / 2, name
            elif norm < 0.98 * clip:
                assert (np.abs(found.integers * step - row) <= step / 2).all(), name


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=40),
    st.floats(2.0**-100, 2.0**100),
    st.integers(0, 10),
)
def test_no_row_passes_the_bound(values, clip, finer):
    row = np.array(values, np.float32)
    check_bound(fc.ops.clip_round(row, clip, fc.ops.clip_grid(clip, len(row)) * 2.0**-finer), clip)


def test_the_bound_is_nearly_reached():
    """Without the room for rounding, rows at the clip would pass it: the test above is not one of slack."""
    d, clip = 4096, 1.0
    grid = fc.ops.clip_grid(clip, d)
    row = np.full(d, grid * (np.round(clip / grid / np.sqrt(d)) - 0.5 + 2.0**-10), np.float32)
    scale = clip_scales(fc.ops.squared_norms([row]), clip, grid, d)[0]
    assert (np.rint(row * scale) ** 2).sum() <= (clip / grid) ** 2
    assert (np.rint(row * np.float64(1 / grid)) ** 2).sum() > 0.999 * (clip / grid) ** 2


def test_a_row_that_is_not_finite_is_zeros_and_a_flag(compiled, dtype):
    for value in (np.nan, np.inf, -np.inf):
        row = make_rows(1, 5000, dtype)[0]
        row[4321] = round_from_float64(np.array([value]), dtype)[0]
        found = fc.ops.clip_round(row, 1.0, **compiled)
        assert not found.finite
        assert found.squared_norm == 0
        assert not found.integers.any()
    zero = fc.ops.clip_round(np.zeros(10, np.float32), 1.0, **compiled)
    assert zero.finite
    assert not zero.integers.any()


def test_entries_below_the_clip_are_rounded_to_nearest_even(compiled):
    grid = 2.0**-10
    row = np.array([0.5, 1.5, 2.5, -0.5, -1.5, 0.4999, -3.0, 1e-45, -0.0], np.float32) * np.float32(grid)
    found = fc.ops.clip_round(row, 1.0, grid, **compiled)
    assert found.integers.tolist() == [0, 2, 2, 0, -2, 0, -3, 0, 0]


def test_the_callers_modes_change_nothing(compiled):
    torch = pytest.importorskip("torch", reason="the caller's flush mode is set through torch")
    row = np.float32([1e-42, -3e-40, 2e-41] * 50)
    expected = fc.ops.clip_round(row, 2.0**-120, 2.0**-149, **compiled)
    assert torch.set_flush_denormal(True)
    try:
        got = fc.ops.clip_round(row, 2.0**-120, 2.0**-149, **compiled)
    finally:
        torch.set_flush_denormal(False)
    assert expected.integers.any()
    assert same_bits(got.integers, expected.integers)


def test_segments_and_formats(compiled):
    row = make_rows(1, 300, "float32")[0]
    table = RowTable([b"\xff" + row.tobytes()], np.array([[1], [29], [601]]), np.array([7, 143, 150]), "float32")
    assert same_bits(fc.ops.clip_round(table, 5.0, **compiled).integers, fc.ops.clip_round(row, 5.0).integers)
    packed = fc.Quantized.from_array(row, "nf4")
    expected = fc.ops.clip_round(packed.to_float32(), 5.0).integers
    assert same_bits(fc.ops.clip_round(packed, 5.0, **compiled).integers, expected)


def test_integers_that_pass_the_clip_are_not_given_out(monkeypatch):
    public = sys.modules["fedcore.ops.clip_round"]  # the name is the function's too
    monkeypatch.setattr(public, "implementation", lambda op, name: lambda *arguments: 1 << 40)
    monkeypatch.setattr(public, "run_statistic", lambda *arguments: np.ones(1))
    with pytest.raises(RangeError, match=r"exceed the clip 1\.0"):
        fc.ops.clip_round(np.ones(4, np.float32), 1.0)


@pytest.mark.parametrize("clip", [0.0, -1.0, np.nan, np.inf, 2.0**121, "1e", None])
def test_a_clip_out_of_range_is_refused(clip):
    with pytest.raises(RangeError, match="clip: got"):
        fc.ops.clip_round(np.ones(4, np.float32), clip)


@pytest.mark.parametrize("grid", [0.0, -0.01, 3e-3, 0.015625, 2.0**-31, np.nan, np.inf])
def test_a_grid_out_of_range_is_refused(grid):
    with pytest.raises(RangeError, match=r"grid: got .* expected a power of two from .* clip_grid"):
        fc.ops.clip_round(np.ones(4, np.float32), 1.0, grid)


def test_the_finest_grid_and_the_longest_row_are_taken():
    found = fc.ops.clip_round(np.float32([0, 3, 0, 0]), 1.0, 2.0**-30)
    assert 2**30 - 2**12 < check_bound(found, 1.0) ** 0.5 <= 2**30
    assert checked_clip(1.0, None, MOST_COLUMNS) == (1.0, fc.ops.clip_grid(1.0, MOST_COLUMNS))
    with pytest.raises(RangeError, match="clip: got rows of 1099511627777 columns, expected at most"):
        checked_clip(1.0, None, MOST_COLUMNS + 1)


def test_the_grid_is_the_largest_power_of_two_that_is_fine_enough():
    for clip in (1.0, 3.7, 1e-9):
        for d in (1, 4, 10_000_019):
            grid, limit = fc.ops.clip_grid(clip, d), 0.02 * clip / np.sqrt(d)
            assert grid <= limit < 2 * grid
            assert np.frexp(grid)[0] == 0.5


def test_one_row_only_and_torch_in_torch_out():
    torch = pytest.importorskip("torch", reason="checks torch inputs")
    with pytest.raises(ShapeError, match="clip_round: got 2 rows, expected one"):
        fc.ops.clip_round(RowTable.from_arrays(make_rows(2, 10, "float32")), 1.0)
    row = torch.randn(100).bfloat16()
    found = fc.ops.clip_round(row, 1.0)
    assert found.integers.dtype == torch.int32
    assert found.integers.tolist() == fc.ops.clip_round(row.float().numpy(), 1.0).integers.tolist()
