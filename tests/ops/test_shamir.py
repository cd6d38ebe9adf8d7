"""Shamir's shares: against another implementation, from any threshold of them, and nothing from one fewer."""

from __future__ import annotations

import numpy as np
import pytest
from oracles import shamir as oracle
from oracles.streams import openssl

import fedcore as fc
from fedcore.errors import BackendError, DTypeError, RangeError, ShapeError
from fedcore.ops import shamir

KEY = bytes(range(50, 82))


def secrets_of(count: int, length: int) -> np.ndarray:
    return np.random.default_rng(count * length).integers(0, 256, (count, length)).astype(np.uint8)


def every_backend(compiled) -> tuple[dict, dict]:
    return {"backend": "reference"}, compiled


def test_against_another_implementation(compiled):
    """Every length about a vector; all 255 shares."""
    for count, length, threshold, shares in ((1, 1, 1, 1), (3, 1, 2, 255), (1, 32, 4, 7), (3, 21, 3, 5), (1, 65, 2, 9)):
        secrets = secrets_of(count, length)
        size = count * length
        drawn = openssl("chacha20", KEY, bytes(12), 0, (threshold - 1) * size).reshape(-1, size).T.tolist()
        expected = [
            [oracle.evaluate([s, *column], x) for s, column in zip(secrets.ravel().tolist(), drawn, strict=True)]
            for x in range(1, shares + 1)
        ]  # fmt: skip
        for backend in every_backend(compiled):
            found = fc.ops.shamir_split(secrets, threshold, shares, KEY, **backend)
            assert found.shape == (shares, count, length)
            assert found.reshape(shares, -1).tolist() == expected


@pytest.mark.parametrize("size", [1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100])
def test_every_length(compiled, size):
    secrets, generator = secrets_of(1, size), np.random.default_rng(size)
    one, two = (fc.ops.shamir_split(secrets, 5, 9, KEY, **b) for b in every_backend(compiled))
    assert (one == two).all()
    points = generator.permutation(9)[:5] + 1
    for backend in every_backend(compiled):
        assert (fc.ops.shamir_combine(points, one[points - 1], **backend) == secrets).all()


def test_any_shares_give_the_secret_back(compiled):
    """60 of 100, more than enough, all 255, and secrets of ones."""
    generator = np.random.default_rng(2)
    for secret, threshold, shares in ((b"\xff" * 32, 60, 100), (bytes(32), 60, 100), (bytes(range(32)), 255, 255)):
        split = fc.ops.shamir_split(secret, threshold, shares, KEY, **compiled)
        for taken in (threshold, (threshold + shares) // 2, shares):
            points = generator.permutation(shares)[:taken] + 1
            assert fc.ops.shamir_combine(points, split[points - 1], **compiled).tobytes() == secret


def test_combining_is_interpolation(compiled):
    """Of shares that nobody made, too: the constant term of the polynomial through them."""
    generator = np.random.default_rng(5)
    for count in (1, 2, 9, 33):
        points = generator.permutation(255)[:count] + 1
        shares = generator.integers(0, 256, (count, 1, 40)).astype(np.uint8)
        expected = [oracle.interpolate(points.tolist(), shares[:, 0, b].tolist(), 0) for b in range(40)]
        for backend in every_backend(compiled):
            assert fc.ops.shamir_combine(points, shares, **backend)[0].tolist() == expected


def test_one_fewer_say_nothing(compiled):
    """With t − 1 shares every secret is as likely: each has one last share that fits. And they are uniform."""
    split = fc.ops.shamir_split(b"\x42", 4, 6, KEY, **compiled)
    points = np.array([2, 5, 6, 3])
    seen = set()
    for last in range(256):
        shares = np.concatenate([split[[1, 4, 5]], np.full((1, 1, 1), last, np.uint8)])
        seen.add(int(fc.ops.shamir_combine(points, shares, **compiled)[0, 0]))
    assert len(seen) == 256
    length = 1 << 19
    for secret in (0, 0xFF):
        split = fc.ops.shamir_split(np.full((1, length), secret, np.uint8), 3, 5, KEY, **compiled)
        pairs = split[1, 0].astype(int) << 8 | split[3, 0]
        counts = np.bincount(pairs, minlength=1 << 16)
        expected, cells = length / (1 << 16), (1 << 16) - 1
        chi = ((counts - expected) ** 2).sum() / expected
        assert abs(chi - cells) < 4.5 * np.sqrt(2 * cells)


def test_bad_arguments():
    with pytest.raises(RangeError, match="shamir_split: got shares=256, expected a whole number from 1 to 255"):
        fc.ops.shamir_split(b"abc", 2, 256, KEY)
    for threshold in (0, 6):
        with pytest.raises(RangeError, match=f"shamir_split: got threshold={threshold}, .* from 1 to 5"):
            fc.ops.shamir_split(b"abc", threshold, 5, KEY)
    with pytest.raises(ShapeError, match="got 31 bytes as key"):
        fc.ops.shamir_split(b"abc", 2, 5, KEY[:31])
    with pytest.raises(DTypeError, match="shamir_split: got str as secrets, expected uint8"):
        fc.ops.shamir_split("hunter2", 2, 5, KEY)
    with pytest.raises(ShapeError, match="shamir_split: got 1 dimensions of secrets, expected 2"):
        fc.ops.shamir_split(np.zeros(3, np.uint8), 2, 5, KEY)
    shares = np.zeros((2, 1, 3), np.uint8)
    for points in ([1, 1], [0, 1], [1, 256]):
        with pytest.raises(ShapeError, match="got points that repeat or are not from 1 to 255"):
            fc.ops.shamir_combine(points, shares)
    for points in ([1], [1.0, 2.0], 5):
        with pytest.raises(ShapeError, match="expected 2 whole numbers"):
            fc.ops.shamir_combine(points, shares)
    with pytest.raises(DTypeError, match="shamir_combine: got int64 as shares"):
        fc.ops.shamir_combine([1, 2], shares.astype(np.int64))
    with pytest.raises(BackendError, match="shamir_split: the triton backend has no such kernel"):
        fc.ops.shamir_split(b"abc", 2, 5, KEY, backend="triton")


def test_coefficients_are_as_many_as_a_stream_has_bytes(monkeypatch):
    """Each but the secret itself is one: with more, they would begin again."""
    monkeypatch.setattr(shamir, "MOST_BYTES", 8)
    assert fc.ops.shamir_split(b"four", 2, 3, KEY).shape == (3, 1, 4)
    with pytest.raises(ShapeError, match=r"shamir_split: got 4 bytes, expected at most 2\^38 / threshold"):
        fc.ops.shamir_split(b"four", 3, 3, KEY)


def test_no_error_shows_a_secret():
    with pytest.raises(ShapeError) as caught:
        fc.ops.shamir_split(b"hunter2", 2, 5, b"sesame")
    assert "hunter2" not in str(caught.value)
    assert "sesame" not in str(caught.value)
