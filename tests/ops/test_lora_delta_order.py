"""lora_delta_median and lora_delta_trimmed_mean: the bits of the order statistic of dense products, on every ISA."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from inputs import same_bits
from lora_factors import SHAPES, make_factors

import fedcore as fc
from fedcore.dtypes import to_float64
from fedcore.errors import NonFiniteError, RangeError, RuleError, ShapeError, WeightError

OUT = ("float32", "float64", "float16", "bfloat16")
#: more clients than fit registers, ranks of 0 among them; strips and tiles that are cut
MANY = ((9, 98, tuple(i % 4 for i in range(40))), (65, 10, (2,) * 33), (130, 97, (1, 3)))


def statistics(b, a, c, f, **options):
    """The median and the trimmed mean by the ops."""
    return (
        fc.ops.lora_delta_median(b, a, c, **options),
        fc.ops.lora_delta_trimmed_mean(b, a, f, c, **options),
    )


def dense_statistics(b, a, c, f, out_dtype="float32"):
    """The same of dense products."""
    rows = [
        fc.ops.lora_delta_sum([x], [y], [w], backend="c").ravel()
        for x, y, w in zip(b, a, np.ones(len(b)) if c is None else c, strict=True)
    ]
    shape = b[0].shape[0], a[0].shape[1]
    return (
        fc.ops.median(rows, out_dtype=out_dtype).reshape(shape),
        fc.ops.trimmed_mean(rows, f, out_dtype=out_dtype).reshape(shape),
    )


@pytest.mark.parametrize("shape", SHAPES + MANY)
def test_bits_are_those_of_dense_products(compiled, dtype, shape):
    b, a = make_factors(*shape, dtype)
    f, c = (len(b) - 1) // 3, np.linspace(-0.4, 1.3, len(b)) / 2
    for out_dtype, threads in zip(OUT, (1, 2, 3, 1), strict=True):
        got = statistics(b, a, c, f, out_dtype=out_dtype, threads=threads, **compiled)
        for one, other in zip(got, dense_statistics(b, a, c, f, out_dtype), strict=True):
            assert same_bits(one, other), out_dtype


@pytest.mark.parametrize("shape", [SHAPES[1], SHAPES[4], (9, 98, (2, 0, 1, 3))])
def test_the_definition_has_the_same_bits(dtype, shape):
    b, a = make_factors(*shape, dtype)
    f = (len(b) - 1) // 2
    for one, other in zip(
        statistics(b, a, None, f, backend="reference"), statistics(b, a, None, f, backend="c"), strict=True
    ):
        assert same_bits(one, other)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1), d_out=st.integers(1, 12), d_in=st.integers(1, 40),
    ranks=st.lists(st.integers(0, 3), min_size=1, max_size=7),
)  # fmt: skip
def test_the_order_of_clients_does_not_matter_and_values_stay_in_range(seed, d_out, d_in, ranks):
    rng = np.random.default_rng(seed)
    b = [rng.normal(size=(d_out, r)).astype(np.float32) for r in ranks]
    a = [rng.normal(size=(r, d_in)).astype(np.float32) for r in ranks]
    c, f, turn = rng.normal(size=len(ranks)), (len(ranks) - 1) // 2, rng.permutation(len(ranks))
    got = statistics(b, a, c, f, out_dtype="float64")
    turned = statistics([b[i] for i in turn], [a[i] for i in turn], c[turn], f, out_dtype="float64")
    products = np.stack([w * to_float64(x) @ to_float64(y) for w, x, y in zip(c, b, a, strict=True)])
    for one, other in zip(got, turned, strict=True):
        assert same_bits(one, other)
        assert (one >= products.min(0) - 1e-5).all()
        assert (one <= products.max(0) + 1e-5).all()
    np.testing.assert_allclose(got[0], np.median(products, axis=0), atol=1e-5)


def test_absent_clients_count_as_zeros_unread(compiled):
    b, a = (list(side) for side in make_factors(9, 50, (3, 4, 2), "float32"))
    a[1] = np.full((4, 50), np.nan, np.float32)
    got = statistics(b, a, [1, 0, 1], 1, **compiled)
    empty = [b[0], b[1][:, :0].copy(), b[2]], [a[0], a[1][:0], a[2]]
    for one, other in zip(got, dense_statistics(*empty, None, 1), strict=True):
        assert same_bits(one, other)
    assert not np.signbit(fc.ops.lora_delta_median([-x for x in empty[0]], empty[1], [0, 0, 0], **compiled)).any()


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_a_non_finite_factor_is_named_even_where_it_would_be_dropped(compiled, value):
    b, a = ([x.copy() for x in side] for side in make_factors(9, 50, (3, 4, 2), "float32"))
    b[2][7, 1] = value
    for call in (lambda: fc.ops.lora_delta_median(b, a, **compiled), lambda: statistics(b, a, None, 1, **compiled)):
        with pytest.raises(NonFiniteError, match=rf"client 2: b holds {value} at \(7, 1\)"):
            call()


def test_overflow_raises(compiled):
    b, a = [np.full((9, 1), v, np.float32) for v in (1e5, 1e5, 1e30)], [np.ones((1, 50), np.float32)] * 3
    with pytest.raises(RangeError, match="lora_delta_median: a finite result does not fit float16"):
        fc.ops.lora_delta_median(b, a, out_dtype="float16", **compiled)
    with pytest.raises(RangeError, match=r"lora_delta_trimmed_mean: .* or a client's product float32"):
        fc.ops.lora_delta_trimmed_mean(b, a, 1, [1, 1, 1e20], **compiled)


def test_bad_input_is_refused():
    b, a = make_factors(9, 50, (3, 4, 2), "float32")
    with pytest.raises(RuleError, match="lora_delta_trimmed_mean: got f=2, expected a whole number from 0 to 1"):
        fc.ops.lora_delta_trimmed_mean(b, a, 2)
    with pytest.raises(ShapeError, match="client 1: b is 9 × 4 and a is 50 × 4"):
        fc.ops.lora_delta_median(b, [a[0], a[1].T.copy(), a[2]])
    with pytest.raises(WeightError, match="coefficient 0: got nan"):
        fc.ops.lora_delta_median(b, a, [np.nan, 1, 1])
    with pytest.raises(ShapeError, match=r"out: got shape \(50, 9\)"):
        fc.ops.lora_delta_median(b, a, out=np.zeros((50, 9)))


def test_torch_in_torch_out():
    torch = pytest.importorskip("torch", reason="checks torch inputs")
    b, a = [torch.randn(9, 2).bfloat16() for _ in range(5)], [torch.randn(2, 20).half() for _ in range(5)]
    got = fc.ops.lora_delta_median(b, a, out_dtype="bfloat16")
    dense = torch.stack([x.double() @ y.double() for x, y in zip(b, a, strict=True)])
    assert got.dtype == torch.bfloat16
    assert (got.double() - dense.median(0).values).abs().max() <= 0.01 * dense.abs().max()
    out = torch.empty(9, 20)
    assert fc.ops.lora_delta_trimmed_mean(b, a, 1, out=out) is out
