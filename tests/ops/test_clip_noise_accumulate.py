"""clip_noise_accumulate: exactly the sum of what clip_round gives row by row, and noise, on every ISA."""

from __future__ import annotations

import importlib
import sys
from fractions import Fraction

import numpy as np
import pytest
from inputs import LANES, TILES, make_rows, same_bits

import fedcore as fc
from fedcore.dtypes import STORAGE, round_from_float64
from fedcore.errors import DTypeError, RangeError, ShapeError, WeightError
from fedcore.ops.clip_noise_accumulate import _checked_noise
from fedcore.ops.rows import as_rows
from fedcore.rowtable import RowTable


def noise_of(d: int, seed: int = 0, most: int = 10**6) -> np.ndarray:
    return np.random.default_rng(seed).integers(-most, most, d)


def integer_sum(rows, clip: float, grid: float, noise=None) -> np.ndarray:
    """The definition by clip_round, in int64."""
    parts = [fc.ops.clip_round(row, clip, grid).integers.astype(np.int64) for row in rows]
    return np.sum(parts, axis=0) + (0 if noise is None else noise)


@pytest.mark.parametrize("d", LANES + TILES)
def test_the_sum_of_rounded_rows_at_every_boundary(compiled, dtype, d):
    rows, noise = make_rows(7, d, dtype), noise_of(d)
    clip = 3.0 * np.sqrt(d + 1)
    grid = fc.ops.clip_grid(clip, d)
    for drawn, divisor, out_dtype in ((None, None, "float64"), (noise, 7.5, "float32"), (noise, None, "bfloat16")):
        values = integer_sum(rows, clip, grid, drawn) * grid / (divisor or 1.0)
        for threads in (1, 3):
            got = fc.ops.clip_noise_accumulate(
                rows, clip, grid, drawn, divisor, out_dtype=out_dtype, threads=threads, **compiled
            )
            assert same_bits(got.sum, round_from_float64(values, out_dtype))
            assert same_bits(got.squared_norms, fc.ops.squared_norms(rows, **compiled))


def test_the_reference_agrees(dtype):
    rows, noise = make_rows(5, 5000, dtype), noise_of(5000)
    for out_dtype in STORAGE:
        options = {"noise": noise, "divisor": 3.0, "out_dtype": out_dtype}
        expected = fc.ops.clip_noise_accumulate(rows, 40.0, backend="reference", **options)
        assert same_bits(fc.ops.clip_noise_accumulate(rows, 40.0, **options).sum, expected.sum)


@pytest.mark.parametrize("n", [1, 4, 5, 6, 10, 11, 101])
def test_every_group_of_rows_in_any_order(compiled, n):
    rows = make_rows(n, 1500, "float32")
    clip, grid = 9.0, fc.ops.clip_grid(9.0, 1500) / 64
    got = fc.ops.clip_noise_accumulate(rows, clip, grid, out_dtype="float64", **compiled).sum
    assert same_bits(got, integer_sum(rows, clip, grid) * grid)
    assert same_bits(fc.ops.clip_noise_accumulate(rows[::-1], clip, grid, out_dtype="float64", **compiled).sum, got)


def test_one_client_moves_the_sum_by_at_most_the_clip(compiled):
    """Sensitivity, in Python's integers: the sum with a client less the sum without it, for clients of every kind."""
    d, clip = 3000, 0.7
    grid = fc.ops.clip_grid(clip, d)
    others = make_rows(4, d, "float32")
    without = fc.ops.clip_noise_accumulate(others, clip, grid, out_dtype="float64", **compiled).sum
    half = np.full(d, grid / 2 * (1 + 1e-6), np.float32)
    spike = half.copy()
    spike[7] = 3e38
    for client in (half, spike, half * 1e30, make_rows(1, d, "float32", seed=4)[0], np.full(d, 1e-45, np.float32)):
        found = fc.ops.clip_noise_accumulate([*others, client], clip, grid, out_dtype="float64", **compiled).sum
        moved = [round(x) for x in ((found - without) / grid).tolist()]
        assert sum(q * q for q in moved) * Fraction(grid) ** 2 <= Fraction(clip) ** 2


def test_the_presence_of_a_row_that_is_not_finite_does_not_show(compiled):
    rows, noise = make_rows(6, 2000, "float32"), noise_of(2000)
    expected = fc.ops.clip_noise_accumulate(rows, 5.0, None, noise, 10.0, **compiled).sum
    for value in (np.nan, np.inf, -np.inf):
        bad = rows[0].copy()
        bad[1234] = value
        got = fc.ops.clip_noise_accumulate([*rows[:3], bad, *rows[3:]], 5.0, None, noise, 10.0, **compiled)
        assert same_bits(got.sum, expected)
        assert np.flatnonzero(~np.isfinite(got.squared_norms)).tolist() == [3]
    nothing = fc.ops.clip_noise_accumulate([bad], 5.0, **compiled).sum
    assert same_bits(nothing, np.zeros(2000, np.float32))


def test_one_rounding_of_exact_sums(compiled):
    """2**50 steps and one: fp32 in between would lose the one, and so would an fp64 sum of products."""
    d, most = 3, 1 << 50
    noise = np.array([most - 2, -most, -(most - 1)])
    row = np.float32([0.001, 0.0, -0.001])
    grid = 2.0**-11
    got = fc.ops.clip_noise_accumulate([row, row], 1.0, grid, noise, out_dtype="float64", **compiled).sum
    assert (got / grid).tolist() == [most + 2, -most, -(most + 3)]
    assert d == got.size


def test_noise_at_any_alignment(compiled):
    rows, noise = make_rows(6, 300, "float32"), noise_of(300)
    memory = np.zeros(noise.nbytes + 1, np.uint8)
    beside = memory[1:].view(np.int64)
    beside[:] = noise
    expected = fc.ops.clip_noise_accumulate(rows, 5.0, None, noise, backend="reference").sum
    assert same_bits(fc.ops.clip_noise_accumulate(rows, 5.0, None, beside, **compiled).sum, expected)
    torch = pytest.importorskip("torch", reason="checks torch inputs")
    as_tensor = torch.frombuffer(memory, dtype=torch.int64, offset=1)
    assert same_bits(fc.ops.clip_noise_accumulate(rows, 5.0, None, as_tensor, **compiled).sum, expected)
    for found in (_checked_noise(given, 300, as_rows(rows)) for given in (beside, as_tensor)):
        assert torch.as_tensor(found).data_ptr() % 8 == 0


def test_segments_and_formats(compiled):
    rows, noise = make_rows(6, 300, "float32"), noise_of(300)
    buffers = [b"\xff" * (i % 4) + row.tobytes() for i, row in enumerate(rows)]
    offsets = (np.array([0, 7, 150]) * 4)[:, None] + np.arange(6) % 4
    table = RowTable(buffers, offsets, np.array([7, 143, 150]), "float32")
    expected = fc.ops.clip_noise_accumulate(rows, 5.0, None, noise).sum
    assert same_bits(fc.ops.clip_noise_accumulate(table, 5.0, None, noise, **compiled).sum, expected)
    packed = [fc.Quantized.from_array(row, "int8") for row in rows]
    expected = fc.ops.clip_noise_accumulate([row.to_float32() for row in packed], 5.0, None, noise).sum
    assert same_bits(fc.ops.clip_noise_accumulate(packed, 5.0, None, noise, **compiled).sum, expected)


def test_the_callers_modes_change_nothing(compiled):
    torch = pytest.importorskip("torch", reason="the caller's flush mode is set through torch")
    rows = [np.float32([1e-42, -3e-40, 2e-41] * 50)] * 3
    expected = fc.ops.clip_noise_accumulate(rows, 2.0**-120, 2.0**-149, **compiled).sum
    assert torch.set_flush_denormal(True)
    try:
        got = fc.ops.clip_noise_accumulate(rows, 2.0**-120, 2.0**-149, **compiled).sum
    finally:
        torch.set_flush_denormal(False)
    assert expected.view(np.uint32).any()
    assert same_bits(got, expected)


def test_noise_that_is_drawn_as_it_is_needed(compiled, monkeypatch):
    """A function of first column and count: the same bits, asked for each column once and in order."""
    rows, noise, asked = make_rows(3, 1000, "float32"), noise_of(1000), []

    def drawn(start, count):
        asked.append((start, count))
        return noise[start : start + count]

    monkeypatch.setattr(importlib.import_module("fedcore.ops.clip_noise_accumulate"), "TILE", 300)
    expected = fc.ops.clip_noise_accumulate(rows, 5.0, None, noise, 7.0, **compiled)
    got = fc.ops.clip_noise_accumulate(rows, 5.0, None, drawn, 7.0, **compiled)
    assert same_bits(got.sum, expected.sum)
    assert asked == [(0, 300), (300, 300), (600, 300), (900, 100)]
    with pytest.raises(ShapeError, match=r"noise: got shape \(5,\), expected \(300,\)"):
        fc.ops.clip_noise_accumulate(rows, 5.0, None, lambda start, count: noise[:5], **compiled)
    with pytest.raises(RangeError, match="noise: it leaves the range from"):
        fc.ops.clip_noise_accumulate(rows, 5.0, None, lambda start, count: noise[:count] - (1 << 50) * (start == 600))


def test_bad_arguments_are_named(compiled):
    rows = make_rows(3, 100, "float32")

    def work(*arguments, **options):
        return fc.ops.clip_noise_accumulate(rows, *arguments, **options, **compiled)

    for wrong in (1 << 50, -(1 << 50) - 1, np.iinfo(np.int64).min, np.iinfo(np.int64).max):
        noise = np.zeros(100, np.int64)
        noise[99] = wrong
        with pytest.raises(RangeError, match="noise: it leaves the range from"):
            work(1.0, None, noise)
    with pytest.raises(DTypeError, match="noise: got float64, expected int64"):
        work(1.0, None, np.zeros(100))
    with pytest.raises(ShapeError, match=r"noise: got shape \(99,\), expected \(100,\)"):
        work(1.0, None, np.zeros(99, np.int64))
    with pytest.raises(DTypeError, match="noise: got list"):
        work(1.0, None, [0] * 100)
    with pytest.raises(RangeError, match=r"clip: got -1\.0"):
        work(-1.0)
    with pytest.raises(RangeError, match=r"grid: got 0\.3"):
        work(1.0, 0.3)
    with pytest.raises(WeightError, match=r"divisor: got 0\.0"):
        work(1.0, divisor=0.0)
    with pytest.raises(RangeError, match="a finite sum does not fit float16"):
        work(1e6, divisor=1e-3, out_dtype="float16")


def test_so_many_rows_that_integers_could_overflow_are_refused(monkeypatch):
    monkeypatch.setattr(sys.modules["fedcore.ops.clip_noise_accumulate"], "MOST", 1 << 31)
    rows = [np.ones(1, np.float32)] * 3
    fc.ops.clip_noise_accumulate(rows[:2], 1.0, 2.0**-30)
    with pytest.raises(RangeError, match=r"the sum of 3 rows .* exceeds 2\*\*50"):
        fc.ops.clip_noise_accumulate(rows, 1.0, 2.0**-30)


def test_torch_in_torch_out_and_an_output_of_the_callers():
    torch = pytest.importorskip("torch", reason="checks torch inputs")
    rows, noise = torch.randn(5, 100), noise_of(100, most=100)
    expected = fc.ops.clip_noise_accumulate(rows.numpy(), 3.0, None, noise).sum
    out = torch.empty(100)
    got = fc.ops.clip_noise_accumulate(rows, 3.0, None, torch.from_numpy(noise), out=out)
    assert got.sum is out
    assert same_bits(out.numpy(), expected)
