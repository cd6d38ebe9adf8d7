"""Triplets of a matrix that is given whole, against its SVD in fp64."""

from __future__ import annotations

import numpy as np
import pytest

from fedcore.lora import order
from fedcore.ops import lora_dense
from fedcore.ops.lora_dense import dense_core
from fedcore.ops.lora_truncate import balanced


def matrix(d_out: int, d_in: int, spread: float, size: float = 1.0) -> np.ndarray:
    """Singular values that fall by `spread` decades, beside noise of one size."""
    rng = np.random.default_rng(0)
    b, a = rng.standard_normal((d_out, 40)), rng.standard_normal((40, d_in))
    return (size * ((b * 10.0 ** -np.linspace(0, spread, 40)) @ a + rng.standard_normal((d_out, d_in)))).astype("f4")


@pytest.mark.parametrize("size", [1.0, 1e-30, 1e30])
@pytest.mark.parametrize(("d_out", "d_in", "spread"), [(600, 520, 0.0), (520, 610, 2.0)])
def test_the_triplets_are_near_the_optimum_and_say_how_near(d_out, d_in, spread, size, monkeypatch):
    monkeypatch.setattr(lora_dense, "COLUMNS", 200)
    delta = matrix(d_out, d_in, spread, size)
    squares = np.linalg.svd(delta.astype("f8") / size, compute_uv=False) ** 2
    norm = np.sqrt(squares.sum())
    found = dense_core(delta, 8)
    np.testing.assert_allclose(found.left.T @ found.left, np.eye(8), atol=1e-12)
    np.testing.assert_allclose(found.right @ found.right.T, np.eye(8), atol=1e-12)
    assert (squares**2).sum() <= found.fourth / size**4 <= 1.001 * (squares**2).sum()
    for rank in (1, 8):
        report = balanced(found, rank, 0.5 * size)
        optimum = np.sqrt(squares[rank:].sum()) / norm
        ours = np.linalg.norm(delta.astype("f8") / size - 0.5 * report.b @ report.a) / norm
        assert report.norm == pytest.approx(size * norm, rel=1e-12)
        assert ours == pytest.approx(report.residual, rel=1e-9)
        assert report.least <= optimum <= ours * (1 + 1e-9) <= report.most * (1 + 2e-9)
        assert ours <= 1.005 * optimum


def test_a_large_median_is_truncated_without_grams_and_nothing_stays_nothing(monkeypatch):
    monkeypatch.setattr(order, "leading", None)
    report = order._truncated(matrix(600, 520, 0.0), 8, 1.0)
    assert (report.core, report.a.shape) == ("block", (8, 520))
    nothing = order._truncated(np.zeros((520, 600), np.float32), 8, 1.0)
    assert (nothing.norm, nothing.residual, nothing.most, nothing.least) == (0, 0, 0, 0)
    assert not nothing.b.any()
    np.testing.assert_allclose(nothing.a @ nothing.a.T, np.eye(8), atol=1e-12)
    # of rank 3, so that blocks come to an end
    thin = matrix(600, 520, 0.0)[:, :3] @ np.float32(np.random.default_rng(1).standard_normal((3, 520)))
    report = order._truncated(thin, 8, 1.0)
    assert report.residual < 1e-6
    np.testing.assert_allclose(report.b @ report.a, thin, atol=1e-5 * report.norm)


def test_directions_that_it_has_not_are_fresh():
    """Integers of rank one, exact in fp32: what the other triplets hold is rounding."""
    rng = np.random.default_rng(0)
    delta = np.outer(rng.integers(1, 9, 90), rng.integers(1, 9, 70)).astype("f4")
    result = balanced(dense_core(delta, 4), 4, 1.0)
    assert (np.linalg.norm(result.b, axis=0) > 0).tolist() == [True, False, False, False]
    np.testing.assert_allclose(np.linalg.norm(result.a[1:], axis=1), 1.0)
