"""Masks of secure aggregation that do not cancel, and masks that hide nothing."""

from __future__ import annotations

import numpy as np

import fedcore as fc
from failures.finding import Finding

COUNTS = [300, 100]
BITS, BOUND = 26, 1 << 20


def updates() -> np.ndarray:
    return np.random.default_rng(0).normal(0, 0.01, (2, 2000))


def weighted_error(found: np.ndarray) -> Finding:
    """Against the mean by example counts."""
    exact = np.average(updates(), axis=0, weights=COUNTS)
    error = float(np.abs(found - exact).max() / np.abs(exact).max())
    return f"error {error:.2g} of the largest value", error > 1e-4


def weighted_after_masking() -> Finding:
    """The server multiplies what came, x_i + m and x_j − m, by the clients' shares."""
    mask = np.random.default_rng(1).normal(size=updates().shape[1])
    return weighted_error(np.average(updates() + np.array([[1], [-1]]) * mask, axis=0, weights=COUNTS))


def weighted_before_masking() -> Finding:
    quantizer = fc.secagg.Quantizer(BOUND, 0.1, max(COUNTS))
    vectors = [quantizer.weighted(x, count) for x, count in zip(updates(), COUNTS, strict=True)]
    return weighted_error(quantizer.mean(fc.secagg.simulate(vectors).sum)[0])


def seen(sent: np.ndarray) -> Finding:
    """How much of an update the server reads off what one client sends: their correlation."""
    share = abs(float(np.corrcoef(updates()[0], sent)[0, 1]))
    return f"{100 * share:.1f} % correlation of what is sent with the update", share > 0.1


def one_number_as_mask() -> Finding:
    return seen(updates()[0] + np.random.default_rng(1).normal())


def a_stream_as_mask() -> Finding:
    key = np.random.default_rng(1).integers(0, 256, 32, dtype=np.uint8)
    sent = fc.ops.mask_add(updates()[0], key[None], [1], BITS, scale=BOUND / 0.1, limit=BOUND)
    return seen(sent.astype(np.float64))
