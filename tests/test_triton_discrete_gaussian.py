"""The Triton discrete_gaussian against its definition, under Triton's interpreter and, with `-m gpu`, on a GPU."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the Triton kernels take torch tensors")
pytest.importorskip("triton", reason="Triton is not installed; fedcore[train] brings it")

import fedcore as fc  # noqa: E402
from fedcore.gaussian_table import GaussianTable  # noqa: E402
from fedcore.kernels.discrete_gaussian import LANES, discrete_gaussian  # noqa: E402
from fedcore.reference import discrete_gaussian as definition  # noqa: E402

KEY = bytes(range(60, 92))
#: samples of a program; samples of all block counters under one nonce
PROGRAM, FAR = 8 * LANES, 8 << 32


@pytest.mark.parametrize(("size", "sigma", "counter"), [(0, 4, 0), (PROGRAM + 9, 2.5, 13), (40, 12, FAR - 11)])
def test_samples(device, size, sigma, counter):
    """One draw and sums of two; a part of a block at each end; across the change of nonces."""
    expected = fc.ops.discrete_gaussian(size, sigma, KEY, counter, backend="reference")
    assert (fc.ops.discrete_gaussian(size, sigma, KEY, counter, backend="triton") == expected).all()


def test_ties_of_the_first_word(device):
    """A table of the very words that are drawn: the second words decide."""
    v, w = (definition.words_of(KEY, 0, word, 0, 16) for word in (0, 1))
    order = np.argsort(v)[::-1]
    second = (w[order] << np.uint64(1)) + np.arange(16, dtype=np.uint64) % np.uint64(3) * np.uint64(2) - np.uint64(2)
    table = GaussianTable(v[order], second, np.array([1]), 0.0)
    expected, out = np.empty(16, np.int64), torch.empty(16, dtype=torch.int64, device=device)
    definition.discrete_gaussian(expected, table, KEY, 0, "chacha20")
    discrete_gaussian(out, table, KEY, 0)
    assert (out.cpu().numpy() == expected).all()
