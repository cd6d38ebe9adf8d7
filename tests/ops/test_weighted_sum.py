"""The law of weighted_sum: the same bits as the NumPy definition on every ISA, thread count and flush mode."""

from __future__ import annotations

import fractions
import functools
import weakref

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from inputs import BLOCKS, LANES, TILES, from_bits, make_rows, same_bits

import fedcore as fc
from fedcore.dtypes import bf16, bf16_bits, to_float64
from fedcore.errors import DTypeError, NonFiniteError, RangeError, ShapeError, WeightError
from fedcore.rowtable import RowTable

OUT = ("float32", "float64", "float16", "bfloat16")


def reference(rows, weights, divisor=None, out_dtype="float32"):
    return fc.ops.weighted_sum(rows, weights, divisor, out_dtype=out_dtype, backend="reference")


@functools.cache
def seven_rows(dtype, d):
    """(rows, weights, out dtype -> their sum over 7.3 by definition), made once for all ISAs."""
    rows, weights = make_rows(7, d, dtype), np.random.default_rng(1).normal(size=7).astype(np.float32)
    return rows, weights, {out_dtype: reference(rows, weights, 7.3, out_dtype) for out_dtype in OUT}


@pytest.mark.parametrize("d", LANES + BLOCKS + TILES)
def test_same_bits_at_every_boundary(compiled, dtype, d):
    rows, weights, sums = seven_rows(dtype, d)
    for out_dtype, expected in sums.items():
        for threads in (1, 2, 5):
            got = fc.ops.weighted_sum(rows, weights, 7.3, out_dtype=out_dtype, threads=threads, **compiled)
            assert same_bits(got, expected), (out_dtype, threads)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 6, 9, 10, 11, 26])
def test_same_bits_for_every_group_of_rows(compiled, dtype, n):
    rows, weights = make_rows(n, 1000, dtype), np.random.default_rng(2).normal(size=n).astype(np.float32)
    assert same_bits(fc.ops.weighted_sum(rows, weights, **compiled), reference(rows, weights))


def test_reference_is_the_exact_sum_in_row_order(dtype):
    """The definition itself, against Python's exact fractions where no fp64 addition rounds."""
    rows, weights = make_rows(3, 40, dtype, spread=0.2), [0.5, -2.0, 3.0]
    total = fc.ops.weighted_sum(rows, weights, out_dtype="float64", backend="reference")
    for k in range(40):
        exact = sum(
            fractions.Fraction(w) * fractions.Fraction(float(to_float64(r)[k]))
            for w, r in zip(weights, rows, strict=True)
        )
        assert float(total[k]) == pytest.approx(float(exact), rel=1e-15)


def test_rows_are_added_in_order(compiled):
    """(1e20 + 1) − 1e20 is 0 and (1e20 − 1e20) + 1 is 1: the order of rows is part of the law."""
    big, one, minus = (np.full(50, v, np.float32) for v in (1e20, 1.0, -1e20))
    assert (fc.ops.weighted_sum([big, one, minus], [1, 1, 1], **compiled) == 0).all()
    assert (fc.ops.weighted_sum([big, minus, one], [1, 1, 1], **compiled) == 1).all()


@pytest.mark.parametrize(("out_dtype", "mantissa"), [("bfloat16", 8), ("float16", 11)])
def test_one_rounding_to_16_bits(compiled, out_dtype, mantissa):
    """1 + half an ulp + a bit that fp32 cannot hold must round up; through fp32 it would fall to even."""
    half = 2.0**-mantissa
    rows = [np.full(70, v, np.float32) for v in (1.0, half, 2.0**-40)]
    got = to_float64(fc.ops.weighted_sum(rows, [1, 1, 1], out_dtype=out_dtype, **compiled))
    assert (got == 1 + 2 * half).all()
    below = to_float64(fc.ops.weighted_sum(rows, [1, 1, -1], out_dtype=out_dtype, **compiled))
    assert (below == 1).all()
    tie = to_float64(fc.ops.weighted_sum(rows[:2], [1, 1], out_dtype=out_dtype, **compiled))
    assert (tie == 1).all()


@pytest.mark.parametrize("out_dtype", ["float16", "bfloat16", "float32"])
@settings(max_examples=40, deadline=None)
@given(
    values=st.lists(st.floats(-60000, 60000, width=32), min_size=1, max_size=80),
    w=st.floats(-1, 1, width=32, allow_subnormal=False),
)
def test_rounding_property(out_dtype, values, w):
    rows = [np.array(values, np.float32), np.array(values[::-1], np.float32) * np.float32(2**-18)]
    for isa in _isas():
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("FEDCORE_ISA", isa)
            got = fc.ops.weighted_sum(rows, [w, 1], out_dtype=out_dtype, backend="c")
        assert same_bits(got, reference(rows, [w, 1], out_dtype=out_dtype))


def _isas() -> list[str]:
    from fedcore.native import isa_available

    return isa_available()


def test_subnormals_survive(compiled, dtype):
    smallest = from_bits([1] * 40, dtype)
    got = fc.ops.weighted_sum([smallest, smallest], [1, 1], out_dtype=dtype, **compiled)
    bits = bf16_bits(got) if dtype == "bfloat16" else got.view(np.uint32 if dtype == "float32" else np.uint16)
    assert (bits == 2).all()


def test_flush_mode_of_the_caller_changes_nothing(compiled):
    torch = pytest.importorskip("torch", reason="the caller's flush mode is set through torch")
    tiny = from_bits([1, 7, 0x7FFFFF, 3] * 20, "float32")
    expected = fc.ops.weighted_sum([tiny], [1.0], **compiled)
    assert torch.set_flush_denormal(True)
    try:
        got = fc.ops.weighted_sum([tiny], [1.0], threads=2, **compiled)
        still_flushing = bool(torch.tensor([1e-42]) * 1.0 == 0)
    finally:
        torch.set_flush_denormal(False)
    assert same_bits(got, expected)
    assert same_bits(expected, tiny)
    assert still_flushing, "the caller's mode is restored"


@pytest.mark.parametrize("bits", [0x7F800000, 0xFF800000, 0x7FC00000, 0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001])
@pytest.mark.parametrize("out_dtype", OUT)
def test_non_finite_input_is_named(compiled, bits, out_dtype):
    rows = make_rows(6, 100, "float32")
    for column in (0, 31, 33, 99):
        bad = rows[3].copy()
        bad[column] = np.uint32(bits).view(np.float32)
        with pytest.raises(NonFiniteError, match=rf"row 3 holds .* at column {column}") as caught:
            fc.ops.weighted_sum([*rows[:3], bad, *rows[4:]], np.ones(6), out_dtype=out_dtype, **compiled)
        assert (caught.value.row, caught.value.column) == (3, column)


@pytest.mark.parametrize("value", [0x7F80, 0xFF80, 0x7FC1, 0xFF81], ids=["inf", "-inf", "nan", "-nan"])
def test_non_finite_bf16_is_seen_in_every_column(compiled, value):
    """Vectors take bf16 apart by its bits: in whole groups of columns, the first and later ones, and in the rest."""
    for column in range(70):
        rows = [np.full(70, 0x3F80, np.uint16) for _ in range(12)]
        rows[column % 12][column] = value
        with pytest.raises(NonFiniteError, match=rf"row {column % 12}\b.*column {column}\b"):
            fc.ops.weighted_sum([bf16(row) for row in rows], np.full(12, 1 / 16), **compiled)


@pytest.mark.parametrize("column", [(1 << 20) - 1, 1 << 20, (1 << 20) + 3])
def test_a_nan_in_a_long_row_is_named_by_its_own_column(column):
    """Columns are looked through 2**20 at a time."""
    rows = np.zeros((2, (1 << 20) + 5), np.float32)
    rows[1, column] = np.nan
    with pytest.raises(NonFiniteError, match=f"row 1 holds nan at column {column};") as caught:
        fc.ops.weighted_sum(rows, [1, 1], threads=1)
    assert caught.value.column == column


def test_every_finite_bf16_number(compiled):
    """Beside small and large ones, with weights from the least to the largest."""
    numbers = np.arange(1 << 16).astype(np.uint16)
    numbers = numbers[(numbers & 0x7F80) != 0x7F80]
    rows = [bf16(np.random.default_rng(seed).permutation(numbers)) for seed in range(4)] + [bf16(numbers)]
    most = float(np.finfo(np.float32).max)
    for weights in ([1, -2.5, 2.0**-126, most, 7], [2.0**-126, 1.0, 1, 1, -most]):
        got = fc.ops.weighted_sum(rows, weights, out_dtype="float64", **compiled)
        assert same_bits(got, reference(rows, weights, out_dtype="float64"))


def test_rows_of_weight_zero_are_not_read(compiled, dtype):
    rows = make_rows(3, 50, dtype)
    poison = from_bits([0x7FC00000 if dtype == "float32" else 0x7FFF] * 50, dtype)
    got = fc.ops.weighted_sum([rows[0], poison, rows[2]], [1, 0, 2], **compiled)
    assert same_bits(got, reference([rows[0], rows[2]], [1, 2]))


@pytest.mark.parametrize("out_dtype", ["float32", "float16", "bfloat16"])
def test_overflow_raises(compiled, out_dtype):
    row = np.full(40, 3e38, np.float32)
    with pytest.raises(RangeError, match=f"does not fit {out_dtype}"):
        fc.ops.weighted_sum([row, row], [1, 1], out_dtype=out_dtype, **compiled)
    wide = fc.ops.weighted_sum([row, row], [1, 1], out_dtype="float64", **compiled)
    assert (wide == 2 * np.float64(np.float32(3e38))).all()


def test_fp16_with_large_weights_does_not_overflow(compiled):
    """Accumulating in the wire dtype gives inf here."""
    rows = [np.full(33, v, np.float16) for v in (1.5, 2.5)]
    got = fc.ops.weighted_sum(rows, [40000, 40000], 80000, out_dtype="float16", **compiled)
    assert (got == 2).all()


def test_bf16_mean_of_64_clients_is_rounded_once(compiled):
    rows = make_rows(64, 500, "bfloat16", spread=0.5)
    got = to_float64(fc.ops.weighted_sum(rows, np.ones(64), 64, out_dtype="bfloat16", **compiled))
    exact = sum(to_float64(r) for r in rows) / 64
    assert (np.abs(got - exact) <= 2.0**-8 * np.abs(exact) * (1 + 1e-6)).all()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), n=st.integers(1, 12), d=st.integers(1, 200), scale=st.integers(-20, 20))
def test_scaling_by_a_power_of_two_scales_the_result(seed, n, d, scale):
    rows = make_rows(n, d, "float32", seed, spread=1.0)
    weights = np.random.default_rng(seed).normal(size=n).astype(np.float32)
    one = fc.ops.weighted_sum(rows, weights, out_dtype="float64")
    scaled = fc.ops.weighted_sum(rows, weights * np.float32(2.0**scale), out_dtype="float64")
    assert same_bits(scaled, one * 2.0**scale)


@pytest.mark.parametrize("offset", [0, 1, 2, 3, 5])
def test_unaligned_rows_and_output(compiled, offset):
    size = 5000
    blob = np.frombuffer(np.random.default_rng(0).bytes(4 * size * 2 + 64), np.uint8).copy()
    values = np.random.default_rng(1).normal(size=(2, size)).astype(np.float32)
    rows = []
    for i in range(2):
        part = blob[offset + i * 4 * size : offset + (i + 1) * 4 * size]
        part[:] = values[i].view(np.uint8)
        rows.append(part.view(np.float32))
    room = np.zeros(4 * size + 64, np.uint8)[offset : offset + 4 * size].view(np.float32)
    fc.ops.weighted_sum(rows, [1, 2], out=room, **compiled)
    assert same_bits(room.copy(), reference(list(values), [1, 2]))


def test_large_output_bypasses_the_cache(compiled):
    rows, weights = make_rows(3, (4 << 20) // 4 + 77, "float32", spread=0.1), [1, 2, 3]
    for start in (0, 4, 3):
        out = np.empty(rows[0].size + 8, np.float32)[start : start + rows[0].size]
        fc.ops.weighted_sum(rows, weights, 6, out=out, threads=2, **compiled)
        assert same_bits(out.copy(), reference(rows, weights, 6))


def test_torch_in_torch_out():
    torch = pytest.importorskip("torch", reason="checks torch inputs")
    rows = torch.randn(4, 1000).bfloat16()
    got = fc.ops.weighted_sum(rows, torch.tensor([1, 2, 3, 4]), 10, out_dtype=torch.bfloat16)
    assert got.dtype == torch.bfloat16
    exact = (rows.double() * torch.tensor([1.0, 2, 3, 4]).double()[:, None]).sum(0) / 10
    assert ((got.double() - exact).abs() <= 2.0**-8 * exact.abs() * (1 + 1e-6)).all()
    out = torch.empty(1000)
    assert fc.ops.weighted_sum(list(rows), [1, 0, 0, 0], out=out) is out
    assert torch.equal(out, rows[0].float())


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1, np.nan, 1], "weight 1: got nan"),
        ([1, 1, np.inf], "weight 2: got inf"),
        ([1, 1e39, 1], "weight 1: got 1e"),
        ([1, 2**24 + 2, 1], "weight 1: got 16777218, a count above"),
        ([1.0, 2.0**24 + 1, 1], "weight 1: .* a count above"),
        ([1, 1e-60, 1], "weight 1: got 1e-60, below the normal fp32 numbers; use 0 or scale the weights up"),
        ([1, 1, 1e-40], "weight 2: got 1e-40, below the normal fp32 numbers"),
    ],
)
def test_weights_that_cannot_be_used(weights, message):
    with pytest.raises(WeightError, match=message):
        fc.ops.weighted_sum(make_rows(3, 10, "float32"), weights)


def test_bad_arguments_are_named():
    rows = make_rows(3, 10, "float32")
    with pytest.raises(ShapeError, match=r"weights: got shape \(2,\), expected \(3,\)"):
        fc.ops.weighted_sum(rows, [1, 2])
    with pytest.raises(ShapeError, match=r"row 1: got shape \(9,\), expected \(10,\)"):
        fc.ops.weighted_sum([rows[0], rows[1][:9]], [1, 1])
    with pytest.raises(DTypeError, match="row 2: got float16, expected float32"):
        fc.ops.weighted_sum([*rows[:2], rows[2].astype(np.float16)], [1, 1, 1])
    with pytest.raises(DTypeError, match="float64"):
        fc.ops.weighted_sum(np.zeros((2, 3)), [1, 1])
    with pytest.raises(ShapeError, match="not contiguous"):
        fc.ops.weighted_sum(np.zeros((4, 2), np.float32).T, [1, 1])
    with pytest.raises(ShapeError, match="got none"):
        fc.ops.weighted_sum([], [])
    with pytest.raises(WeightError, match="divisor: got 0"):
        fc.ops.weighted_sum(rows, [1, 1, 1], 0)
    with pytest.raises(ShapeError, match="out: it overlaps row 2"):
        fc.ops.weighted_sum(rows, [1, 1, 1], out=rows[2])
    with pytest.raises(ShapeError, match=r"out: got shape \(9,\)"):
        fc.ops.weighted_sum(rows, [1, 1, 1], out=np.empty(9, np.float32))
    with pytest.raises(RangeError, match="threads: got 0"):
        fc.ops.weighted_sum(rows, [1, 1, 1], threads=0)
    with pytest.raises(DTypeError, match="expected one of"):
        fc.ops.weighted_sum(rows, [1, 1, 1], out_dtype="int8")


def test_arguments_of_another_kind_are_named():
    rows = make_rows(3, 10, "float32")
    with pytest.raises(WeightError, match="divisor: got 'x', expected a number"):
        fc.ops.weighted_sum(rows, [1, 1, 1], "x")
    with pytest.raises(DTypeError, match="out: got list"):
        fc.ops.weighted_sum(rows, [1, 1, 1], out=[0.0] * 10)
    with pytest.raises(DTypeError, match="weights: got complex128, expected real numbers"):
        fc.ops.weighted_sum(rows, [1j, 1, 1])
    for threads in (2.7, True, 2**40, -1, "two"):
        with pytest.raises(RangeError, match="threads: got"):
            fc.ops.weighted_sum(rows, [1, 1, 1], threads=threads)


def test_another_byte_order_is_refused():
    """A big-endian row has the same dtype name, and would be read as garbage."""
    rows = make_rows(2, 10, "float32")
    swapped = [row.astype(">f4") for row in rows]
    with pytest.raises(DTypeError, match="got >f4, expected this machine's byte order"):
        fc.ops.weighted_sum(swapped, [1, 1])
    with pytest.raises(DTypeError, match="byte order"):
        fc.ops.weighted_sum(rows, [1, 1], out=np.empty(10, ">f4"))
    with pytest.raises(DTypeError, match="byte order"):
        fc.ops.gram(rows, swapped[0])


def test_weights_live_as_long_as_the_kernel_runs(compiled, monkeypatch):
    """Converted ones have no other owner."""
    from fedcore.native import weighted_sum as native

    seen, given, address, lib = [], [], native.address, native.lib

    class Library:
        FC_NOT_FINITE = lib.FC_NOT_FINITE

        @staticmethod
        def fc_weighted_sum(*arguments):
            seen.extend(held() is not None for held in given)
            return lib.fc_weighted_sum(*arguments)

    monkeypatch.setattr(native, "lib", Library)
    monkeypatch.setattr(native, "address", lambda array, kind: given.append(weakref.ref(array)) or address(array, kind))
    rows, weights = make_rows(3, 40, "float32"), np.array([0.5, -2.0, 3.0])
    out = np.zeros(40, np.float32)
    native.weighted_sum(RowTable.from_arrays(rows), weights, None, out)
    assert seen == [True, True]
    assert same_bits(out, reference(rows, weights))
