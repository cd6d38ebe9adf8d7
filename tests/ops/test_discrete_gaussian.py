"""discrete_gaussian: the definition and every ISA, ties, numbers, arguments; its law: test_discrete_gaussian_law.py."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from oracles.streams import openssl

import fedcore as fc
from fedcore.errors import BackendError, RangeError, ShapeError
from fedcore.gaussian_table import MOST_TERMS, SAMPLER, GaussianTable, gaussian_table, nonce_of
from fedcore.reference import discrete_gaussian as definition

KEY = bytes(range(60, 92))
#: samples of a chunk of the C kernels (csrc/impl.h), words of a ChaCha20 block
CHUNK, WORDS = 512, 8
#: what entries are multiples of: the bits of a shared word that are signs decide no tie
UNIT = 2**MOST_TERMS
#: samples 3 to 7 of KEY, of version 3 of the sampler
ANSWERS = {
    4: [3, -6, 1, 6, 2],
    1000: [69, -1651, -126, -706, -1147],
    1000000000.0: [56398311, 339655375, -462277867, -814694947, -435771390],
}


@pytest.mark.parametrize("sigma", [4, 1000, 1e9])
def test_every_isa_gives_the_definition(compiled, sigma):
    """Sizes and first numbers about blocks and chunks, and where the block counter passes 2³²."""
    sizes = (0, 1, 9, CHUNK, CHUNK + 1, 3 * CHUNK + 5)
    far = (1 << 32) * WORDS
    for counter in (0, 1, WORDS - 1, CHUNK - 1, CHUNK + 3, far - CHUNK - 7, (1 << 63) - max(sizes)):
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
    size, sigma = 2000, 1000
    table = gaussian_table(Fraction(sigma))
    for counter in (0, (1 << 33) - 1000):
        v = [aes_words(draw, 0, counter, size) for draw in range(len(table.strides))]
        expected = definition.samples(v, aes_words(0, 1, counter, size), table)
        drawn = fc.ops.discrete_gaussian(size, sigma, KEY, counter, "aes256ctr", **compiled)
        assert (drawn == expected).all()


def aes_words(draw: int, word: int, counter: int, size: int) -> np.ndarray:
    """Words of an AES stream across its nonces: two a block."""
    boundary = 1 << 33
    if counter < boundary < counter + size:
        return np.concatenate(
            [
                aes_words(draw, word, counter, boundary - counter),
                aes_words(draw, word, boundary, counter + size - boundary),
            ]
        )
    high, low = divmod(counter // 2, 1 << 32)
    drawn = openssl("aes256ctr", KEY, nonce_of(draw, word, high), low, 8 * (size + 2))
    return drawn.view("<u8")[counter % 2 :][:size]


def drawn_words(draws: int) -> tuple[list[np.ndarray], np.ndarray]:
    """The words of each draw of the first samples of KEY, and those that the draws share."""
    return [definition.words_of(KEY, draw, 0, 0, CHUNK) for draw in range(draws)], definition.words_of(
        KEY, 0, 1, 0, CHUNK
    )


def tied(count: int, draws: int) -> tuple[GaussianTable, np.ndarray]:
    """A table whose first words are words of any draw of KEY, with second words about those of the sample, and what is
    drawn then. One sample ties in all its draws, a few entries have first words in common."""
    v, w = drawn_words(draws)
    pick = np.random.default_rng(count).permutation(CHUNK)[:count]
    lows = [int(x) * UNIT % 2**64 for x in w]
    pairs = [(int(v[turn % draws][i]), (lows[i] + (-UNIT, 0, UNIT)[turn % 3]) % 2**64) for turn, i in enumerate(pick)]
    pairs += [(int(one[pick[0]]), (lows[pick[0]] + UNIT) % 2**64) for one in v]
    pairs += [(pairs[1][0], 0), (pairs[1][0], 2**64 - UNIT), (0, 9 * UNIT), (0, 4 * UNIT)]
    pairs.sort(reverse=True)
    table = GaussianTable(
        np.array([p[0] for p in pairs], np.uint64),
        np.array([p[1] for p in pairs], np.uint64),
        np.array([1, 3, 7][:draws]),
        0.0,
    )
    words, expected = {p[0] for p in pairs}, []
    for sample, low in enumerate(lows):
        ties = [draw for draw in range(draws) if int(v[draw][sample]) in words]
        total = 0
        for draw, stride in enumerate(table.strides.tolist()):
            own = (int(v[draw][sample]), low if draw in ties[-1:] else 2**64)
            minus = int(w[sample]) >> (63 - draw) & 1
            total += (-stride if minus else stride) * sum(own < pair for pair in pairs)
        expected.append(total)
    return table, np.array(expected)


@pytest.mark.parametrize(("count", "draws"), [(7, 1), (30, 2), (119, 3)])
def test_ties_of_the_first_word(compiled, count, draws):
    """The shared word decides for the last draw that ties, as in 128-bit integers: the definition and every ISA."""
    from fedcore.native.discrete_gaussian import discrete_gaussian

    table, expected = tied(count, draws)
    v, w = drawn_words(draws)
    assert (definition.samples(v, w, table) == expected).all()
    signs = w & np.uint64(2**64 - 2 ** (64 - MOST_TERMS))
    assert (definition.samples(v, signs, table) != expected).sum() >= count // 4, "the shared word decided nothing"
    out, again = np.empty(CHUNK, np.int64), np.empty(CHUNK, np.int64)
    definition.discrete_gaussian(out, table, KEY, 0, "chacha20")
    discrete_gaussian(again, table, KEY, 0, "chacha20")
    assert (out == expected).all()
    assert (again == expected).all()


def test_a_known_answer(compiled):
    """The samples of this version of the sampler: others need another SAMPLER, which charges name."""
    for sigma, expected in ANSWERS.items():
        assert fc.ops.discrete_gaussian(5, sigma, KEY, 3, **compiled).tolist() == expected
    assert SAMPLER == 3


def test_samples_are_numbered(compiled):
    """f(n, c)[i:] is f(n − i, c + i), on any number of threads."""
    for sigma in (2.5, 5000):
        samples = fc.ops.discrete_gaussian(9000, sigma, KEY, 77, threads=1, **compiled)
        for i in (1, 8, 1023, 1024, 5003, 8999, 9000):
            tail = fc.ops.discrete_gaussian(9000 - i, sigma, KEY, 77 + i, threads=3, **compiled)
            assert (tail == samples[i:]).all()


def test_draws_of_a_sum_are_independent():
    """The draws that a wide sample is made of come from streams of their own, and so do the words that they share."""
    v = [definition.words_of(KEY, draw, shared, 0, 4096) for draw, shared in ((0, 0), (1, 0), (2, 0), (0, 1))]
    uniform = np.array(v).astype(float) / 2.0**64 - 0.5
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
