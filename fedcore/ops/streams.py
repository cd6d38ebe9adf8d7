"""What the ops over keystreams accept: streams, keys, nonces and counters, and where they run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fedcore.backends import default, requested
from fedcore.errors import BackendError, RangeError, ShapeError
from fedcore.numbers import among, shown, whole
from fedcore.ops.host_numbers import host_numbers
from fedcore.ops.tensors import check_plain

#: bytes of a block of each stream
STREAMS = {"chacha20": 64, "aes256ctr": 16}
KEY, NONCE = 32, 12


def stream_backend(op: str, stream: str, backend: str | None, on_gpu: bool = False) -> str:
    """The backend that will run. Raises BackendError for a stream that is unknown or that the backend does not have."""
    if not among(stream, STREAMS):
        raise BackendError(f"{op}: got stream {shown(stream)}, expected one of {', '.join(STREAMS)}")
    name = requested(backend) or default(on_gpu)
    if stream == "aes256ctr" and name != "c":
        raise BackendError(
            f"{op}: backend {name!r} has no 'aes256ctr', whose tables would leak the key by their timing; use backend "
            "'c' on a processor with AES instructions, or stream='chacha20'"
        )
    return name


def fixed_bytes(op: str, name: str, value: Any, size: int) -> bytes:
    """A key or nonce as bytes. Raises ShapeError, or DTypeError for a masked array, which never show the bytes."""
    check_plain(f"{op}: {name}", value)
    got = f"{type(value).__name__}"
    if isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.ndim == 1:
        value = value.tobytes()
    if isinstance(value, (bytes, bytearray, memoryview)):
        value = bytes(value)
        if len(value) == size:
            return value
        got = f"{len(value)} bytes"
    raise ShapeError(f"{op}: got {got} as {name}, expected {size} bytes; pass bytes or a uint8 array of that length")


def block_counter(op: str, stream: str, counter: Any, size: int) -> int:
    """The first block of a stream of `size` bytes. Raises RangeError where the counter would pass 2^32."""
    first = whole("counter", counter, 0, (1 << 32) - 1, of=op, error=RangeError)
    blocks = -(-size // STREAMS[stream])
    if first + blocks > 1 << 32:
        raise RangeError(
            f"{op}: got {size} bytes from block {first} on, which is {first + blocks - (1 << 32)} blocks past the last "
            f"counter of {stream}, 2^32 - 1; start lower, or go on under another nonce"
        )
    return first


def key_rows(op: str, keys: Any) -> np.ndarray:
    """Several keys as (n, 32) uint8. Raises ShapeError, or DTypeError for a masked array, which never show a key."""
    check_plain(f"{op}: keys", keys)
    if isinstance(keys, (bytes, bytearray, memoryview)) or not isinstance(keys, (Sequence, np.ndarray)):
        raise ShapeError(f"{op}: got no sequence as keys, expected n keys of 32 bytes each; put one in a list")
    if isinstance(keys, np.ndarray) and keys.dtype == np.uint8 and keys.shape == (len(keys), KEY):
        return np.ascontiguousarray(keys)
    rows = [fixed_bytes(op, f"keys[{i}]", key, KEY) for i, key in enumerate(keys)]
    return np.frombuffer(b"".join(rows), np.uint8).reshape(len(rows), KEY)


def plus_or_minus(signs: Any, count: int) -> np.ndarray:
    """A sign for each key: (count,) int8 of 1 and −1. Raises ShapeError or DTypeError."""
    found = host_numbers("signs", signs)
    if found.shape != (count,):
        raise ShapeError(f"signs: got shape {found.shape}, expected ({count},), one for each key")
    if not ((found == 1) | (found == -1)).all():
        raise ShapeError("signs: got a number other than 1 and -1; say for each key whether its stream is added")
    return found.astype(np.int8)


def word_counter(op: str, stream: str, counter: Any, count: int, itemsize: int) -> int:
    """The first of `count` words of a stream, in words. Raises RangeError where they would pass its last block."""
    words = (STREAMS[stream] << 32) // itemsize
    first = whole("counter", counter, 0, words, of=op, error=RangeError)
    if first + count > words:
        raise RangeError(
            f"{op}: got {count} elements from number {first} on, which is {first + count - words} past the end of a "
            f"{stream} stream, 2^{words.bit_length() - 1} words of {itemsize} bytes; start lower, or take another key"
        )
    return first
