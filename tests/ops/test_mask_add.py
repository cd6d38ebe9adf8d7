"""Masks of secure aggregation: exact, the same on every backend, gone from a sum, and uniform on what they hide."""

from __future__ import annotations

import numpy as np
import pytest
from oracles.streams import openssl

import fedcore as fc
from fedcore import backends
from fedcore.errors import BackendError, DTypeError, NonFiniteError, RangeError, ShapeError

WIDTHS = (1, 17, 26, 32, 33, 64)
KEYS = [bytes(range(i, i + 32)) for i in (7, 90, 150)]
SIGNS = [1, -1, -1]
#: bytes that stay in the first-level cache, and of a kernel's widest step (csrc/impl.h)
CHUNK, GROUP = 16384, 1024


def dtype_of(bits: int) -> np.dtype:
    return np.dtype(np.uint32 if bits <= 32 else np.uint64)


def residues(bits: int, length: int, seed: int = 0) -> np.ndarray:
    drawn = np.random.default_rng(seed).integers(0, 1 << 64, length, np.uint64)
    return (drawn & np.uint64((1 << bits) - 1)).astype(dtype_of(bits))


def masked(integers: list[int], keys, signs, bits: int, counter: int, stream: str) -> list[int]:
    """mask_add in Python's integers, with OpenSSL's streams."""
    size = dtype_of(bits).itemsize
    block, skip = divmod(counter * size, 64)
    total = [int(x) for x in integers]
    for key, sign in zip(keys, signs, strict=True):
        per = 1 if stream == "chacha20" else 4
        data = openssl(stream, key, bytes(12), block * per, skip + size * len(total))[skip:].tobytes()
        words = np.frombuffer(data, f"<u{size}").tolist()
        total = [t + sign * w for t, w in zip(total, words, strict=True)]
    return [t % (1 << bits) for t in total]


def streams(compiled) -> list[str]:
    from fedcore.native import isa_code, lib

    return ["chacha20"] + ["aes256ctr"] * lib.fc_stream_available(lib.FC_AES256CTR, isa_code())


@pytest.mark.parametrize("bits", WIDTHS)
def test_the_definition(bits):
    for length, counter in ((0, 5), (1, 0), (70, 13), (333, (1 << 33) + 9)):
        values = residues(bits, length)
        found = fc.ops.mask_add(values, KEYS, SIGNS, bits, counter=counter, backend="reference")
        assert found.dtype == dtype_of(bits)
        assert found.tolist() == masked(values, KEYS, SIGNS, bits, counter, "chacha20")


@pytest.mark.parametrize("bits", WIDTHS)
def test_every_tail(compiled, bits):
    """Every length up to two groups, from counters in the middle of blocks and groups."""
    words = GROUP // dtype_of(bits).itemsize
    most = 2 * words + 5
    for stream in streams(compiled):
        values = residues(bits, most)
        for counter in (0, 1, words - 3):
            expected = np.array(masked(values, KEYS, SIGNS, bits, counter, stream), dtype_of(bits))
            for length in range(most) if counter == 1 else (0, 1, 15, words, words + 4, most):
                found = fc.ops.mask_add(
                    values[:length], KEYS, SIGNS, bits, counter=counter, stream=stream, threads=1, **compiled
                )
                assert (found == expected[:length]).all(), (stream, counter, length)


@pytest.mark.parametrize("bits", [26, 64])
def test_lengths_about_a_chunk_and_an_item_on_threads(compiled, bits):
    chunk = CHUNK // dtype_of(bits).itemsize
    for stream in streams(compiled):
        for length in (chunk - 1, chunk + 1, 33 * chunk + 7):
            for counter in (0, chunk - 5, 3 * chunk + 2):
                values = residues(bits, length)
                expected = np.array(masked(values, KEYS, SIGNS, bits, counter, stream), dtype_of(bits))
                settings = {"counter": counter, "stream": stream, "threads": 3, **compiled}
                assert (fc.ops.mask_add(values, KEYS, SIGNS, bits, **settings) == expected).all()
                assert (fc.ops.unmask_sum(values, KEYS, SIGNS, bits, out=values, **settings) == expected).all()


def test_writes_that_bypass_the_cache(compiled):
    """What a vector of 10 MB gives, at an aligned place and at any, is what its parts give."""
    values, keys = np.random.default_rng(1).normal(size=2_500_001).astype(np.float32), KEYS[:1]
    settings = {"scale": 1000.0, "limit": 3000, **compiled}
    parts = [fc.ops.mask_add(values[at : at + 500_000], keys, [-1], 26, counter=at, **settings)
             for at in range(0, len(values), 500_000)]  # fmt: skip
    room = np.empty(len(values) + 32, np.uint32)
    start = -room.ctypes.data % 64 // 4
    for place in (start, start + 1):
        out = room[place : place + len(values)]
        assert fc.ops.mask_add(values, keys, [-1], 26, out=out, **settings) is out
        assert (out == np.concatenate(parts)).all()


def test_ends_of_a_stream(compiled):
    for stream in streams(compiled):
        for bits in (26, 40):
            size = dtype_of(bits).itemsize
            words = ({"chacha20": 64, "aes256ctr": 16}[stream] << 32) // size
            values = residues(bits, 300)
            expected = masked(values, KEYS[:1], [1], bits, words - 300, stream)
            settings = {"stream": stream, **compiled}
            found = fc.ops.mask_add(values, KEYS[:1], [1], bits, counter=words - 300, **settings)
            assert found.tolist() == expected
            with pytest.raises(RangeError, match=f"1 past the end of a {stream} stream"):
                fc.ops.mask_add(values, KEYS[:1], [1], bits, counter=words - 299, **settings)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("bits", [8, 32, 33, 64])
def test_quantising(compiled, dtype, bits):
    """Ties go to the even integer, sizes are clamped, and each product is rounded to fp64 once."""
    limit = min(((1 << bits) - 1) // 2, 1 << 53)
    scale = 3.0000000001
    ties = np.arange(-9, 9) / 2
    tiny, huge = np.finfo(dtype).tiny, np.finfo(dtype).max
    special = [0.0, -0.0, tiny, -tiny / 2, huge, -huge, limit, -limit, limit - 0.5, limit + 0.5, 1e9 + 0.5]
    drawn = np.random.default_rng(3).normal(size=1000) * 2.0 ** np.random.default_rng(4).integers(-3, 50, 1000)
    for factor, values in ((1.0, [*ties, *special]), (scale, drawn), (1e300, drawn[:20])):
        x = np.array(values, dtype)
        with np.errstate(over="ignore"):
            products = (x.astype(np.float64) * factor).tolist()
        expected = [round(min(max(p, -limit), limit)) % (1 << bits) for p in products]
        for backend in ({"backend": "reference"}, compiled):
            found = fc.ops.mask_add(x, [], [], bits, scale=factor, limit=limit, **backend)
            assert found.tolist() == expected


@pytest.mark.parametrize("bits", [*WIDTHS, 63])
def test_packed_is_pack_bits_of_the_residues(compiled, bits):
    """In one pass and in two, for every number of keys, at every boundary, and no byte beyond the last."""
    numbers = np.random.default_rng(bits).normal(size=40_000).astype(np.float32)
    scaled = {"scale": 9.0, "limit": min(30, ((1 << bits) - 1) // 2)}
    for stream in streams(compiled):
        for length in (0, 1, 7, 8, 511, 512, 513, 4096, 4103, 40_000):
            for values, more in ((numbers, scaled), (numbers.astype(np.float64), scaled), (residues(bits, 40_000), {})):
                for count, counter in ((0, 0), (1, 16), (2, 4088), (3, 4096)):
                    about = KEYS[:count], SIGNS[:count], bits
                    settings = {"counter": counter, "stream": stream, "threads": 2, **more, **compiled}
                    plain = fc.ops.pack_bits(fc.ops.mask_add(values[:length], *about, **settings), bits)
                    room = np.full(len(plain) + 70, 0xA5, np.uint8)
                    out = room[3 : 3 + len(plain)]
                    assert fc.ops.mask_add(values[:length], *about, **settings, packed=True, out=out) is out
                    assert (out == plain).all(), (stream, length, count)
                    assert (room[:3] == 0xA5).all()
                    assert (room[3 + len(plain) :] == 0xA5).all()
    few = numbers[:300]
    found = fc.ops.mask_add(few, KEYS, SIGNS, bits, **scaled, packed=True, backend="reference")
    assert (found == fc.ops.mask_add(few, KEYS, SIGNS, bits, **scaled, packed=True, **compiled)).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_named(compiled, value):
    for dtype in (np.float32, np.float64):
        for bits in (20, 40):
            for index in (0, 5, 8, 4100, 9999):
                x = np.ones(10000, dtype)
                x[index], x[9999] = value, value
                for backend in ({"backend": "reference"}, compiled):
                    with pytest.raises(NonFiniteError, match=f"mask_add: values hold {value} at index {index}") as at:
                        fc.ops.mask_add(x, KEYS[:1], [1], bits, scale=1, limit=9, **backend)
                    assert at.value.column == index


def test_integers_are_taken_modulo(compiled):
    for bits in WIDTHS:
        modulus = 1 << bits
        numbers = [0, 1, modulus - 1, (1 << 63) - 1, 12345678901234, 1 << 62]
        for values in (
            np.array([*numbers[:1], -1, -(1 << 63), 5, -modulus // 2], np.int64),
            np.array([*numbers, (1 << 64) - 1], np.uint64),
            np.array([0, 7, (1 << 32) - 1], np.uint32),
        ):
            for backend in ({"backend": "reference"}, compiled):
                found = fc.ops.mask_add(values, [], [], bits, **backend)
                assert found.tolist() == [int(x) % modulus for x in values]


@pytest.mark.parametrize("bits", WIDTHS)
def test_masks_vanish_from_a_sum(compiled, bits):
    """Three clients, each pair with a key whose stream one adds and the other takes away, and a self mask each."""
    vectors = [residues(bits, 5003, seed) for seed in range(3)]
    pairs = {(0, 1): KEYS[0], (0, 2): KEYS[1], (1, 2): KEYS[2]}
    own = [bytes([i]) * 32 for i in range(3)]
    total = np.zeros(5003, dtype_of(bits))
    for i, vector in enumerate(vectors):
        keys = [key for pair, key in pairs.items() if i in pair] + [own[i]]
        signs = [1 if pair[0] == i else -1 for pair in pairs if i in pair] + [1]
        message = fc.ops.pack_bits(fc.ops.mask_add(vector, keys, signs, bits, **compiled), bits, **compiled)
        fc.ops.unpack_add(message, bits, total, **compiled)
    found = fc.ops.unmask_sum(total, own, [-1] * 3, bits, **compiled)
    assert found.tolist() == [sum(map(int, column)) % (1 << bits) for column in zip(*vectors, strict=True)]


def test_the_greatest_vectors_sum_exactly(compiled):
    """n · limit, on the last integer before a wrap."""
    for bits, n in ((26, 1000), (33, 1000), (17, 100)):
        limit = ((1 << bits) - 1) // 2 // n
        x = np.array([1e30, -1e30, 1, -1], np.float32)
        total = np.zeros(4, dtype_of(bits))
        for i in range(n):
            key = [i.to_bytes(32, "big")]
            y = fc.ops.mask_add(x, key, [1], bits, scale=1.0, limit=limit, **compiled)
            fc.ops.unpack_add(fc.ops.pack_bits(y, bits, **compiled), bits, total, **compiled)
        keys = [i.to_bytes(32, "big") for i in range(n)]
        total = fc.ops.unmask_sum(total, keys, [-1] * n, bits, **compiled)
        half = 1 << bits - 1
        assert [(int(t) + half) % (1 << bits) - half for t in total] == [n * limit, -n * limit, n, -n]


@pytest.mark.parametrize("bits", [17, 26, 33])
def test_masks_are_uniform_and_uncorrelated(bits):
    """Of a vector of zeros: each bit, runs of 8 bits, and neighbours and keys against each other; 4.5 deviations."""
    length = 1 << 18
    one, two = (fc.ops.mask_add(np.zeros(length, np.uint32), [key], [1], bits) for key in KEYS[:2])
    for bit in range(bits):
        ones = int((one >> one.dtype.type(bit) & one.dtype.type(1)).sum())
        assert abs(ones - length / 2) < 4.5 * np.sqrt(length) / 2, bit
    for shift in (0, bits - 8):
        counts = np.bincount((one >> one.dtype.type(shift) & one.dtype.type(255)).astype(int), minlength=256)
        chi = ((counts - length / 256) ** 2).sum() / (length / 256)
        assert abs(chi - 255) < 4.5 * np.sqrt(2 * 255)
    centred = [y.astype(np.float64) - ((1 << bits) - 1) / 2 for y in (one, two)]
    for a, b in ((centred[0], centred[1]), (centred[0][1:], centred[0][:-1]), (centred[0][16:], centred[0][:-16])):
        assert abs(np.corrcoef(a, b)[0, 1]) < 4.5 / np.sqrt(length)


def test_tensors():
    torch = pytest.importorskip("torch", reason="values may be a torch tensor")
    x = torch.linspace(-1, 1, 101)
    found = fc.ops.mask_add(x, KEYS, SIGNS, 26, scale=100, limit=200)
    assert found.dtype == torch.uint32
    assert (found.numpy() == fc.ops.mask_add(x.numpy(), KEYS, SIGNS, 26, scale=100, limit=200)).all()
    packed = fc.ops.pack_bits(found, 26)
    total = torch.zeros(101, dtype=torch.int32).view(torch.uint32)
    assert fc.ops.unpack_add(packed, 26, total) is total
    assert (total.numpy() == found.numpy()).all()


def test_bad_arguments():
    x, y = np.zeros(4, np.float32), np.zeros(4, np.uint32)
    for bits in (0, 65, 2.0, True, None):
        with pytest.raises(RangeError, match=r"mask_add: got bits=.*expected a whole number from 1 to 64"):
            fc.ops.mask_add(x, [], [], bits, scale=1, limit=1)
    for scale in (None, 0, -1, np.inf, np.nan, "a"):
        with pytest.raises(RangeError, match=r"mask_add: got scale=.*above 0"):
            fc.ops.mask_add(x, [], [], 9, scale=scale, limit=1)
    for limit in (None, -1, 256, 1.5):
        with pytest.raises(RangeError, match=r"mask_add: got limit=.*from 0 to 255"):
            fc.ops.mask_add(x, [], [], 9, scale=1, limit=limit)
    with pytest.raises(RangeError, match="got scale or limit for values of uint32"):
        fc.ops.mask_add(y, [], [], 9, limit=3)
    with pytest.raises(DTypeError, match="got int32 as values, expected float32, float64, int64"):
        fc.ops.mask_add(y.view(np.int32), [], [], 9)
    with pytest.raises(DTypeError, match="unmask_sum: got uint32 as total, expected uint64 for 33 bits"):
        fc.ops.unmask_sum(y, [], [], 33)
    with pytest.raises(ShapeError, match="without gaps"):
        fc.ops.mask_add(y[::2], [], [], 9)
    with pytest.raises(DTypeError, match="mask_add: got list as values"):
        fc.ops.mask_add([1, 2], [], [], 9)
    with pytest.raises(ShapeError, match=r"mask_add: got 3 bytes as keys\[0\]"):
        fc.ops.mask_add(y, [b"abc"], [1], 9)
    with pytest.raises(ShapeError, match="signs: got a number other than 1 and -1"):
        fc.ops.mask_add(y, KEYS[:1], [2], 9)
    with pytest.raises(RangeError, match="mask_add: got counter=-1"):
        fc.ops.mask_add(y, KEYS[:1], [1], 9, counter=-1)
    with pytest.raises(DTypeError, match="mask_add: got uint64 as out, expected uint32"):
        fc.ops.mask_add(y, [], [], 9, out=np.zeros(4, np.uint64))
    with pytest.raises(ShapeError, match="mask_add: got 3 elements as out, expected 4"):
        fc.ops.mask_add(y, [], [], 9, out=np.zeros(3, np.uint32))
    with pytest.raises(DTypeError, match="mask_add: got uint32 as out, expected uint8"):
        fc.ops.mask_add(y, [], [], 9, packed=True, out=np.zeros(5, np.uint32))
    for backend in ("c", "reference"):
        with pytest.raises(RangeError, match="mask_add: got counter=4 for packed residues, expected a multiple of 8"):
            fc.ops.mask_add(y, [], [], 9, packed=True, counter=4, backend=backend)
    room = np.zeros(9, np.uint32)
    with pytest.raises(ShapeError, match="out overlaps the values in another place"):
        fc.ops.mask_add(room[:8], [], [], 9, out=room[1:])
    with pytest.raises(BackendError, match="mask_add: backend 'reference' has no 'aes256ctr'"):
        fc.ops.mask_add(y, [], [], 9, stream="aes256ctr", backend="reference")


def test_aes_is_refused_where_it_would_not_be_constant_time(monkeypatch):
    if backends.unavailable("c"):
        pytest.skip(f"the C kernels are not built: {backends.unavailable('c')}")
    monkeypatch.setenv("FEDCORE_ISA", "ref")
    with pytest.raises(BackendError, match="mask_add: stream 'aes256ctr' needs"):
        fc.ops.mask_add(np.zeros(4, np.uint32), [], [], 9, stream="aes256ctr", backend="c")
