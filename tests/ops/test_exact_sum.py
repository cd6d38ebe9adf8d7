"""The law of exact sums: the bits of the exact value, rounded once, in every order of the rows."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from inputs import LANES, from_bits, make_rows, same_bits

import fedcore as fc
from fedcore.dtypes import round_from_float64, to_float64
from fedcore.errors import BackendError, DTypeError, NonFiniteError, RangeError, ShapeError, WeightError
from fedcore.expansion import CHUNK, Expansion
from fedcore.native.exact_round import exact_round
from fedcore.rowtable import RowTable

OUT = ("float32", "float64", "float16", "bfloat16")


def total(rows, weights, **options) -> fc.ops.ExactSum:
    made = fc.ops.ExactSum(rows[0].size, **options)
    for row, weight in zip(rows, weights, strict=True):
        made.add(row, weight)
    return made


def exact(rows, weights) -> list[Fraction]:
    """Each column in exact fractions."""
    columns = np.array([to_float64(row) for row in rows]).T.tolist()
    return [sum(Fraction(float(w)) * Fraction(x) for w, x in zip(weights, column, strict=True)) for column in columns]


def check_is_exact(found: fc.ops.ExactSum, rows, weights, divisor=None) -> None:
    """Fraction → float rounds once, to nearest even: the oracle."""
    values = np.array([float(value) for value in exact(rows, weights)]) + 0.0
    if divisor is not None:
        values = values / divisor
    for out_dtype in OUT:
        expected = round_from_float64(values, out_dtype)
        if np.isfinite(to_float64(expected)).all():
            assert same_bits(found.result(divisor, out_dtype), expected), out_dtype
        else:
            with pytest.raises(RangeError):
                found.result(divisor, out_dtype)


@pytest.mark.parametrize("order", list(itertools.permutations([1e20, 1.0, -1e20])))
def test_every_order_of_1e20_1_and_minus_1e20_is_1(compiled, order):
    rows = [np.full(50, v, np.float32) for v in order]
    assert (total(rows, [1, 1, 1], **compiled).result() == 1).all()
    assert (total(rows, [1, 1, 1], backend="reference").result() == 1).all()


@pytest.mark.parametrize("d", [*LANES, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 37])
def test_the_exact_value_at_every_boundary(compiled, dtype, d):
    rows, weights = make_rows(5, d, dtype, spread=1.0), np.float32([3.7, -0.1, 0.25, 1e-3, 17])
    few = slice(0, None) if d < 100 else np.r_[0:40, d - 40 : d]
    for threads in (1, 3):
        found = total(rows, weights, threads=threads, **compiled)
        values = np.array([float(v) for v in exact([row[few] for row in rows], weights)]) / 7.3 + 0.0
        assert same_bits(found.result(7.3)[few], values.astype(np.float32)), threads


def test_any_order_has_the_same_bits(compiled, dtype):
    rng = np.random.default_rng(0)
    rows, weights = make_rows(12, 700, dtype, spread=6.0), rng.normal(size=12).astype(np.float32)
    first = total(rows, weights, **compiled)
    check_is_exact(first, rows, weights)
    for _ in range(5):
        order = rng.permutation(12)
        again = total([rows[i] for i in order], weights[order], **compiled)
        for out_dtype in ("float64", "float32"):
            assert same_bits(again.result(3.1, out_dtype), first.result(3.1, out_dtype))


def test_a_thousand_rows_of_every_magnitude_with_large_and_tiny_weights(compiled):
    """Levels grow as far as the numbers need, and no further."""
    rng = np.random.default_rng(1)
    n, d = 1000, 20
    rows = [np.ldexp(rng.normal(size=d), rng.integers(-149, 126, size=d)).astype(np.float32) for _ in range(n)]
    weights = np.ldexp(rng.uniform(1, 2, size=n), rng.integers(-126, 23, size=n)).astype(np.float32)
    weights[::7] = 2**24
    found = total(rows, weights, **compiled)
    values = np.array([math.fsum((np.float64(w) * row.astype(float)[k]) for w, row in zip(weights, rows, strict=True))
                       for k in range(d)])  # fmt: skip
    assert same_bits(found.result(out_dtype="float64"), values)
    assert found.nbytes <= 14 * 8 * d
    for i in rng.permutation(n):
        found.add(rows[i], -weights[i])
    assert not found.result(out_dtype="float64").any(), "what was added can be taken away again"


def test_counts_as_weights_take_one_level_and_weights_of_24_bits_two():
    rows = [row * np.float32(0.02) for row in make_rows(100, 5000, "float32", spread=0.0)]
    assert total(rows, np.arange(100, 200)).nbytes == 8 * 5000
    assert total(rows, np.random.default_rng(0).random(100)).nbytes == 2 * 8 * 5000


def test_only_chunks_that_need_a_level_grow(compiled):
    rows = [np.ones(3 * CHUNK, np.float32) for _ in range(2)]
    rows[1][CHUNK + 5] = 2.0**-100
    found = total(rows, [1, 1], **compiled)
    assert found.nbytes == 8 * 4 * CHUNK
    got = found.result(out_dtype="float64")
    assert got[CHUNK + 5] == 1
    found.add(-rows[0])
    assert found.result()[CHUNK + 5] == np.float32(2.0**-100)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(-(2**24), 2**24), st.integers(-149, 100)), min_size=1, max_size=9))
@example([(1, 53), (1, 0), (1, -60)])  # a tie between two fp64 numbers that the last term decides upwards
@example([(1, 53), (1, 0), (-1, -60)])  # and downwards
@example([(1, 53), (3, 0), (-1, -60)])
@example([(-1, 53), (-1, 0), (-1, -149)])
@example([(1, 53), (1, 0)])  # a tie, to even
@example([(1, 53), (3, 0)])
def test_one_rounding_of_any_numbers(parts):
    rows = [np.full(17, math.ldexp(m, e - (24 if e > 80 else 0)), np.float32) for m, e in parts]
    for isa in _isas():
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("FEDCORE_ISA", isa)
            check_is_exact(total(rows, [1] * len(rows), backend="c"), rows, [1] * len(rows))
    check_is_exact(total(rows, [1] * len(rows), backend="reference"), rows, [1] * len(rows), 3.0)


def _isas() -> list[str]:
    from fedcore.native import isa_available

    return isa_available()


@settings(max_examples=100, deadline=None)
# a level is a sum that began at +0, so that none is -0: x + 0.0 has no -0 either
@given(st.lists(st.floats(-1e200, 1e200).map(lambda x: x + 0.0), min_size=1, max_size=6))
@example([2.0**53, 1.0, 2.0**-60, 0.0])
@example([1.0, -1.0, 2.0**-1000, 2.0**53])
def test_rounding_depends_on_the_value_alone(levels):
    """Whatever numbers hold the sum, in whatever order."""
    for order in itertools.islice(itertools.permutations(levels), 24):
        held = Expansion(3)
        held.levels, held.depth = [np.full(3, v) for v in order], np.array([len(order)], np.uint8)
        out = np.empty(3)
        exact_round(held, None, out)
        assert same_bits(out, np.full(3, math.fsum(levels) + 0.0))


def test_subnormals_and_zeros_of_either_sign(compiled, dtype):
    bits = [1, 0x8000 if dtype != "float32" else 1 << 31, 0, 3]
    rows = [from_bits(bits * 10, dtype)] * 3
    found = total(rows, [1, -2, 2], **compiled).result(out_dtype=dtype)
    assert same_bits(found, from_bits([1, 0, 0, 3] * 10, dtype)), "and a zero is +0"


def test_flush_mode_of_the_caller_changes_nothing(compiled):
    torch = pytest.importorskip("torch", reason="the caller's flush mode is set through torch")
    rows = [from_bits([1, 7, 0x7FFFFF, 0x80000003] * 20, "float32"), np.full(80, 1e30, np.float32)]
    expected = total([*rows, rows[1]], [2.0**-126, 1, -1], **compiled)
    assert torch.set_flush_denormal(True)
    try:
        found = total([*rows, rows[1]], [2.0**-126, 1, -1], threads=2, **compiled)
        got = [found.result(out_dtype=name) for name in ("float64", "float32")]
    finally:
        torch.set_flush_denormal(False)
    assert same_bits(got[0], expected.result(out_dtype="float64"))
    assert same_bits(got[0], rows[0].astype(float) * 2.0**-126)


@pytest.mark.parametrize("bits", [0x7F800000, 0xFF800000, 0x7FC00000, 0x7F800001])
def test_a_row_that_is_not_finite_leaves_nothing_behind(compiled, bits):
    d = 2 * CHUNK + 9
    rows = make_rows(2, d, "float32")
    found = total(rows[:1], [3], **compiled)
    before = (found.result(out_dtype="float64"), found.nbytes)
    for column in (0, CHUNK + 3, d - 1):
        bad = rows[1].copy()
        bad[column] = np.uint32(bits).view(np.float32)
        with pytest.raises(NonFiniteError, match=rf"exact_sum: row 0 holds .* at column {column}"):
            found.add(bad)
        assert same_bits(found.result(out_dtype="float64"), before[0])
        assert found.nbytes == before[1]
    found.add(rows[1])
    check = total(rows, [3, 1], backend="reference")
    assert same_bits(found.result(), check.result())


def test_columns_from_a_start_on_are_a_part_of_the_row(compiled):
    d = 3 * CHUNK + 9
    rows = make_rows(4, d, "float32")
    expected = total(rows, [3, -0.7, 1e9, 2], **compiled)
    found = fc.ops.ExactSum(d, **compiled)
    for start in (2 * CHUNK, 0, 3 * CHUNK, CHUNK):
        for row, weight in zip(rows, [3, -0.7, 1e9, 2], strict=True):
            found.add(row[start : start + CHUNK], weight, start)
    assert same_bits(found.result(out_dtype="float64"), expected.result(out_dtype="float64"))
    assert found.nbytes == expected.nbytes
    for start, size in ((5, CHUNK), (3 * CHUNK, 10), (-CHUNK, CHUNK)):
        with pytest.raises(ShapeError, match=rf"start: got {start} for {size} columns, expected a multiple of"):
            found.add(np.ones(size, np.float32), 1, start)


def test_no_memory_for_another_level_leaves_nothing_behind(monkeypatch):
    found = total([np.full(40, 1e20, np.float32), np.ones(40, np.float32)], [1, 1])
    before = found.result(out_dtype="float64")

    def refuse(total):
        raise MemoryError("no room")

    monkeypatch.setattr(Expansion, "reserve", refuse)
    with pytest.raises(MemoryError):
        found.add(np.full(40, 1e-20, np.float32))
    assert same_bits(found.result(out_dtype="float64"), before)


def test_unaligned_rows_in_segments(compiled, dtype):
    rows = make_rows(3, 300, dtype)
    item = rows[0].itemsize
    found = fc.ops.ExactSum(300, **compiled)
    for i, row in enumerate(rows):
        offsets = np.array([0, 7, 150])[:, None] * item + i + 1
        found.add(RowTable([b"\xff" * (i + 1) + row.tobytes()], offsets, np.array([7, 143, 150]), dtype), i + 1)
    check_is_exact(found, rows, [1, 2, 3], 6)


def test_rows_of_weight_zero_are_not_read_and_torch_rows_are_taken():
    torch = pytest.importorskip("torch", reason="checks torch rows")
    found = fc.ops.ExactSum(5)
    found.add(np.full(5, np.nan, np.float32), 0)
    found.add(torch.ones(5).bfloat16(), 2)
    found.add(torch.ones(5).half(), 3)
    assert found.result(5).tolist() == [1] * 5
    assert not fc.ops.ExactSum(5).result().any()
    assert fc.ops.ExactSum(0).result().shape == (0,)


def test_overflow_raises(compiled):
    found = total([np.full(9, 3e38, np.float32)] * 2, [1, 1], **compiled)
    with pytest.raises(RangeError, match="a finite sum does not fit float32"):
        found.result()
    assert (found.result(2) == np.float32(3e38)).all()
    assert (found.result(out_dtype="float64") == 2 * float(np.float32(3e38))).all()


def test_bad_arguments_are_named():
    found = fc.ops.ExactSum(10)
    with pytest.raises(ShapeError, match="row: got 1 × 9, expected one row of 10 columns"):
        found.add(np.zeros(9, np.float32))
    with pytest.raises(DTypeError, match="row: got list, expected a NumPy array"):
        found.add([1.0] * 10)
    with pytest.raises(DTypeError, match="float64"):
        found.add(np.zeros(10))
    with pytest.raises(WeightError, match="weight 0: got nan"):
        found.add(np.zeros(10, np.float32), np.nan)
    with pytest.raises(WeightError, match="divisor: got 0"):
        found.result(0)
    with pytest.raises(DTypeError, match="expected one of"):
        found.result(out_dtype="int8")
    with pytest.raises(ShapeError, match="ExactSum: got d=-1"):
        fc.ops.ExactSum(-1)
    with pytest.raises(BackendError, match="exact_sum: the triton backend has no such kernel"):
        fc.ops.ExactSum(10, backend="triton")
