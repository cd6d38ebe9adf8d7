"""lora_truncate against dense SVD in fp64, each core forced in turn: accuracy, certificates, gauge, and refusals."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fedcore as fc
from fedcore.dtypes import round_from_float64, to_float64
from fedcore.errors import DTypeError, NonFiniteError, ShapeError, WeightError
from fedcore.ops import lora_cores
from fedcore.ops.lora_cores import block_core, gram_core, term_grams
from fedcore.ops.lora_truncate import balanced, core_for, leading
from fedcore.reference.lora_truncate import lora_truncate as qr_core
from tests.oracles.delta import truncated


def factors(kind: str, d_out: int, d_in: int, clients: int, rank: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Stacked b (d_out, R) and a (R, d_in) of one kind, fp64."""
    rng = np.random.default_rng(seed)
    terms = clients * rank
    b, a = rng.standard_normal((d_out, terms)), rng.standard_normal((terms, d_in))
    if kind == "near-identical":
        a = np.tile(a[:rank], (clients, 1)) + 0.1 * a
        b = np.tile(b[:, :rank], clients) + 0.3 * b
    if kind == "graded":
        b *= 10.0 ** -np.linspace(0, 12, terms)
    if kind == "graded near-identical":
        grades = np.tile(10.0 ** -np.linspace(0, 6, rank), clients)
        b = (np.tile(b[:, :rank], clients) + 1e-3 * b) * grades
        a = (np.tile(a[:rank], (clients, 1)) + 1e-3 * a) * grades[:, None]
    return b, a


KINDS = ["flat", "near-identical", "graded", "graded near-identical"]


def dense(found, rank: int) -> np.ndarray:
    """What a core's triplets say of Δ at one rank."""
    return (found.left[:, :rank] * found.values[:rank]) @ found.right[:rank]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("d_out", "d_in", "clients"), [(150, 260, 6), (270, 140, 8), (128, 300, 16)])
def test_the_gram_core_is_the_dense_truncation(kind, d_out, d_in, clients):
    b, a = factors(kind, d_out, d_in, clients, 8)
    share = np.linspace(0.5, -1.5, len(a))
    delta = (b * share) @ a
    size = np.linalg.norm(delta)
    for core in (lambda *of: qr_core(of[0] * of[2], *of[1::2]), gram_core):
        found = core(b, a, share, 8)
        assert found.norm == pytest.approx(size, rel=1e-12)
        for rank in (1, 4, 8):
            best = truncated(delta, rank)
            assert np.linalg.norm(dense(found, rank) - best) <= 1e-7 * size
            report = balanced(found, rank, 2.0)
            optimum = np.linalg.norm(delta - best) / size
            assert report.residual == pytest.approx(optimum, abs=2e-8)
            assert report.least <= optimum + 1e-15
            assert optimum <= report.most + 1e-15


def test_the_gram_core_leaves_what_its_grams_hide_to_qr():
    """Terms that cancel: Δ is 2⁻²⁴ of what its factors are, and squares keep nothing of it."""
    rng = np.random.default_rng(0)
    b, a = rng.standard_normal((600, 40)), rng.standard_normal((40, 400))
    b, a = np.hstack((b, -b)), np.vstack((a, a + 2.0**-24 * rng.standard_normal(a.shape)))
    share = np.ones(80)
    assert core_for(80, 600, 400, 8) == "gram"
    assert gram_core(b, a, share, 8) is None
    delta = b[:, :40] @ (a[:40] - a[40:])
    found = leading(b, a, share, 8)
    assert found.core == "qr"
    assert np.linalg.norm(dense(found, 8) - truncated(delta, 8)) <= 1e-6 * np.linalg.norm(delta)


BLOCK = ["flat", "near-identical", "graded"]


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("kind", BLOCK)
def test_the_block_core_is_near_the_optimum_and_says_how_near(kind, dtype):
    b, a = (x.astype(dtype) for x in factors(kind, 700, 520, 40, 4))
    share = np.linspace(0.5, 1.5, 160) / 40
    delta = (b.astype("f8") * share) @ a.astype("f8")
    size = np.linalg.norm(delta)
    squares = np.linalg.svd(delta, compute_uv=False) ** 2
    found = block_core(b, a, share, 4, term_grams(b, a))
    if found is None:  # fp32 says that it cannot tell, where next to nothing is left
        assert dtype == "f4"
        assert squares[4:].sum() < 0.02 * squares.sum()
        return
    for rank in (1, 4):
        report = balanced(found, rank, 1.0)
        optimum = np.sqrt(squares[rank:].sum()) / size
        ours = np.linalg.norm(delta - report.b @ report.a) / size
        assert report.norm == pytest.approx(size, rel=1e-6)
        assert ours**2 == pytest.approx(report.residual**2, abs=1e-7 if dtype == "f4" else 1e-13)
        assert report.least <= optimum * (1 + 1e-9) <= ours * (1 + 2e-9) <= report.most * (1 + 1e-6)
        assert ours <= 1.01 * optimum
        # the certificate is worth something
        if optimum > 0.1:
            assert report.least >= 0.8 * optimum
        # Σ σ⁴ is bounded from above, and by no more than fp32 makes of it
        assert (squares**2).sum() * (1 - 1e-12) <= found.fourth <= (squares**2).sum() * (2 if dtype == "f4" else 1.001)
    residual, kept = delta - dense(found, 4), dense(found, 4)
    assert abs((residual * kept).sum()) <= 1e-7 * size**2
    again = block_core(b, a, share, 4, term_grams(b, a))
    assert again.left.tobytes() == found.left.tobytes()


def test_terms_far_beyond_both_sides_make_no_grams_of_all_pairs():
    assert [core_for(terms, 64, 64, 2) for terms in (256, 512, 160_000)] == ["qr", "qr", "qr"]
    assert [core_for(terms, 1024, 1024, 16) for terms in (4096, 4097)] == ["block", "qr"]


def test_what_fp32_leaves_open_is_decided_in_fp64(monkeypatch):
    """Clients that are nearly one: what is left is a thousandth of Δ², no more than fp32 can be sure of."""
    monkeypatch.setattr(lora_cores, "OPEN", 1e-3)
    b, a = (x.astype("f4") for x in factors("near-identical", 640, 600, 140, 4))
    share = np.full(560, 1 / 140)
    assert core_for(560, 640, 600, 4) == "block"
    assert block_core(b, a, share, 4, term_grams(b, a)) is None
    delta = (b.astype("f8") * share) @ a.astype("f8")
    report = balanced(leading(b, a, share, 4), 4, 1.0)
    best = np.linalg.norm(delta - truncated(delta, 4)) / np.linalg.norm(delta)
    assert report.core == "block"
    assert report.residual == pytest.approx(best, rel=1e-6)
    assert 0.99 * best <= report.least <= best <= report.most <= 1.0001 * best


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 5), st.integers(1, 5), st.integers(0, 99))
def test_ranks_at_once_are_each_the_best_and_orthogonal_to_what_is_left(d_out, d_in, clients, rank, seed):
    rng = np.random.default_rng(seed)
    ranks = rng.integers(1, rank + 1, clients)
    b = [rng.standard_normal((d_out, r)).astype(np.float32) for r in ranks]
    a = [rng.standard_normal((r, d_in)).astype(np.float32) for r in ranks]
    share = rng.standard_normal(clients)
    delta = sum(c * (x.astype("f8") @ y.astype("f8")) for c, x, y in zip(share, b, a, strict=True))
    size = np.linalg.norm(delta)
    found = fc.ops.lora_truncate(b, a, share, (1, 3, 60), scale=-0.5)
    assert list(found) == [1, 3, 60]
    for wanted, result in found.items():
        product = -0.5 * result.b @ result.a
        assert result.b.shape == (d_out, wanted)
        np.testing.assert_allclose(product, truncated(delta, wanted), atol=1e-11 * size)
        assert abs((product * (delta - product)).sum()) <= 1e-12 * size**2
        assert result.residual == pytest.approx(np.linalg.norm(delta - product) / size, abs=1e-12)
    # rows of a beyond the rank of Δ can still be trained: of length 1 and orthogonal to all others, up to what fits
    wide = found[60]
    kept = min(sum(ranks), d_out, d_in)
    assert (np.linalg.norm(wide.a, axis=1)[:kept] > 0).all()
    fresh = wide.a[kept:d_in]
    np.testing.assert_allclose(fresh @ fresh.T, np.eye(len(fresh)), atol=1e-12)
    np.testing.assert_allclose(fresh @ wide.a[:kept].T, 0.0, atol=1e-11 * (1 + np.abs(wide.a).max()))
    assert not wide.b[:, kept:].any()
    # of a lower rank they are the first ones
    lower = fc.ops.lora_truncate(b, a, share, 30, scale=-0.5)[30]
    np.testing.assert_allclose(lower.a, wide.a[:30], atol=1e-9 * (1 + np.abs(wide.a).max()))


def test_the_gauge_of_a_client_changes_nothing():
    rng = np.random.default_rng(0)
    for d_out, d_in, clients in ((450, 460, 20), (700, 560, 130)):
        b = [rng.standard_normal((d_out, 4)) for _ in range(clients)]
        a = [rng.standard_normal((4, d_in)) for _ in range(clients)]
        a = [a[0] + x / 2 for x in a]
        b = [b[0] + x / 2 for x in b]
        share = np.full(clients, 1 / clients)
        mixes = [np.diag(10.0 ** rng.uniform(-5, 5, 4)) @ np.linalg.qr(rng.standard_normal((4, 4)))[0] for _ in b]
        before = fc.ops.lora_truncate(b, a, share, 4)[4]
        gauged = (
            [x @ m for x, m in zip(b, mixes, strict=True)],
            [np.linalg.solve(m, y) for y, m in zip(a, mixes, strict=True)],
        )
        after = fc.ops.lora_truncate(*gauged, share, 4)[4]
        assert before.core in ("gram", "block")
        assert after.residual == pytest.approx(before.residual, rel=1e-5)
        difference = np.linalg.norm(before.b @ before.a - after.b @ after.a)
        assert difference <= (1e-4 if before.core == "block" else 1e-7) * before.norm


@pytest.mark.parametrize(("d_out", "d_in", "terms"), [(3, 5, 4), (200, 260, 160), (600, 700, 560)])
def test_nothing_at_all_stays_trainable(d_out, d_in, terms):
    rng = np.random.default_rng(0)
    for b, share in (
        (np.zeros((d_out, terms)), np.ones(terms)),
        (rng.standard_normal((d_out, terms)), np.zeros(terms)),
    ):
        result = fc.ops.lora_truncate(b, rng.standard_normal((terms, d_in)), share, 3)[3]
        assert (result.norm, result.residual, result.most, result.least) == (0, 0, 0, 0)
        assert not result.b.any()
        np.testing.assert_allclose(result.a @ result.a.T, np.eye(3), atol=1e-12)


@pytest.mark.parametrize("kind", ["float32", "float64", "float16", "bfloat16", "tensor"])
def test_clients_of_rank_zero(kind):
    """They add nothing to others, wherever they stand; alone they are a fresh adapter."""
    rng = np.random.default_rng(0)
    b, a = [rng.standard_normal((6, r)) for r in (0, 2, 0, 3)], [rng.standard_normal((r, 5)) for r in (0, 2, 0, 3)]
    if kind == "tensor":
        torch = pytest.importorskip("torch", reason="torch tensors are among what it takes")
        b, a = ([torch.from_numpy(x) for x in side] for side in (b, a))
    else:
        b, a = ([round_from_float64(x, kind) for x in side] for side in (b, a))
    found = fc.ops.lora_truncate(b, a, [7.0, 1.0, -2.0, 0.5], 2)[2]
    alone = fc.ops.lora_truncate(b[1::2], a[1::2], [1.0, 0.5], 2)[2]
    assert np.array_equal(found.b, alone.b)
    assert np.array_equal(found.a, alone.a)
    assert found.norm > 0
    for empty in (([b[0], b[2]], [a[0], a[2]], [1.0, 2.0]), (b[0], a[0], [])):
        for rank, result in fc.ops.lora_truncate(*empty, [3, 7]).items():
            assert (result.norm, result.residual, result.most, result.least) == (0, 0, 0, 0)
            assert (tuple(result.b.shape), tuple(result.a.shape)) == ((6, rank), (rank, 5))
            assert not result.b.any()
            gram = np.diag([1.0] * min(rank, 5) + [0.0] * max(rank - 5, 0))
            np.testing.assert_allclose(result.a @ result.a.T, gram, atol=1e-12)


@pytest.mark.parametrize(("d_out", "d_in", "rank"), [(3, 5, 4), (30, 40, 4), (300, 260, 40), (520, 540, 256)])
def test_terms_that_cancel_to_nothing_stay_trainable(d_out, d_in, rank):
    """(B, A) and (−B, A), its halves, and another gauge of it: not a bit of Δ but rounding, which is no direction."""
    rng = np.random.default_rng(0)
    b, a = (rng.standard_normal(shape).astype("f4") for shape in ((d_out, rank), (rank, d_in)))
    for sides, share in (
        (([b, -b], [a, a]), [1.0, 1.0]),
        (([b, b, b], [a, -a, -a]), [2.0, 1.0, 1.0]),
        (([b, -b], [2 * a, a / 2]), [1.0, 4.0]),
    ):
        result = fc.ops.lora_truncate(*sides, share, 3)[3]
        assert (result.norm, result.residual, result.most, result.least) == (0, 0, 0, 0)
        assert not result.b.any()
        np.testing.assert_allclose(result.a @ result.a.T, np.eye(3), atol=1e-12)


def test_what_cancelling_terms_leave_is_told_from_their_rounding():
    """2⁻³⁰ of the terms is left, in one direction: that is kept, and the bounds hold all that rounding may do."""
    rng = np.random.default_rng(0)
    b, a = rng.standard_normal((30, 4)).astype("f4"), rng.standard_normal((4, 40)).astype("f4")
    left = [rng.standard_normal(shape).astype("f4") for shape in ((30, 1), (1, 40))]
    delta = 2.0**-30 * left[0].astype("f8") @ left[1].astype("f8")
    result = fc.ops.lora_truncate([b, -b, left[0]], [a, a, left[1]], [1.0, 1.0, 2.0**-30], 3)[3]
    size = np.linalg.norm(delta)
    assert result.norm == pytest.approx(size, rel=1e-6)
    np.testing.assert_allclose(result.b @ result.a, delta, atol=1e-6 * size)
    assert (np.linalg.norm(result.b, axis=0) > 0).tolist() == [True, False, False]
    np.testing.assert_allclose(np.linalg.norm(result.a[1:], axis=1), 1.0)
    assert result.least == 0 < result.residual < np.linalg.norm(delta - result.b @ result.a) / size * 100
    noise = (30 + 40 + 9**2) * 2.0**-53 * (2 * np.linalg.norm(b, axis=0) @ np.linalg.norm(a, axis=1) + size)
    lost = result.residual * result.norm
    assert result.most == pytest.approx((lost + noise) / (result.norm - noise), rel=1e-6)


def test_rows_beyond_all_inputs_are_zeros():
    result = fc.ops.lora_truncate([np.eye(5, 2)], [np.ones((2, 2))], [1.0], 4)[4]
    np.testing.assert_allclose(np.linalg.norm(result.a, axis=1), [np.sqrt(2), 1, 0, 0])
    assert not result.b[:, 1:].any()


def test_fewer_directions_than_ranks():
    """Δ of rank 2 out of 600 terms: the other directions keep unit rows in a and zeros in b."""
    rng = np.random.default_rng(0)
    b = rng.standard_normal((640, 2)) @ rng.standard_normal((2, 600))
    a = rng.standard_normal((600, 610))
    result = fc.ops.lora_truncate(b, a, np.ones(600), 5)[5]
    assert result.residual < 1e-6
    np.testing.assert_allclose(result.b @ result.a, b @ a, atol=1e-6 * np.linalg.norm(b @ a))
    assert (np.linalg.norm(result.a, axis=1) > 0.5).all()


@pytest.mark.parametrize("size", [1e-38, 1e30])
def test_sizes_whose_squares_do_not_fit_fp32_are_taken_in_fp64(size):
    rng = np.random.default_rng(0)
    b = (size * rng.standard_normal((600, 560))).astype("f4")
    a = (rng.standard_normal((560, 640)) / size / 100).astype("f4")
    result = fc.ops.lora_truncate(b, a, np.ones(560), 2)[2]
    delta = b.astype("f8") @ a.astype("f8")
    assert result.core == "block"
    assert result.norm == pytest.approx(np.linalg.norm(delta), rel=1e-9)
    assert result.residual <= 1.01 * np.linalg.norm(delta - truncated(delta, 2)) / result.norm


def test_dtypes_are_taken_as_they_are():
    torch = pytest.importorskip("torch", reason="torch tensors are among what it takes")
    rng = np.random.default_rng(0)
    b, a = rng.standard_normal((9, 3)), rng.standard_normal((3, 7))
    for dtype in ("float16", "bfloat16", "float32"):
        x, y = (round_from_float64(v, dtype) for v in (b, a))
        exact = [to_float64(v) for v in (x, y)]
        expected = fc.ops.lora_truncate(*exact, np.ones(3), 2)[2]
        tensors = [torch.from_numpy(v).to(getattr(torch, dtype)) for v in exact]
        assert fc.ops.lora_truncate(x, y, np.ones(3), 2)[2].b.tobytes() == expected.b.tobytes()
        found = fc.ops.lora_truncate(*tensors, torch.ones(3), 2)[2]
        assert found.b.numpy().tobytes() == expected.b.tobytes()


def test_what_it_cannot_take_is_named():
    b, a = np.ones((4, 2)), np.ones((2, 5))
    truncate = fc.ops.lora_truncate
    for ranks in (0, [], [2, -1], 1.5, None, True, [2, True], np.array([True]), -(10**5000)):
        with pytest.raises(ShapeError, match=r"got ranks .*, expected whole numbers of at least 1"):
            truncate([b], [a], [1.0], ranks)
    with pytest.raises(ShapeError, match=r"got coefficients \(2,\), expected \(1,\)"):
        truncate([b], [a], [1.0, 2.0], 1)
    with pytest.raises(ShapeError, match=r"got coefficients \(1,\), expected \(2,\)"):
        truncate(b, a, [1.0], 1)
    with pytest.raises(ShapeError, match="got 2 b and 1 a"):
        truncate([b, b], [a], [1.0, 1.0], 1)
    with pytest.raises(ShapeError, match=r"row 1: got b \(4, 2\) and a \(5, 2\), expected b \(d_out, r\)"):
        truncate([b, b], [a, a.T], [1.0, 1.0], 1)
    with pytest.raises(ShapeError, match=r"got a factor of shape \(3,\)"):
        truncate([np.ones(3)], [a], [1.0], 1)
    for sides in (([b[:0]], [a]), ([b], [a[:, :0]])):
        with pytest.raises(ShapeError, match=r"with the sizes of row 0, [04] and [05], neither of them 0"):
            truncate(*sides, [1.0], 1)
    with pytest.raises(DTypeError, match="int64"):
        truncate([b.astype(int)], [a], [1.0], 1)
    for scale in (0.0, np.inf):
        with pytest.raises(WeightError, match="scale"):
            truncate([b], [a], [1.0], 1, scale=scale)
    with pytest.raises(WeightError, match="coefficient 1 is nan"):
        truncate([b, b], [a, a], [1.0, np.nan], 1)
    bad = a.copy()
    bad[1, 3] = np.inf
    with pytest.raises(NonFiniteError, match="row 1: its factors hold NaN or Inf") as caught:
        truncate([b, b], [a, bad], [1.0, 1.0], 1)
    assert caught.value.row == 1
