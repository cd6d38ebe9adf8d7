"""The Triton discrete_gaussian against its definition, under Triton's interpreter and, with `-m gpu`, on a GPU."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the Triton kernels take torch tensors")
pytest.importorskip("triton", reason="Triton is not installed; fedcore[train] brings it")

import fedcore as fc  # noqa: E402
from fedcore.gaussian_table import MOST_TERMS, GaussianTable  # noqa: E402
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
    """A table of the very words that are drawn: the shared words decide."""
    v = [definition.words_of(KEY, draw, 0, 0, 16) for draw in range(2)]
    w = definition.words_of(KEY, 0, 1, 0, 16)
    unit, turn = np.uint64(2**MOST_TERMS), np.arange(16, dtype=np.uint64) % np.uint64(3)
    first, second = v[1].copy(), w * unit + (turn - np.uint64(1)) * unit
    first[5] = v[0][9]  # a sample that ties in a draw that is not its last
    order = np.argsort(first)[::-1]
    first, second = np.append(first[order], np.uint64(0)), np.append(second[order], unit)
    table = GaussianTable(first, second, np.array([1, 3]), 0.0)
    expected, out = np.empty(16, np.int64), torch.empty(16, dtype=torch.int64, device=device)
    definition.discrete_gaussian(expected, table, KEY, 0, "chacha20")
    assert (definition.samples(v, w & ~(unit - np.uint64(1)) & np.uint64(2**64 - 2**52), table) != expected).any()
    discrete_gaussian(out, table, KEY, 0)
    assert (out.cpu().numpy() == expected).all()
