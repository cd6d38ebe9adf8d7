"""The law of weighted_sums: each output has the bits of weighted_sum, at every size, on every ISA and thread count."""

from __future__ import annotations

import numpy as np
import pytest
from inputs import BLOCKS, LANES, from_bits, make_rows, same_bits

import fedcore as fc
from fedcore.dtypes import to_float64
from fedcore.errors import DTypeError, NonFiniteError, RangeError, ShapeError, WeightError
from fedcore.rowtable import RowTable

OUT = ("float32", "float64", "float16", "bfloat16")
#: strips of 24 columns, tiles of 96 to 16,384, runs of 8 tiles
EDGES = (23, 24, 25, 47, 48, 49, 95, 96, 97, 192, 383, 384, 385, 8 * 384, 8 * 384 + 1)


def matrix(m: int, n: int, seed: int = 1) -> np.ndarray:
    """(m, n) fp32 weights with zeros among them."""
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(m, n)) * (rng.random((m, n)) > 0.2)).astype(np.float32)


def check_each_is_a_weighted_sum(got, rows, weights, divisors, out_dtype):
    assert len(got) == len(weights)
    for a, w in enumerate(weights):
        by = None if divisors is None else divisors[a]
        expected = fc.ops.weighted_sum(rows, w, by, out_dtype=out_dtype, backend="reference")
        assert same_bits(got[a], expected), (a, out_dtype)


@pytest.mark.parametrize("d", LANES + EDGES)
@pytest.mark.parametrize("m", [3, 11])
def test_same_bits_at_every_boundary(compiled, dtype, d, m):
    rows, weights, divisors = make_rows(6, d, dtype), matrix(m, 6), np.linspace(9.3, 47.1, m)
    for out_dtype in OUT:
        for threads in (1, 3):
            got = fc.ops.weighted_sums(rows, weights, divisors, out_dtype=out_dtype, threads=threads, **compiled)
            check_each_is_a_weighted_sum(got, rows, weights, divisors, out_dtype)


@pytest.mark.parametrize("m", [0, 1, 2, 4, 5, 7, 8, 9, 12, 15, 16, 17, 100])
def test_same_bits_for_every_number_of_outputs(compiled, dtype, m):
    rows, weights = make_rows(10, 500, dtype), matrix(m, 10)
    check_each_is_a_weighted_sum(fc.ops.weighted_sums(rows, weights, **compiled), rows, weights, None, "float32")


@pytest.mark.parametrize("n", [1, 2, 7, 8, 9, 16, 17, 127, 128, 129, 257])
@pytest.mark.parametrize("m", [2, 10])
def test_same_bits_for_every_number_of_rows(compiled, n, m):
    """Sums that go on over chunks of 8 and of 128 rows keep their order."""
    rows, weights = make_rows(n, 130, "float32"), matrix(m, n)
    check_each_is_a_weighted_sum(fc.ops.weighted_sums(rows, weights, **compiled), rows, weights, None, "float32")


@pytest.mark.parametrize("d", BLOCKS)
def test_the_reference_has_the_same_bits(dtype, d):
    rows, weights = make_rows(5, d, dtype), matrix(9, 5)
    got = fc.ops.weighted_sums(rows, weights, backend="reference")
    assert same_bits(got, fc.ops.weighted_sums(rows, weights))


def test_rows_are_added_in_order(compiled):
    """(1e20 + 1) − 1e20 is 0 and (1e20 − 1e20) + 1 is 1, whichever way an output is computed."""
    big, one, minus = (np.full(50, v, np.float32) for v in (1e20, 1.0, -1e20))
    for m in (2, 20):
        assert (fc.ops.weighted_sums([big, one, minus], np.ones((m, 3)), **compiled) == 0).all()
        assert (fc.ops.weighted_sums([big, minus, one], np.ones((m, 3)), **compiled) == 1).all()


@pytest.mark.parametrize("m", [3, 12])
def test_a_row_that_no_output_counts_is_not_read(compiled, dtype, m):
    rows, weights = make_rows(3, 50, dtype), matrix(m, 3)
    weights[:, 1] = 0
    poison = from_bits([0x7FC00000 if dtype == "float32" else 0x7FFF] * 50, dtype)
    got = fc.ops.weighted_sums([rows[0], poison, rows[2]], weights, **compiled)
    check_each_is_a_weighted_sum(got, rows, weights, None, "float32")
    assert (fc.ops.weighted_sums([poison], np.zeros((m, 1)), **compiled) == 0).all()


@pytest.mark.parametrize("m", [3, 12])
@pytest.mark.parametrize("bits", [0x7F800000, 0xFFC00000])
def test_non_finite_input_of_one_output_is_named(compiled, m, bits):
    rows, weights = make_rows(6, 100, "float32"), matrix(m, 6)
    weights[:, 3] = 0
    weights[1, 3] = 1
    for column in (0, 31, 97):
        rows[3] = make_rows(6, 100, "float32")[3]
        rows[3][column] = np.uint32(bits).view(np.float32)
        with pytest.raises(NonFiniteError, match=rf"weighted_sums: row 3 holds .* at column {column}") as caught:
            fc.ops.weighted_sums(rows, weights, **compiled)
        assert (caught.value.row, caught.value.column) == (3, column)


@pytest.mark.parametrize("m", [2, 12])
@pytest.mark.parametrize("segments", [2, 5, 40])
def test_tiles_that_cross_segments(compiled, dtype, m, segments):
    rows, weights = make_rows(9, 997, dtype), matrix(m, 9)
    cuts = np.concatenate(([0], np.sort(np.random.default_rng(0).integers(0, 998, segments - 1)), [997]))
    item = rows[0].itemsize
    table = RowTable(rows, np.repeat(cuts[:-1, None] * item, 9, 1), np.diff(cuts), dtype)
    check_each_is_a_weighted_sum(fc.ops.weighted_sums(table, weights, **compiled), rows, weights, None, "float32")


@pytest.mark.parametrize("m", [3, 12])
@pytest.mark.parametrize("shift", [0, 1, 3])
def test_large_output_bypasses_the_cache(compiled, m, shift):
    """Streaming stores at any alignment of the output, and of its rows to one another."""
    d = (4 << 20) // (4 * m) + 77
    rows, weights = make_rows(3, d, "float32", spread=0.1), matrix(m, 3)
    out = np.empty(m * d + 8, np.float32)[shift : shift + m * d].reshape(m, d)
    assert fc.ops.weighted_sums(rows, weights, out=out, threads=2, **compiled) is out
    check_each_is_a_weighted_sum(out, rows, weights, None, "float32")


def test_flush_mode_of_the_caller_changes_nothing(compiled):
    torch = pytest.importorskip("torch", reason="the caller's flush mode is set through torch")
    tiny = from_bits([1, 7, 0x7FFFFF, 3] * 20, "float32")
    assert torch.set_flush_denormal(True)
    try:
        got = [fc.ops.weighted_sums([tiny], np.ones((m, 1)), threads=2, **compiled) for m in (2, 12)]
    finally:
        torch.set_flush_denormal(False)
    assert all(same_bits(row, tiny) for rows in got for row in rows)


def test_overflow_raises_and_one_rounding(compiled):
    row = np.full(40, 3e38, np.float32)
    with pytest.raises(RangeError, match="weighted_sums: a finite sum does not fit float32"):
        fc.ops.weighted_sums([row, row], [[1, 0], [1, 1]], **compiled)
    rows = [np.full(70, v, np.float32) for v in (1.0, 2.0**-8, 2.0**-40)]
    got = to_float64(fc.ops.weighted_sums(rows, np.ones((9, 3)), out_dtype="bfloat16", **compiled))
    assert (got == 1 + 2 * 2.0**-8).all()


def test_torch_in_torch_out():
    torch = pytest.importorskip("torch", reason="checks torch inputs")
    rows = torch.randn(4, 1000).bfloat16()
    got = fc.ops.weighted_sums(rows, torch.eye(4), torch.full((4,), 2.0), out_dtype=torch.bfloat16)
    assert got.dtype == torch.bfloat16
    assert torch.equal(got, rows / 2)


def test_bad_arguments_are_named():
    rows = make_rows(3, 10, "float32")
    with pytest.raises(ShapeError, match=r"weights: got shape \(3,\), expected \(m, 3\)"):
        fc.ops.weighted_sums(rows, [1, 2, 3])
    with pytest.raises(ShapeError, match=r"weights: got shape \(2, 2\), expected \(m, 3\)"):
        fc.ops.weighted_sums(rows, np.ones((2, 2)))
    with pytest.raises(WeightError, match="output 1, weight 2: got nan"):
        fc.ops.weighted_sums(rows, [[1, 1, 1], [1, 1, np.nan]])
    with pytest.raises(ShapeError, match=r"divisors: got shape \(3,\), expected \(2,\)"):
        fc.ops.weighted_sums(rows, np.ones((2, 3)), [1, 1, 1])
    with pytest.raises(WeightError, match="divisor 1: got 0"):
        fc.ops.weighted_sums(rows, np.ones((2, 3)), [1, 0])
    with pytest.raises(ShapeError, match=r"out: got shape \(2, 9\), expected \(2, 10\)"):
        fc.ops.weighted_sums(rows, np.ones((2, 3)), out=np.empty((2, 9), np.float32))
    block = np.zeros((5, 10), np.float32)
    with pytest.raises(ShapeError, match="out: it overlaps row 2"):
        fc.ops.weighted_sums(list(block[:3]), np.ones((2, 3)), out=block[2:4])
    with pytest.raises(DTypeError, match="expected one of"):
        fc.ops.weighted_sums(rows, np.ones((2, 3)), out_dtype="int8")


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_results_may_lie_next_to_a_row_and_not_a_byte_in_it(kind):
    memory = np.ones(12, np.float32)
    if kind == "torch":
        memory = pytest.importorskip("torch", reason="checks torch inputs").from_numpy(memory)
    for out in (memory[:4], memory[8:]):
        fc.ops.weighted_sums([memory[4:8]], [[2.0]], out=out.reshape(1, 4))
        assert out.tolist() == [2.0] * 4
    for out in (memory[1:5], memory[7:11]):
        with pytest.raises(ShapeError, match="out: it overlaps row 0"):
            fc.ops.weighted_sums([memory[4:8]], [[2.0]], out=out.reshape(1, 4))
