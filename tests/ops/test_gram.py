"""gram: the documented bound against fp64, one set of bits for every thread count and ISA but AMX, and hostile rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from inputs import BLOCKS, LANES, make_rows, same_bits

import fedcore as fc
from fedcore.dtypes import to_float64
from fedcore.errors import NonFiniteError
from fedcore.reference.gram import BLOCK, CHAINS, CHUNK
from fedcore.rowtable import RowTable


def exact_gram(rows, center=None) -> np.ndarray:
    x = np.stack([to_float64(r) for r in rows]) - (0.0 if center is None else to_float64(center))
    return x @ x.T


def within_bound(got: np.ndarray, exact: np.ndarray) -> bool:
    size = exact.diagonal()[:, None] + exact.diagonal()
    return bool((np.abs(got - exact) <= fc.ops.gram_epsilon() / 4 * size).all())


def distances(gram: np.ndarray) -> np.ndarray:
    return gram.diagonal()[:, None] + gram.diagonal() - 2 * gram


@pytest.mark.parametrize("d", LANES + BLOCKS)
def test_bound_at_every_boundary_of_columns(compiled, dtype, d):
    rows, center = make_rows(9, d, dtype), make_rows(1, d, dtype, seed=4)[0]
    for middle in (None, center):
        assert within_bound(fc.ops.gram(rows, middle, **compiled), exact_gram(rows, middle))


@pytest.mark.parametrize("n", [1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 48, 49, 64, 65, 100])
def test_bound_at_every_boundary_of_rows(compiled, n):
    rows = make_rows(n, 700, "float32")
    got = fc.ops.gram(rows, rows[0], **compiled)
    assert within_bound(got, exact_gram(rows, rows[0]))
    assert same_bits(got, np.ascontiguousarray(got.T))


@pytest.mark.parametrize(("n", "d"), [(37, 30000), (5, 8193), (12, 6146), (20, 4099)])
def test_same_bits_for_every_thread_count_and_isa(dtype, monkeypatch, n, d):
    """Also where a last, short block is packed into the place of a whole one."""
    native = pytest.importorskip("fedcore.native", reason="the C kernels are not built")
    rows, center = make_rows(n, d, dtype, spread=0.5), make_rows(1, d, "float32")[0]
    seen: dict[str, set[bytes]] = {"fp32 sums": set(), "integer sums": set()}
    for isa in native.isa_available():
        monkeypatch.setenv("FEDCORE_ISA", isa)
        for threads in (1, 2, 3):
            kind = "integer sums" if isa == "amx" else "fp32 sums"
            seen[kind].add(fc.ops.gram(rows, center, backend="c", threads=threads).tobytes())
    assert len(seen["fp32 sums"]) == 1
    assert len(seen["integer sums"]) == ("amx" in native.isa_available())


@pytest.mark.parametrize(
    ("n", "first"),
    [(70, 0), (70, 66), (68, 0), (68, 66), (133, 1), (133, 61), (133, 64), (133, 132), (64, 64), (66, 66), (72, 72)],
)
def test_only_rows_from_the_first_that_is_asked_for(monkeypatch, n, first):
    """What a cohort that grows adds to its Gram: the others are left alone, and the bits are those of the whole."""
    native = pytest.importorskip("fedcore.native", reason="the C kernels are not built")
    from fedcore.native.gram import gram

    table = RowTable.from_arrays(make_rows(n, 300, "float32"))
    monkeypatch.setenv("FEDCORE_ISA", "ref")
    portable = gram(table)
    for isa in native.isa_available():
        monkeypatch.setenv("FEDCORE_ISA", isa)
        expected = gram(table) if isa == "amx" else portable.copy()
        total = np.zeros((n, n))
        expected[:first, :first] = total[:first, :first] = 7.0
        assert same_bits(gram(table, total=total, first=first), expected), isa


def chained(x: np.ndarray) -> np.ndarray:
    """The definition's Gram of whole numbers so small that fp64 holds what a fused multiply-add in fp32 rounds."""
    total = np.zeros((len(x), len(x)))
    for chunk in range(0, x.shape[1], CHUNK):
        of_chunk = np.zeros_like(total)
        end = min(chunk + CHUNK, x.shape[1])
        for block in range(chunk, end, BLOCK):
            chains = [np.zeros(total.shape, np.float32) for _ in range(CHAINS)]
            for k in range(block, min(block + BLOCK, end)):
                c = (k - block) % CHAINS
                chains[c] = (chains[c] + np.multiply.outer(x[:, k], x[:, k])).astype(np.float32)
            while len(chains) > 1:
                chains = [a + b for a, b in zip(chains[::2], chains[1::2], strict=True)]
            of_chunk += chains[0]
        total += of_chunk
    return total


@pytest.mark.parametrize("d", [1, 7, 9, 255, 300, 8192 + 515])
def test_bits_of_the_definition(monkeypatch, d):
    native = pytest.importorskip("fedcore.native", reason="the C kernels are not built")
    x = np.random.default_rng(d).integers(-4095, 4096, (21, d)).astype(np.float64)
    for isa in native.isa_available():
        monkeypatch.setenv("FEDCORE_ISA", isa)
        if isa != "amx":
            assert same_bits(fc.ops.gram(list(x.astype(np.float32)), backend="c"), chained(x)), isa


def test_segments_do_not_change_the_bits(compiled):
    rows = make_rows(3, 20000, "float32")
    cuts = np.array([0, 3, 255, 4097, 12000, 19999, 20000])
    offsets = np.repeat((cuts[:-1] * 4)[:, None], 3, axis=1)
    table = RowTable(rows, offsets, np.diff(cuts), "float32")
    assert same_bits(fc.ops.gram(table, rows[1], **compiled), fc.ops.gram(rows, rows[1], **compiled))


@pytest.mark.parametrize("scale", [1e30, 1e-30, 3e38, 1e-44])
def test_squares_neither_overflow_nor_vanish(compiled, scale):
    rng = np.random.default_rng(0)
    rows = [(rng.uniform(0.1, 1, 3000) * rng.choice([-1, 1], 3000) * scale).astype(np.float32) for _ in range(5)]
    rows.append(rng.normal(size=3000).astype(np.float32))
    got, exact = fc.ops.gram(rows, **compiled), exact_gram(rows)
    assert within_bound(got, exact)
    np.testing.assert_allclose(got.diagonal(), exact.diagonal(), rtol=1e-5)
    centered = fc.ops.gram(rows, rows[1], **compiled)
    assert within_bound(centered, exact_gram(rows, rows[1]))


def test_attacker_in_the_cohort_leaves_honest_distances_exact(compiled):
    """Weights of size 1, honest rows that differ by 1e-4 of it, one row at +50, an honest centre."""
    rng = np.random.default_rng(0)
    base = rng.normal(size=200_000)
    rows = [(base + 1e-4 * rng.normal(size=base.size)).astype(np.float32) for _ in range(9)]
    rows.append((base + 50).astype(np.float32))
    exact = distances(exact_gram(rows, rows[0]))
    got = distances(fc.ops.gram(rows, rows[0], **compiled))
    honest = np.ix_(range(9), range(9))
    off = ~np.eye(9, dtype=bool)
    assert (np.abs(got - exact)[honest][off] <= 1e-6 * exact[honest][off]).all()


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**31), n=st.integers(1, 20), d=st.integers(1, 600))
def test_permuting_rows_permutes_the_result(compiled, seed, n, d):
    rows = make_rows(n, d, "float32", seed, spread=1.0)
    order = np.random.default_rng(seed).permutation(n)
    one, two = fc.ops.gram(rows, **compiled), fc.ops.gram([rows[i] for i in order], **compiled)
    assert same_bits(np.ascontiguousarray(one[np.ix_(order, order)]), two)


def test_non_finite_input_is_named(compiled):
    rows = make_rows(20, 3000, "float32")
    rows[17][2999] = np.inf
    with pytest.raises(NonFiniteError, match="row 17 holds inf at column 2999"):
        fc.ops.gram(rows, **compiled)
    with pytest.raises(NonFiniteError, match="center: row 0 holds inf"):
        fc.ops.gram(rows[:3], rows[17], **compiled)
