"""The law of lora_gram and lora_blocks: the definition's bits on every ISA and thread count, its bound against fp64."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lora_factors import SHAPES, make_factors

import fedcore as fc
from fedcore.dtypes import to_float64
from fedcore.errors import BackendError, DTypeError, NonFiniteError, RangeError, ShapeError, WeightError

#: around chunks of 1024 elements, packed 256 at a time, and tiles of 8 × 24 terms
LONG = ((1023, 255, (7,)), (257, 1025, (8, 17, 1)), (2050, 3, (24, 9)), (5, 1024, (0, 33)), (2, 300, (300, 130)))


def dense_gram(modules) -> tuple[np.ndarray, np.ndarray]:
    """Inner products of the dense updates in extended precision, and the documented bound."""
    total, error = 0.0, 0.0
    for b, a, scales in modules:
        wide = [(s * to_float64(x), to_float64(y)) for s, x, y in zip(scales, b, a, strict=True)]
        deltas = np.stack([(x.astype(np.longdouble) @ y.astype(np.longdouble)).ravel() for x, y in wide])
        size = np.array([np.linalg.norm(x, axis=0) @ np.linalg.norm(y, axis=1) for x, y in wide])
        ranks = np.array([len(y) for y in a])
        total = total + deltas @ deltas.T
        scale = b[0].shape[0] + a[0].shape[1] + ranks[:, None] * ranks[None, :] + 8
        error = error + scale * 2.0**-53 * size[:, None] * size[None, :]
    return total.astype(np.float64), error


@pytest.mark.parametrize("shape", SHAPES + LONG)
def test_same_bits_at_every_boundary(compiled, dtype, shape):
    b, a = make_factors(*shape, dtype)
    scales = np.linspace(-0.7, 2.1, len(b))
    expected = fc.ops.lora_blocks(b, a, backend="reference")
    for threads in (1, 3):
        for got, wanted in zip(fc.ops.lora_blocks(b, a, threads=threads, **compiled), expected, strict=True):
            np.testing.assert_array_equal(got, wanted)
    if sum(shape[2]) < 100:
        got = fc.ops.lora_gram([(b, a, scales)] * 2, threads=2, **compiled)
        np.testing.assert_array_equal(got, fc.ops.lora_gram([(b, a, scales)] * 2, backend="reference"))


@pytest.mark.parametrize("shape", SHAPES + LONG[:3])
def test_within_the_bound_of_dense_updates(shape):
    """Two modules of different sizes; fp64 factors too."""
    b, a = make_factors(*shape, "float16")
    wide = [
        [to_float64(x) / 3 for x in side] for side in make_factors(5, 40, tuple(r % 3 for r in shape[2]), "float32")
    ]
    modules = [(b, a, np.linspace(0.5, 3, len(b))), (*wide, np.linspace(2, -1, len(b)))]
    exact, error = dense_gram(modules)
    got = fc.ops.lora_gram(iter(modules), threads=2)
    assert (np.abs(got - exact) <= error).all()
    assert (got == got.T).all()


def test_fp64_factors_have_the_same_bits_on_every_isa(compiled, monkeypatch):
    rng = np.random.default_rng(0)
    b, a = [rng.normal(size=(300, r)) for r in (5, 9)], [rng.normal(size=(r, 1100)) for r in (5, 9)]
    got = fc.ops.lora_blocks(b, a, **compiled)
    monkeypatch.setenv("FEDCORE_ISA", "ref")
    for one, other in zip(got, fc.ops.lora_blocks(b, a, threads=2, backend="c"), strict=True):
        np.testing.assert_array_equal(one, other)


def test_blocks_are_those_of_the_stack():
    b, a = make_factors(9, 33, (3, 0, 4), "float32")
    gram_b, gram_a = fc.ops.lora_blocks(b, a)
    stack_b, stack_a = np.concatenate(b, 1).astype(np.float64), np.concatenate(a).astype(np.float64)
    np.testing.assert_allclose(gram_b, stack_b.T @ stack_b, rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(gram_a, stack_a @ stack_a.T, rtol=1e-13, atol=1e-13)


def test_near_identical_factors_keep_their_difference():
    """⟨Δ_1 − Δ_2, Δ_1 − Δ_2⟩ from the Gram, where updates differ by 1e-5: sums in fp32 would leave noise alone."""
    rng = np.random.default_rng(2)
    b, a = rng.normal(size=(500, 4)).astype(np.float32), rng.normal(size=(4, 700)).astype(np.float32)
    moved = (b + 1e-5 * rng.normal(size=b.shape)).astype(np.float32)
    gram = fc.ops.lora_gram([([b, moved], [a, a], None)])
    exact = np.linalg.norm((b.astype(np.float64) - moved) @ a.astype(np.float64)) ** 2
    assert gram[0, 0] + gram[1, 1] - 2 * gram[0, 1] == pytest.approx(exact, rel=1e-3)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1), d_out=st.integers(1, 30), d_in=st.integers(1, 40),
    ranks=st.lists(st.integers(0, 5), min_size=1, max_size=5),
)  # fmt: skip
def test_an_entry_depends_on_its_two_clients_and_not_on_their_gauge(seed, d_out, d_in, ranks):
    rng = np.random.default_rng(seed)
    b = [rng.normal(size=(d_out, r)).astype(np.float32) for r in ranks]
    a = [rng.normal(size=(r, d_in)).astype(np.float32) for r in ranks]
    whole = fc.ops.lora_gram([(b, a, None)])
    i, j = rng.integers(0, len(ranks), 2)
    pair = fc.ops.lora_gram([([b[max(i, j)], b[min(i, j)]], [a[max(i, j)], a[min(i, j)]], None)])
    assert pair[0, 1] == pytest.approx(whole[i, j], rel=1e-12, abs=1e-9)
    gauge = [np.linalg.qr(rng.normal(size=(r, r)))[0] for r in ranks]
    turned = fc.ops.lora_gram([([x @ m for x, m in zip(b, gauge, strict=True)],
                                [m.T @ y for y, m in zip(a, gauge, strict=True)], None)])  # fmt: skip
    np.testing.assert_allclose(turned, whole, atol=1e-11 * (1 + np.abs(whole).max()))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_the_client_of_a_non_finite_factor_is_named(compiled, value):
    for name, at in (("b", (8, 3)), ("a", (2, 49))):
        b, a = ([x.copy() for x in side] for side in make_factors(9, 50, (3, 4, 2), "float32"))
        good = (b, a, [1, 1, 1])
        (b if name == "b" else a)[1][at] = value
        fine = make_factors(9, 50, (3, 4, 2), "float32")
        with pytest.raises(NonFiniteError, match=rf"module 1: lora_gram: client 1: {name} holds {value}") as caught:
            fc.ops.lora_gram([(*fine, None), good], **compiled)
        assert caught.value.row == 1
        with pytest.raises(NonFiniteError, match=rf"lora_blocks: client 1: {name} holds {value}"):
            fc.ops.lora_blocks(b, a, **compiled)


def test_bad_input_is_refused():
    b, a = make_factors(9, 50, (3, 4), "float32")
    for error, text, modules in (
        (ShapeError, "modules: got none", []),
        (ShapeError, "module 1: got 1 clients, expected 2", [(b, a, None), (b[:1], a[:1], None)]),
        (ShapeError, "module 0: client 1: b is 9 × 4 and a is 50 × 4", [(b, [a[0], a[1].T.copy()], None)]),
        (ShapeError, r"module 0: coefficients: got shape \(1,\)", [(b, a, [1.0])]),
        (WeightError, "module 0: coefficient 1: got inf", [(b, a, [1.0, np.inf])]),
        (DTypeError, "module 0: client 0: b: got int64", [([np.ones((9, 3), int), b[1]], a, None)]),
        (RangeError, "module 0: lora_gram: an inner product of", [([np.full((9, 1), 1e200)], [np.ones((1, 2))], None)]),
    ):  # fmt: skip
        with pytest.raises(error, match=text):
            fc.ops.lora_gram(modules)
    with pytest.raises(
        ShapeError, match=r"^module 'layers.1.q_proj': got 1 clients, expected 2 as in module 'layers.0.q_proj'"
    ):
        fc.ops.lora_gram([(b, a, None), (b[:1], a[:1], None)], names=["layers.0.q_proj", "layers.1.q_proj"])


def test_an_error_of_the_environment_names_no_module(monkeypatch):
    b, a = make_factors(9, 50, (3, 4), "float32")
    monkeypatch.setenv("FEDCORE_ISA", "riscv")
    with pytest.raises(BackendError, match=r"^FEDCORE_ISA: got 'riscv'"):
        fc.ops.lora_gram([(b, a, None)], backend="c")
    with pytest.raises(BackendError, match=r"^backend: got backend 'cuda'"):
        fc.ops.lora_gram([(b, a, None)], backend="cuda")
