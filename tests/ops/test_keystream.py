"""keystream and keystream_add: the standards' answers, every tail, counter carries, OpenSSL, every ISA."""

from __future__ import annotations

import numpy as np
import pytest
from oracles.streams import (
    CIPHERTEXT,
    NIST_CIPHERTEXT,
    NIST_COUNTER,
    NIST_KEY,
    NIST_TEXT,
    RFC_BLOCK,
    RFC_KEY,
    RFC_NONCE,
    TEXT,
    TEXT_NONCE,
    openssl,
)

import fedcore as fc
from fedcore import backends
from fedcore.errors import BackendError, DTypeError, RangeError, ShapeError

KEY, OTHER, NONCE = bytes(range(7, 39)), bytes(range(90, 122)), bytes(range(200, 212))
BLOCK = {"chacha20": 64, "aes256ctr": 16}
LAST = (1 << 32) - 1
#: bytes of the widest step of a kernel (csrc/impl.h: FC_STREAM_GROUP), and of an item that a thread takes
GROUP, ITEM = 1024, 256 << 10


@pytest.fixture(params=["chacha20", "aes256ctr"])
def stream(request) -> str:
    return request.param


@pytest.fixture
def runs(compiled, stream) -> dict:
    """Arguments that force a stream on an ISA that has it."""
    if stream == "aes256ctr":
        from fedcore.native import isa_code, isa_selected, lib

        if not lib.fc_stream_available(lib.FC_AES256CTR, isa_code()):
            pytest.skip(f"{isa_selected()} kernels have no AES instructions; test_where_a_stream_runs sees it refused")
    return {**compiled, "stream": stream}


def xor(data: bytes, stream: np.ndarray) -> bytes:
    return (np.frombuffer(data, np.uint8) ^ stream).tobytes()


@pytest.mark.parametrize("backend", ["reference", "c"])
def test_rfc_8439(backend, monkeypatch):
    for isa in [None] if backend == "reference" else isas():
        if isa:
            monkeypatch.setenv("FEDCORE_ISA", isa)
        assert fc.ops.keystream(64, RFC_KEY, RFC_NONCE, 1, backend=backend).tobytes() == RFC_BLOCK
        drawn = fc.ops.keystream(len(TEXT), RFC_KEY, TEXT_NONCE, 1, backend=backend)
        assert xor(TEXT, drawn) == CIPHERTEXT


def isas() -> list[str]:
    if backends.unavailable("c"):
        pytest.skip(f"the C kernels are not built: {backends.unavailable('c')}")
    from fedcore.native import isa_available

    return isa_available()


@pytest.mark.parametrize("stream", ["aes256ctr"], indirect=True)
def test_sp_800_38a(runs):
    counter = int.from_bytes(NIST_COUNTER[12:], "big")
    drawn = fc.ops.keystream(64, NIST_KEY, NIST_COUNTER[:12], counter, **runs)
    assert xor(NIST_TEXT, drawn) == NIST_CIPHERTEXT


def test_every_tail(runs):
    """Every length up to two groups and a bit, against OpenSSL."""
    most = 2 * GROUP + 65
    expected = openssl(runs["stream"], KEY, NONCE, 3, most)
    for size in range(most):
        assert (fc.ops.keystream(size, KEY, NONCE, 3, **runs) == expected[:size]).all(), size


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_sizes_about_an_item_on_threads(runs, threads):
    expected = openssl(runs["stream"], KEY, NONCE, 9, 3 * ITEM)
    for size in (ITEM - 1, ITEM, ITEM + 1, 3 * ITEM - 5):
        assert (fc.ops.keystream(size, KEY, NONCE, 9, threads=threads, **runs) == expected[:size]).all()


def test_counter_carries(runs):
    """The counter crosses each of its bytes inside a group, and ends on its last block."""
    size = 70 * BLOCK[runs["stream"]]
    for at in (1 << 8, 1 << 16, 1 << 24, 1 << 31, (1 << 32) - 37):
        counter = at - 33
        expected = openssl(runs["stream"], KEY, NONCE, counter, size)
        assert (fc.ops.keystream(size, KEY, NONCE, counter, **runs) == expected).all(), counter
    for blocks in (1, 17, 64, 65):
        first, size = LAST - blocks + 1, blocks * BLOCK[runs["stream"]]
        drawn = fc.ops.keystream(size, KEY, NONCE, first, **runs)
        assert (drawn == openssl(runs["stream"], KEY, NONCE, first, size)).all()


def test_the_reference_is_chacha20():
    expected = openssl("chacha20", KEY, NONCE, LAST - 5000, 64 * 5001)
    for size in (0, 1, 63, 64, 65, 64 * 4096 + 1, 64 * 5001):
        drawn = fc.ops.keystream(size, KEY, NONCE, LAST - 5000, backend="reference")
        assert drawn.dtype == np.uint8
        assert (drawn == expected[:size]).all()


def masked(values, keys, signs, stream, counter=5):
    """keystream_add by OpenSSL."""
    total = values.copy()
    for key, sign in zip(keys, signs, strict=True):
        words = openssl(stream, key, NONCE, counter, values.nbytes).view("<u4")
        total = total + words if sign > 0 else total - words
    return total


def vector(length, offset=0):
    """uint32 values that begin `offset` words past where memory was given out."""
    return np.random.default_rng(length).integers(0, 1 << 32, length + offset, np.uint32)[offset:]


def test_added_streams(runs):
    """Lengths about a block, a group, a chunk and an item; one key to several; misaligned to a vector."""
    keys, signs = [KEY, OTHER, KEY[::-1]], [1, -1, -1]
    for length in (0, 1, 3, 4, 5, 15, 16, 17, 31, 33, 255, 256, 257, 300, 4095, 4096, 4097, ITEM // 4 + 130):
        for count in (0, 1, 3):
            values = vector(length, offset=length % 5)
            expected = masked(values, keys[:count], signs[:count], runs["stream"])
            fc.ops.keystream_add(values, keys[:count], NONCE, 5, signs[:count], threads=2, **runs)
            assert (values == expected).all(), (length, count)


def test_added_streams_by_definition():
    for length in (0, 1, 17, 70000):
        values = vector(length)
        expected = masked(values, [KEY, OTHER], [-1, 1], "chacha20")
        fc.ops.keystream_add(
            values, np.array([list(KEY), list(OTHER)], np.uint8), NONCE, 5, [-1, 1], backend="reference"
        )
        assert (values == expected).all()


def test_opposite_signs_cancel(runs):
    """The two ends of a pair mask with one key: the masks vanish from the sum."""
    first, second = vector(5001), vector(5001)
    total = first + second
    fc.ops.keystream_add(first, [KEY], NONCE, 0, [1], **runs)
    fc.ops.keystream_add(second, [KEY], NONCE, 0, [-1], **runs)
    assert (first + second == total).all()


def test_a_tensor_is_changed_in_place():
    torch = pytest.importorskip("torch", reason="values may be a torch tensor")
    for dtype in (torch.int32, torch.uint32):
        values = torch.zeros(100, dtype=torch.int32).view(dtype)
        fc.ops.keystream_add(values, [KEY], NONCE, 0, [1])
        words = openssl("chacha20", KEY, NONCE, 0, 400).view(np.uint32)
        assert (values.view(torch.int32).numpy().view(np.uint32) == words).all()


def test_where_a_stream_runs(compiled):
    """AES runs with AES instructions and nowhere else; the stream is never exchanged for another."""
    from fedcore.native import isa_code, isa_selected, lib

    if isa_selected() == "ref" or not lib.fc_stream_available(lib.FC_AES256CTR, isa_code()):
        with pytest.raises(BackendError, match="keystream: stream 'aes256ctr' needs the AES-NI"):
            fc.ops.keystream(5, KEY, NONCE, 0, stream="aes256ctr", **compiled)
        with pytest.raises(BackendError, match="keystream_add: stream 'aes256ctr' needs"):
            fc.ops.keystream_add(vector(5), [KEY], NONCE, 0, [1], stream="aes256ctr", **compiled)
    else:
        drawn = fc.ops.keystream(5, KEY, NONCE, 0, stream="aes256ctr", **compiled)
        assert (drawn == openssl("aes256ctr", KEY, NONCE, 0, 5)).all()
    for backend in ("reference", "triton"):
        with pytest.raises(BackendError, match=f"backend '{backend}' has no 'aes256ctr'.*stream='chacha20'"):
            fc.ops.keystream(5, KEY, NONCE, 0, stream="aes256ctr", backend=backend)
    with pytest.raises(BackendError, match="got stream 'rc4', expected one of chacha20, aes256ctr"):
        fc.ops.keystream(5, KEY, NONCE, 0, stream="rc4", **compiled)


def test_a_counter_that_would_wrap_is_refused(stream):
    for counter, size in ((LAST, BLOCK[stream] + 1), (LAST - 9, 11 * BLOCK[stream])):
        with pytest.raises(RangeError, match=f"1 blocks past the last counter of {stream}.*another nonce"):
            fc.ops.keystream(size, KEY, NONCE, counter, stream=stream, backend="c")
        values = np.zeros(size // 4 + 1, np.uint32)
        with pytest.raises(RangeError, match=r"keystream_add: .* past the last counter"):
            fc.ops.keystream_add(values, [KEY], NONCE, counter, [1], stream=stream, backend="c")
        assert not values.any()


@pytest.mark.parametrize("value", [-1, 1 << 32, 1.0, True, "7", None])
def test_a_counter_that_is_none(value):
    with pytest.raises(RangeError, match=r"keystream: got counter=.*expected a whole number from 0 to 4294967295"):
        fc.ops.keystream(5, KEY, NONCE, value)


def test_bad_arguments():
    with pytest.raises(RangeError, match="got size=-1"):
        fc.ops.keystream(-1, KEY, NONCE, 0)
    with pytest.raises(ShapeError, match="got 31 bytes as key, expected 32 bytes; pass bytes or a uint8 array"):
        fc.ops.keystream(5, KEY[:31], NONCE, 0)
    with pytest.raises(ShapeError, match="got 16 bytes as nonce, expected 12 bytes"):
        fc.ops.keystream(5, KEY, KEY[:16], 0)
    with pytest.raises(ShapeError, match="got str as key"):
        fc.ops.keystream(5, "k" * 32, NONCE, 0)
    with pytest.raises(ShapeError, match=r"got 3 bytes as keys\[1\]"):
        fc.ops.keystream_add(vector(5), [KEY, b"abc"], NONCE, 0, [1, 1])
    with pytest.raises(ShapeError, match="put one in a list"):
        fc.ops.keystream_add(vector(5), KEY, NONCE, 0, [1])
    with pytest.raises(ShapeError, match=r"signs: got shape \(1,\), expected \(2,\)"):
        fc.ops.keystream_add(vector(5), [KEY, OTHER], NONCE, 0, [1])
    with pytest.raises(ShapeError, match="signs: got a number other than 1 and -1"):
        fc.ops.keystream_add(vector(5), [KEY, OTHER], NONCE, 0, [1, 0])
    with pytest.raises(DTypeError, match="values: got int64, expected a uint32 array"):
        fc.ops.keystream_add(np.zeros(5, np.int64), [KEY], NONCE, 0, [1])
    with pytest.raises(ShapeError, match=r"values: got shape .*contiguous"):
        fc.ops.keystream_add(vector(10)[::2], [KEY], NONCE, 0, [1])
    frozen = vector(5)
    frozen.flags.writeable = False
    with pytest.raises(ShapeError, match="writable"):
        fc.ops.keystream_add(frozen, [KEY], NONCE, 0, [1])


def test_kernels_that_fail_their_check_are_named():
    """The check itself is tested with faulty kernels in tests/native/harness.c."""
    native = pytest.importorskip("fedcore.native.keystream", reason="the C kernels are not built")
    with pytest.raises(BackendError, match=r"keystream: the 'aes256ctr' kernels for '\w+' do not give the published"):
        native.checked_stream(native.lib.FC_WRONG_STREAM, "keystream", "aes256ctr")


def test_no_error_shows_a_key():
    with pytest.raises(ShapeError) as caught:
        fc.ops.keystream(5, b"hunter2hunter2", NONCE, 0)
    assert "hunter2" not in str(caught.value)
