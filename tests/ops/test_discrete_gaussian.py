"""discrete_gaussian: the definition and every ISA, ties, numbers, arguments; its law: test_discrete_gaussian_law.py."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from oracles.streams import openssl

import fedcore as fc
from fedcore.errors import BackendError, RangeError, ShapeError
from fedcore.gaussian_table import BLOCK, SAMPLER, TIES, GaussianTable, gaussian_table, nonce_of
from fedcore.reference import discrete_gaussian as definition

KEY = bytes(range(60, 92))
#: 32-bit words of a ChaCha20 block
WORDS = 16
#: samples 3 to 7 of KEY, of version 4 of the sampler
ANSWERS = {
    4: [2, 8, -5, -4, -3],
    1000: [1396, -643, 1840, -210, -211],
    1000000000.0: [116905076, -1506140053, 474622527, 1138377533, -878395458],
}


@pytest.mark.parametrize("sigma", [4, 1000, 1e9])
def test_every_isa_gives_the_definition(compiled, sigma):
    """Sizes and first numbers about cipher blocks and blocks of samples, and where the block counter passes 2³²."""
    sizes = (0, 1, 9, BLOCK, BLOCK + 1, 3 * BLOCK + 5)
    far = (1 << 32) * WORDS
    for counter in (0, 1, WORDS - 1, BLOCK - 1, BLOCK + 3, far - BLOCK - 7, (1 << 63) - max(sizes)):
        expected = fc.ops.discrete_gaussian(max(sizes), sigma, KEY, counter, backend="reference")
        for size in sizes:
            drawn = fc.ops.discrete_gaussian(size, sigma, KEY, counter, threads=2, **compiled)
            assert drawn.dtype == np.int64
            assert (drawn == expected[:size]).all(), (counter, size)


def test_every_isa_gives_the_definition_of_the_aes_stream(compiled):
    """Words by OpenSSL, draws by the definition; the counter passes 2³² here too."""
    from fedcore.native import isa_code, isa_selected, lib

    if not lib.fc_stream_available(lib.FC_AES256CTR, isa_code()):
        pytest.skip(f"{isa_selected()} kernels have no AES instructions; test_where_it_runs sees it refused")
    size, sigma, passing = 3 * BLOCK, 1000, 1 << 34
    table = gaussian_table(Fraction(sigma))
    for start in (0, passing - BLOCK):
        v = np.array([aes_words(draw, 0, start, size) for draw in range(len(table.strides))])
        w = aes_words(0, 1, start // BLOCK * TIES * 4, 3 * TIES * 4).view("<u8").reshape(3, TIES, 2)
        parts = np.split(v, 3, axis=1)
        expected = np.concatenate([definition.samples(parts[k], w[k], table) for k in range(3)])
        drawn = fc.ops.discrete_gaussian(size - 9, sigma, KEY, start + 9, "aes256ctr", **compiled)
        assert (drawn == expected[9:]).all()


def aes_words(draw: int, tie: int, first: int, size: int) -> np.ndarray:
    """32-bit words of an AES stream across its nonces, from the start of a cipher block: four a block."""
    boundary = 1 << 34
    if first < boundary < first + size:
        parts = ((first, boundary - first), (boundary, first + size - boundary))
        return np.concatenate([aes_words(draw, tie, at, count) for at, count in parts])
    high, low = divmod(first // 4, 1 << 32)
    return openssl("aes256ctr", KEY, nonce_of(draw, tie, high), low, 4 * size).view("<u4")


def drawn_words(draws: int, block: int) -> tuple[np.ndarray, list[int]]:
    """The words of each draw of a block of KEY, and those of its ties as integers of 128 bits."""
    w = definition.words_of(KEY, 0, 1, block * 4 * TIES, 4 * TIES).view("<u8").reshape(TIES, 2)
    v = [definition.words_of(KEY, draw, 0, block * BLOCK, BLOCK) for draw in range(draws)]
    return np.array(v), [int(a) << 64 | int(b) for a, b in w]


def tied(places: list[tuple[int, int]], draws: int, block: int) -> tuple[GaussianTable, np.ndarray]:
    """A table whose first words are those of (draw, sample) in these places of a block, with rests about the words of
    the ties, some of them with one first word; and the block's samples, in integers of 159 bits."""
    v, w = drawn_words(draws, block)
    order = sorted(places, key=lambda place: place[::-1])
    pairs = [(0, 9), (0, 5)]
    for turn, (draw, n) in enumerate(order):
        pairs += [(int(v[draw, n]) >> 1, w[turn] + step) for step in ((1,), (0,), (-1, 1, 2))[turn % 3]]
    pairs.sort(reverse=True)
    rest = [[low >> 64, low & (2**64 - 1)] for _, low in pairs]
    first = np.array([2 * head for head, _ in pairs], np.uint32)
    table = GaussianTable(first, np.array(rest, np.uint64), np.array([1, 3, 7][:draws]), 0.0)
    expected = np.zeros(BLOCK, np.int64)
    for draw, stride in enumerate(table.strides.tolist()):
        for n, word in enumerate(v[draw].tolist()):
            own = (word >> 1, w[order.index((draw, n))] if (draw, n) in places else 2**128)
            expected[n] += (-stride if word & 1 else stride) * sum(own < pair for pair in pairs)
    return table, expected


#: places of ties: at edges of vectors and chunks, a sample that ties in all draws, as many as there are words for
PLACES = {
    "one": [(0, 77)],
    "edges": [(0, 0), (0, 15), (0, 16), (0, 63), (0, 64), (0, 511), (0, 512), (0, BLOCK - 1)],
    "one sample": [(0, 700), (1, 700), (2, 700)],
    "one group": [(2, 130), (1, 140), (1, 131), (0, 191), (0, 128), (2, 129), (0, 129)],
    "far apart": [(2, 1900), (0, 1901), (1, 40), (2, 640), (0, 641), (1, 1400), (2, 99), (0, 100)],
}


@pytest.mark.parametrize("places", PLACES.values(), ids=PLACES)
def test_ties_of_the_first_word(compiled, places):
    """Words for ties go to them in order, as in integers of 159 bits: the definition and every ISA."""
    draws = 1 + max(draw for draw, _ in places)
    table, expected = tied(places, draws, 0)
    v, w = drawn_words(draws, 0)
    halves = np.array([[one >> 64, one & (2**64 - 1)] for one in w], np.uint64)
    assert (definition.samples(v, halves, table) == expected).all()
    assert (definition.samples(v, ~np.zeros_like(halves), table) != expected).any(), "the words decided nothing"
    check_ties(table, 0, expected)


@pytest.mark.parametrize("block", [1, (1 << 25) - 1, (1 << 31) - 1, 1 << 31, (1 << 52) - 1])
def test_ties_have_the_words_of_their_block(compiled, block):
    """Also where the numbers of cipher blocks pass 2³², of draws or of ties, in calls that begin before."""
    table, expected = tied(PLACES["far apart"], 3, block)
    check_ties(table, block, expected)


def check_ties(table: GaussianTable, block: int, expected: np.ndarray) -> None:
    """The definition and an ISA give these samples of a block, alone and with some of the blocks beside it."""
    from fedcore.native.discrete_gaussian import discrete_gaussian

    for before, after in ((0, 0), (min(block, 1) * 9, 0 if block == (1 << 52) - 1 else 5)):
        for work in (definition.discrete_gaussian, discrete_gaussian):
            out = np.empty(before + BLOCK + after, np.int64)
            work(out, table, KEY, block * BLOCK - before, "chacha20")
            assert (out[before : before + BLOCK] == expected).all()


def test_a_known_answer(compiled):
    """The samples of this version of the sampler: others need another SAMPLER, which charges name."""
    for sigma, expected in ANSWERS.items():
        assert fc.ops.discrete_gaussian(5, sigma, KEY, 3, **compiled).tolist() == expected
    assert SAMPLER == 4


def test_samples_are_numbered(compiled):
    """f(n, c)[i:] is f(n − i, c + i), on any number of threads."""
    for sigma in (2.5, 5000):
        samples = fc.ops.discrete_gaussian(9000, sigma, KEY, 77, threads=1, **compiled)
        for i in (1, 16, 2047, 2048, 5003, 8999, 9000):
            tail = fc.ops.discrete_gaussian(9000 - i, sigma, KEY, 77 + i, threads=3, **compiled)
            assert (tail == samples[i:]).all()


def test_draws_of_a_sum_are_independent():
    """The draws that a wide sample is made of come from streams of their own, and so do the words for ties."""
    v = [definition.words_of(KEY, draw, tie, 0, 4096) for draw, tie in ((0, 0), (1, 0), (2, 0), (0, 1))]
    uniform = np.array(v).astype(float) / 2.0**32 - 0.5
    correlation = np.corrcoef(uniform) - np.eye(4)
    assert np.abs(correlation).max() < 5 / math.sqrt(4096)


def test_where_it_runs(compiled):
    from fedcore.native import isa_code, isa_selected, lib

    if isa_selected() == "ref" or not lib.fc_stream_available(lib.FC_AES256CTR, isa_code()):
        with pytest.raises(BackendError, match="discrete_gaussian: stream 'aes256ctr' needs the AES-NI"):
            fc.ops.discrete_gaussian(5, 4, KEY, stream="aes256ctr", **compiled)
    for backend in ("reference", "triton"):
        with pytest.raises(BackendError, match=f"discrete_gaussian: backend '{backend}' has no 'aes256ctr'"):
            fc.ops.discrete_gaussian(5, 4, KEY, stream="aes256ctr", backend=backend)


@pytest.mark.parametrize("sigma", [0, -1, 0.49, 1e9 + 1, math.nan, math.inf, "4", None, True, 1j])
def test_a_sigma_out_of_range(sigma):
    for op in (lambda s: fc.ops.discrete_gaussian(5, s, KEY), fc.ops.discrete_gaussian_bits):
        with pytest.raises(RangeError, match=r"got sigma=.*, expected a number from 0.5 to 1000000000"):
            op(sigma)


def test_bad_arguments():
    with pytest.raises(ShapeError, match="discrete_gaussian: got 16 bytes as key, expected 32 bytes"):
        fc.ops.discrete_gaussian(5, 4, KEY[:16])
    for counter in (-1, 1 << 63, 0.5):
        with pytest.raises(RangeError, match="got counter="):
            fc.ops.discrete_gaussian(5, 4, KEY, counter)
    with pytest.raises(RangeError, match="got size=-3"):
        fc.ops.discrete_gaussian(-3, 4, KEY)
    with pytest.raises(RangeError, match="which pass 2\\^63; use another key"):
        fc.ops.discrete_gaussian(5, 4, KEY, (1 << 63) - 4)
