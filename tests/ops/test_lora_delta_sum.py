"""The law of lora_delta_sum: the definition's bits on every ISA and thread count, its bound against a dense product."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from inputs import same_bits
from lora_factors import SHAPES, bound, dense, make_factors

import fedcore as fc
from fedcore.dtypes import round_from_float64, to_float64
from fedcore.errors import DTypeError, NonFiniteError, RangeError, ShapeError, WeightError

OUT = ("float32", "float64", "float16", "bfloat16")


def coefficients_of(n: int) -> np.ndarray:
    return np.linspace(-0.3, 1.1, n + 1)[1:] / 3


@lru_cache
def expected_of(shape, dtype, out_dtype, based):
    b, a = make_factors(*shape, dtype)
    return fc.ops.lora_delta_sum(
        b, a, coefficients_of(len(b)), base=base_of(shape, dtype) if based else None, out_dtype=out_dtype,
        backend="reference",
    )  # fmt: skip


def base_of(shape, dtype):
    return round_from_float64(np.random.default_rng(9).normal(size=shape[:2]), dtype)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_definition_is_within_its_bound(dtype, shape):
    b, a = make_factors(*shape, dtype)
    c = coefficients_of(len(b))
    for base in (None, base_of(shape, dtype)):
        got = to_float64(fc.ops.lora_delta_sum(b, a, c, base=base, out_dtype="float64", backend="reference"))
        assert (np.abs(got - dense(b, a, c, base)) <= bound(b, a, c)).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_same_bits_at_every_boundary(compiled, dtype, shape):
    b, a = make_factors(*shape, dtype)
    for out_dtype, threads, based in zip(OUT, (1, 2, 3, 1), (False, True, False, True), strict=True):
        base = base_of(shape, dtype) if based else None
        got = fc.ops.lora_delta_sum(
            b, a, coefficients_of(len(b)), base=base, out_dtype=out_dtype, threads=threads, **compiled
        )
        assert same_bits(got, expected_of(shape, dtype, out_dtype, based)), out_dtype


def test_a_fused_multiply_add_rounds_once():
    """1 + u · (1 + u) against a tie: what fp64 would cut off decides, as in C."""
    b = [np.float32([[1, 1 + 2.0**-23]])]
    a = [np.float32([[1], [2.0**-24 * (1 - 2.0**-23)]]), np.float32([[1], [2.0**-24 * (1 + 2.0**-23)]])]
    for factor in a:
        got = [fc.ops.lora_delta_sum(b, [factor], [1.0], backend=backend) for backend in ("reference", "c")]
        exact = 1.0 + (1 + 2.0**-23) * float(factor[1, 0])
        assert got[0] == got[1] == (1 + 2.0**-23 if exact > 1 + 2.0**-24 else 1.0)


def test_coefficients_are_rounded_with_b_and_chains_added_in_order(compiled):
    """(2²⁴ + 1) − 2²⁴ is 0 inside a chain and 1 where a chain ends after the first term."""
    for before, expected in ((0, 0.0), (255, 1.0)):
        a = [np.float32([[0.0]] * before + [[2.0**24], [1.0], [-(2.0**24)]])]
        got = fc.ops.lora_delta_sum([np.ones((2, before + 3), np.float32)], a, [1.0], **compiled)
        assert got.tolist() == [[expected]] * 2
    got = fc.ops.lora_delta_sum([np.float32([[3.0]])], [np.float32([[1.0]])], [1 / 3 + 2.0**-40], **compiled)
    assert got[0, 0] == np.float32(3 * (1 / 3 + 2.0**-40))


@pytest.mark.parametrize("kind", ["float32", "float16", "bfloat16"])
def test_base_is_added_in_its_dtype_with_one_rounding_and_in_place(compiled, kind):
    tie = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}[kind]
    base = round_from_float64(np.ones((70, 50)), kind)
    b, a = [np.full((70, 2), [[1.0, 1.0]], np.float32)], [np.full((2, 50), [[tie], [tie * 2.0**-20]], np.float32)]
    for out in (None, base):
        got = fc.ops.lora_delta_sum(b, a, [1.0], base=base, out=out, **compiled)
        assert (to_float64(got) == 1 + 2 * tie).all()
        assert got.dtype == base.dtype
    assert got is base


def test_a_client_without_weight_is_not_read(compiled):
    b, a = (list(side) for side in make_factors(9, 50, (3, 4, 2), "float32"))
    expected = fc.ops.lora_delta_sum([b[0], b[2]], [a[0], a[2]], [1.5, -1.0], **compiled)
    a[1] = np.full((4, 50), np.nan, np.float32)
    assert same_bits(fc.ops.lora_delta_sum(b, a, [1.5, 0.0, -1.0], **compiled), expected)
    assert (fc.ops.lora_delta_sum(b, a, [0, 0, 0], **compiled) == 0).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_the_client_of_a_non_finite_factor_is_named(compiled, value):
    for name, at in (("b", (8, 3)), ("a", (2, 49))):
        b, a = ([x.copy() for x in side] for side in make_factors(9, 50, (3, 4, 2), "float32"))
        (b if name == "b" else a)[1][at] = value
        with pytest.raises(NonFiniteError, match=rf"client 1: {name} holds {value} at \({at[0]}, {at[1]}\)") as caught:
            fc.ops.lora_delta_sum(b, a, [1, 2, 3], **compiled)
        assert caught.value.row == 1
    base = np.zeros((9, 50), np.float32)
    base[4, 7] = value
    with pytest.raises(NonFiniteError, match=rf"base holds {value} at \(4, 7\)"):
        fc.ops.lora_delta_sum(*make_factors(9, 50, (3, 4, 2), "float32"), [1, 2, 3], base=base, **compiled)


def test_overflow_raises(compiled):
    one, large = np.ones((3, 1), np.float32), np.full((1, 4), 3e38, np.float32)
    with pytest.raises(RangeError, match="does not fit float32"):
        fc.ops.lora_delta_sum([one, one], [large, large], [1, 1], out_dtype="float32", **compiled)
    with pytest.raises(RangeError, match="does not fit float16"):
        fc.ops.lora_delta_sum([one], [np.full((1, 4), 65520, np.float32)], [1], out_dtype="float16", **compiled)
    with pytest.raises(RangeError, match="a coefficient times B does not fit float32"):
        fc.ops.lora_delta_sum([one * 3e38], [one.T], [10.0], out_dtype="float64", **compiled)


def test_flush_mode_of_the_caller_changes_nothing(compiled):
    torch = pytest.importorskip("torch", reason="the caller's flush mode is set through torch")
    b, a = [np.full((9, 1), 2.0**-100, np.float32)], [np.full((1, 50), 3 * 2.0**-47, np.float32)]
    assert torch.set_flush_denormal(True)
    try:
        got = fc.ops.lora_delta_sum(b, a, [1.0], threads=2, **compiled)
    finally:
        torch.set_flush_denormal(False)
    assert (got.view(np.uint32) == 12).all()  # 3 · 2⁻¹⁴⁷ is 12 steps of 2⁻¹⁴⁹


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1), d_out=st.integers(1, 20), d_in=st.integers(1, 60),
    ranks=st.lists(st.integers(0, 6), min_size=1, max_size=5),
)  # fmt: skip
def test_linear_and_unchanged_by_the_gauge_within_the_bound(seed, d_out, d_in, ranks):
    rng = np.random.default_rng(seed)
    b = [rng.normal(size=(d_out, r)).astype(np.float32) for r in ranks]
    a = [rng.normal(size=(r, d_in)).astype(np.float32) for r in ranks]
    c = rng.normal(size=len(ranks))
    # a gauge of powers of two and a permutation: exact in fp32
    turns = [(rng.permutation(r), 2.0 ** rng.integers(-9, 9, r)) for r in ranks]
    b_2 = [np.ascontiguousarray((x * s)[:, p], np.float32) for x, (p, s) in zip(b, turns, strict=True)]
    a_2 = [np.ascontiguousarray((x / s[:, None])[p], np.float32) for x, (p, s) in zip(a, turns, strict=True)]
    got = fc.ops.lora_delta_sum(b, a, c, out_dtype="float64")
    other = fc.ops.lora_delta_sum(b_2, a_2, c, out_dtype="float64")
    assert (np.abs(got - other) <= 2 * bound(b, a, c)).all()
    parts = sum(fc.ops.lora_delta_sum([x], [y], [w], out_dtype="float64") for x, y, w in zip(b, a, c, strict=True))
    assert (np.abs(got - parts) <= 2 * bound(b, a, c)).all()


def test_torch_in_torch_out():
    torch = pytest.importorskip("torch", reason="checks torch inputs")
    b, a = [torch.randn(9, 3).bfloat16(), torch.randn(9, 2).half()], [torch.randn(3, 20), torch.randn(2, 20)]
    base = torch.randn(9, 20).bfloat16()
    got = fc.ops.lora_delta_sum(b, a, torch.tensor([0.5, 2.0]), base=base)
    assert got.dtype == torch.bfloat16
    wide = base.double() + 0.5 * b[0].double() @ a[0].double() + 2 * b[1].double() @ a[1].double()
    assert (got.double() - wide).abs().max() <= wide.abs().max() * 2.0**-8
    assert fc.ops.lora_delta_sum(b, a, [1, 1], base=base, out=base) is base


def test_bad_input_is_refused():
    b, a = (list(side) for side in make_factors(9, 50, (3, 4), "float32"))
    call, one = fc.ops.lora_delta_sum, [1, 1]
    for error, text, arguments, options in (
        (ShapeError, "b: got list, expected a non-empty list", ([], [], []), {}),
        (ShapeError, "got 2 of b and 1 of a", (b, a[:1], [1, 1]), {}),
        (ShapeError, "client 1: b is 9 × 4 and a is 50 × 4, expected 9 × r and", (b, [a[0], a[1].T.copy()], one), {}),
        (ShapeError, r"client 1: b is 8 × 4 and", ([b[0], b[1][:8]], a, [1, 1]), {}),
        (ShapeError, r"client 0: a: got shape \(3,\)", (b, [a[0][:, 0].copy(), a[1]], [1, 1]), {}),
        (ShapeError, "client 0: b: its elements are not contiguous", ([b[0][:, ::2], b[1]], a, [1, 1]), {}),
        (DTypeError, "client 1: a: got float64", (b, [a[0], a[1].astype(np.float64)], [1, 1]), {}),
        (DTypeError, "client 1: b: got list", ([b[0], b[1].tolist()], a, [1, 1]), {}),
        (ShapeError, r"coefficients: got shape \(1,\), expected \(2,\)", (b, a, [1]), {}),
        (WeightError, "coefficient 1: got nan", (b, a, [1, np.nan]), {}),
        (ShapeError, r"base: got shape \(50, 9\)", (b, a, [1, 1]), {"base": np.zeros((50, 9), np.float32)}),
        (DTypeError, "base: got float64", (b, a, [1, 1]), {"base": np.zeros((9, 50))}),
        (ShapeError, r"out: got shape \(9, 49\)", (b, a, [1, 1]), {"out": np.zeros((9, 49), np.float32)}),
        (DTypeError, "out_dtype: got int8|dtype: got int8", (b, a, [1, 1]), {"out_dtype": "int8"}),
    ):  # fmt: skip
        with pytest.raises(error, match=text):
            call(*arguments, **options)
    whole = np.zeros((9 * 50 + 36,), np.float32)
    with pytest.raises(ShapeError, match="out: it overlaps client 1: b"):
        call([b[0], whole[440:476].reshape(9, 4)], a, [1, 1], out=whole[:450].reshape(9, 50))
    with pytest.raises(ShapeError, match="out: it overlaps base"):
        call(b, a, [1, 1], base=whole[30:480].reshape(9, 50), out=whole[:450].reshape(9, 50))
