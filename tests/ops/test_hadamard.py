"""hadamard: the bits of the stage-by-stage definition on every ISA and thread count, and the transform it should be."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from inputs import make_rows, same_bits

import fedcore as fc
from fedcore.errors import DTypeError, NonFiniteError, ShapeError


def matrix(n: int) -> np.ndarray:
    """The orthonormal Hadamard matrix from its formula."""
    index = np.arange(n)
    signs = np.array([[(-1.0) ** int(j & k).bit_count() for k in index] for j in index])
    return signs / np.sqrt(n)


#: block, and how many of them: around vectors, tiles in registers, the second-level cache, passes over memory
SHAPES = [(1 << m, count) for m in range(12) for count in (1, 3)] + [
    (1 << 14, 5),
    (1 << 16, 2),
    (1 << 17, 1),
    (1 << 20, 1),
]


@pytest.mark.parametrize(("block", "count"), SHAPES)
def test_same_bits_for_every_block(compiled, block, count):
    given_row = make_rows(1, block * count, "float32", seed=count)[0]
    expected = fc.ops.hadamard(given_row.copy(), block, backend="reference")
    for threads in (1, 3):
        got = given_row.copy()
        assert fc.ops.hadamard(got, block, threads=threads, **compiled) is got
        assert same_bits(got, expected)


@pytest.mark.parametrize("offset", [1, 2, 3, 5])
def test_unaligned(compiled, offset):
    row = make_rows(1, 8192, "float32")[0]
    memory = np.full(8192 + 64, np.nan, np.float32)
    memory[offset : offset + 8192] = row
    fc.ops.hadamard(memory[offset : offset + 8192], 2048, **compiled)
    assert same_bits(memory[offset : offset + 8192], fc.ops.hadamard(row, 2048, backend="reference"))
    assert np.isnan(memory[:offset]).all()
    assert np.isnan(memory[offset + 8192 :]).all()


def test_elements_that_straddle_words_are_refused(compiled):
    torch = pytest.importorskip("torch")
    memory = np.zeros(4 * 64 + 1, np.uint8)
    for x in (memory[1:].view(np.float32), torch.frombuffer(memory, dtype=torch.float32, offset=1)):
        with pytest.raises(ShapeError, match="expected one contiguous, aligned, writable dimension"):
            fc.ops.hadamard(x, 64, **compiled)


@pytest.mark.parametrize("m", [0, 1, 2, 5, 8])
def test_the_formula(m):
    block = 1 << m
    x = np.random.default_rng(m).normal(size=3 * block).astype(np.float32)
    exact = (x.reshape(-1, block).astype(np.float64) @ matrix(block)).ravel()
    got = fc.ops.hadamard(x.copy(), block)
    assert np.linalg.norm(got - exact) <= (m + 2) * 2.0**-24 * np.linalg.norm(x)


@pytest.mark.parametrize("block", [16, 2048, 1 << 17])
def test_norms_stay_and_twice_is_nothing(block):
    x = np.random.default_rng(0).normal(size=1 << 17).astype(np.float32)
    bound = (np.log2(block) + 3) * 2.0**-24
    once = fc.ops.hadamard(x.copy(), block)
    assert abs(np.linalg.norm(once.astype(np.float64)) / np.linalg.norm(x.astype(np.float64)) - 1) <= bound
    twice = fc.ops.hadamard(once, block).astype(np.float64)
    assert np.linalg.norm(twice - x) <= 2 * bound * np.linalg.norm(x)


def test_one_spike_becomes_signs():
    x = np.zeros(1 << 16, np.float32)
    x[12345] = 256.0
    got = fc.ops.hadamard(x, 1 << 16)
    assert (np.abs(got) == 1).all()
    assert [got[j] for j in (0, 1, 8, 9)] == [(-1.0) ** (12345 & j).bit_count() for j in (0, 1, 8, 9)]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(width=32, min_value=-(2.0**100), max_value=2.0**100), min_size=64, max_size=64))
def test_any_numbers_have_the_bits_of_the_definition(values):
    x = np.array(values, np.float32)
    assert same_bits(fc.ops.hadamard(x.copy(), 32), fc.ops.hadamard(x.copy(), 32, backend="reference"))


def test_subnormals_and_signed_zeros_whatever_the_callers_modes(compiled):
    torch = pytest.importorskip("torch", reason="the caller's flush mode is set through torch")
    x = np.float32([1e-45, -0.0, 0.0, -3e-41] * 512)
    expected = fc.ops.hadamard(x.copy(), 512, backend="reference")
    assert torch.set_flush_denormal(True)
    try:
        got = fc.ops.hadamard(x.copy(), 512, **compiled)
    finally:
        torch.set_flush_denormal(False)
    assert same_bits(got, expected)


@pytest.mark.parametrize("block", [1, 4, 64, 4096, 1 << 17])
def test_what_is_not_finite_is_refused(compiled, block):
    for value in (np.nan, np.inf, -np.inf):
        x = np.ones(1 << 17, np.float32)
        x[-2] = value
        with pytest.raises(NonFiniteError, match="hadamard: an output is not finite"):
            fc.ops.hadamard(x, block, **compiled)
    if block > 1:
        with pytest.raises(NonFiniteError, match="or its sums pass fp32"):
            fc.ops.hadamard(np.full(1 << 17, 3e38, np.float32), block, **compiled)


def test_bad_arguments_are_named():
    x = np.zeros(100, np.float32)
    for block, words in ((0, "power of two"), (-4, "power of two"), (12, "power of two"), (2.0, "a whole number")):
        with pytest.raises(ShapeError, match=f"block: got {block}, expected {words}|expected a {words}"):
            fc.ops.hadamard(x, block)
    for block in (True, np.True_, np.array(True), "4", None):
        with pytest.raises(ShapeError, match=r"^block: got .*, expected a whole number$"):
            fc.ops.hadamard(x, block)
    with pytest.raises(
        ShapeError, match="a multiple of the block an integer of 5001 bits; pad with zeros to an integer"
    ):
        fc.ops.hadamard(x, 1 << 5000)
    with pytest.raises(
        ShapeError, match="got 100 elements, expected a multiple of the block 64; pad with zeros to 128"
    ):
        fc.ops.hadamard(x, 64)
    with pytest.raises(DTypeError, match="hadamard: got float64, expected float32"):
        fc.ops.hadamard(np.zeros(4), 4)
    with pytest.raises(DTypeError, match="hadamard: got list"):
        fc.ops.hadamard([0.0], 1)
    for wrong in (np.zeros((2, 2), np.float32), np.zeros(8, np.float32)[::2], np.frombuffer(bytes(16), np.float32)):
        with pytest.raises(ShapeError, match="expected one contiguous, aligned, writable dimension"):
            fc.ops.hadamard(wrong, 2)
    assert fc.ops.hadamard(np.zeros(0, np.float32), 16).size == 0


def test_torch_in_place():
    torch = pytest.importorskip("torch", reason="checks torch inputs")
    x = torch.randn(4096)
    expected = fc.ops.hadamard(x.numpy().copy(), 1024)
    assert fc.ops.hadamard(x, 1024) is x
    assert same_bits(x.numpy(), expected)
