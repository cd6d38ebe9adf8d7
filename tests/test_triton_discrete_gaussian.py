"""The Triton discrete_gaussian against its definition, under Triton's interpreter and, with `-m gpu`, on a GPU."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the Triton kernels take torch tensors")
pytest.importorskip("triton", reason="Triton is not installed; fedcore[train] brings it")

import fedcore as fc  # noqa: E402
from fedcore.gaussian_table import BLOCK, TIES, GaussianTable  # noqa: E402
from fedcore.kernels.discrete_gaussian import discrete_gaussian  # noqa: E402
from fedcore.reference import discrete_gaussian as definition  # noqa: E402

KEY = bytes(range(60, 92))
#: samples of all cipher blocks under one nonce
FAR = 16 << 32


@pytest.mark.parametrize(("size", "sigma", "counter"), [(0, 4, 0), (BLOCK + 9, 2.5, 13), (40, 20, FAR - 11)])
def test_samples(device, size, sigma, counter):
    """One draw and sums of two; a part of a block at each end; across the change of nonces."""
    expected = fc.ops.discrete_gaussian(size, sigma, KEY, counter, backend="reference")
    assert (fc.ops.discrete_gaussian(size, sigma, KEY, counter, backend="triton") == expected).all()


@pytest.mark.parametrize("block", [0, (1 << 31) - 1, 1 << 31])
def test_ties_of_the_first_word(device, block):
    """A table of words that are drawn, noted in another order than that of ties, and of a few rests each; also where
    the numbers of cipher blocks pass 2³²."""
    v = np.array([definition.words_of(KEY, draw, 0, block * BLOCK, BLOCK) for draw in range(3)])
    w = definition.words_of(KEY, 0, 1, block * 4 * TIES, 4 * TIES).view("<u8").reshape(TIES, 2)
    places = [(0, 0), (1, 3), (0, 63), (1, 63), (0, 64), (1, 700), (2, 70), (0, BLOCK - 1)]
    order = sorted(places, key=lambda place: place[::-1])
    rows = [
        (int(v[place]) & ~1, int(high), (int(low) + step) % 2**64)
        for place, (high, low) in zip(order, w, strict=True)
        for step in (0, 1, 2)
    ]
    rows = [*sorted(rows, reverse=True), (0, 7, 7)]
    first, rest = np.array([row[0] for row in rows], np.uint32), np.array([row[1:] for row in rows], np.uint64)
    table = GaussianTable(first, rest, np.array([1, 3, 7]), 0.0)
    expected, out = np.empty(BLOCK, np.int64), torch.empty(BLOCK, dtype=torch.int64, device=device)
    definition.discrete_gaussian(expected, table, KEY, block * BLOCK, "chacha20")
    assert (definition.samples(v, ~np.zeros_like(w), table) != expected).sum() >= len(places) - 1
    discrete_gaussian(out, table, KEY, block * BLOCK)
    assert (out.cpu().numpy() == expected).all()
