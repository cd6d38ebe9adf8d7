"""The public shamir_split and shamir_combine: a secret in shares, of which any `threshold` give it back."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedcore.backends import default, implementation, requested
from fedcore.errors import DTypeError, RangeError, ShapeError
from fedcore.numbers import whole
from fedcore.ops.host_numbers import host_numbers
from fedcore.ops.streams import KEY, fixed_bytes
from fedcore.ops.tensors import check_plain

#: nonzero elements of the field: points that a polynomial can be given at
MOST_SHARES = 255
#: bytes of a stream of one key, the coefficients
MOST_BYTES = 1 << 38


def shamir_split(secrets: Any, threshold: int, shares: int, key: Any, *, backend: str | None = None) -> np.ndarray:
    """Share secrets byte by byte over GF(2⁸) (Shamir, CACM 1979): (shares, m, length) uint8, row x − 1 for point x.

    secrets    (m, length) uint8, or bytes, which are one secret (m = 1)
    threshold  shares that give a secret back, 1 to `shares`; fewer say nothing about it
    shares     1 to 255
    key        32 random bytes for this call and no other: the polynomials' coefficients are its keystream

    Polynomials, field (0x11B) and the order of coefficients: fedcore/reference/shamir_split.py. The same on every
    backend; C is constant time in secrets and key. Where a result must stay secret its owner wipes it.
    Raises DTypeError, ShapeError, RangeError for threshold and shares, BackendError on 'triton'; never shows a secret.
    """
    if isinstance(secrets, (bytes, bytearray, memoryview)):
        secrets = np.frombuffer(secrets, np.uint8)[None]
    data = _bytes("shamir_split", "secrets", secrets, 2)
    count = whole("shares", shares, 1, MOST_SHARES, of="shamir_split", error=RangeError)
    least = whole("threshold", threshold, 1, count, of="shamir_split", error=RangeError)
    if data.size * least > MOST_BYTES:
        raise ShapeError(f"shamir_split: got {data.size} bytes, expected at most 2^38 / threshold; share a key to them")
    secret = fixed_bytes("shamir_split", "key", key, KEY)
    out = np.empty((count, data.size), np.uint8)
    implementation("shamir_split", requested(backend, "shamir_split") or default(False))(
        data.ravel(), least, out, secret
    )
    return out.reshape(count, *data.shape)


def shamir_combine(points: Any, shares: Any, *, backend: str | None = None) -> np.ndarray:
    """The secrets that shares of shamir_split belong to: (m, length) uint8.

    points    t different whole numbers from 1 to 255, as many as the threshold was or more; they are public
    shares    (t, m, length) uint8: shares[i] is for point points[i]

    All shares count: one that is false, or too few, give other bytes, which nothing here can tell. Check what comes out
    against a commitment. The same on every backend; C is constant time in the shares.
    Raises DTypeError, ShapeError, BackendError on 'triton'.
    """
    data, where = _bytes("shamir_combine", "shares", shares, 3), host_numbers("shamir_combine: points", points)
    if where.ndim != 1 or where.dtype.kind not in "iu" or len(where) != len(data) or not len(data):
        raise ShapeError(
            f"shamir_combine: got points of shape {where.shape} and {where.dtype}, expected {len(data)} whole numbers, "
            "one for each share, and at least one"
        )
    if ((where < 1) | (where > MOST_SHARES)).any() or len(np.unique(where)) != len(where):
        raise ShapeError("shamir_combine: got points that repeat or are not from 1 to 255; take each share once")
    out = np.empty(data[0].size, np.uint8)
    work = implementation("shamir_combine", requested(backend, "shamir_combine") or default(False))
    work(where.astype(np.uint8), data.reshape(len(data), -1), out)
    return out.reshape(data.shape[1:])


def _bytes(op: str, name: str, value: Any, dimensions: int) -> np.ndarray:
    if not isinstance(value, np.ndarray) or value.dtype != np.uint8:
        raise DTypeError(f"{op}: got {getattr(value, 'dtype', type(value).__name__)} as {name}, expected uint8")
    check_plain(f"{op}: {name}", value)
    if value.ndim != dimensions:
        raise ShapeError(f"{op}: got {value.ndim} dimensions of {name}, expected {dimensions}")
    return np.ascontiguousarray(value)
