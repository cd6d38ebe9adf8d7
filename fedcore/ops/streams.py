"""What the ops over keystreams accept: streams, keys, nonces and counters, and where they run."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np

from fedcore.backends import default, requested
from fedcore.errors import BackendError, RangeError, ShapeError

#: bytes of a block of each stream
STREAMS = {"chacha20": 64, "aes256ctr": 16}
KEY, NONCE = 32, 12


def stream_backend(op: str, stream: str, backend: str | None, on_gpu: bool = False) -> str:
    """The backend that will run. Raises BackendError for a stream that is unknown or that the backend does not have."""
    if stream not in STREAMS:
        raise BackendError(f"{op}: got stream {stream!r}, expected one of {', '.join(STREAMS)}")
    name = requested(backend) or default(on_gpu)
    if stream == "aes256ctr" and name != "c":
        raise BackendError(
            f"{op}: backend {name!r} has no 'aes256ctr', whose tables would leak the key by their timing; use backend "
            "'c' on a processor with AES instructions, or stream='chacha20'"
        )
    return name


def whole(op: str, name: str, value: Any, most: int) -> int:
    """A whole number from 0 to `most`. Raises RangeError."""
    try:
        number = -1 if isinstance(value, (bool, np.bool_)) else operator.index(value)
    except TypeError:
        number = -1
    if not 0 <= number <= most:
        raise RangeError(f"{op}: got {name}={value!r}, expected a whole number from 0 to {most}")
    return number


def fixed_bytes(op: str, name: str, value: Any, size: int) -> bytes:
    """A key or nonce as bytes. Raises ShapeError, which never shows the bytes."""
    got = f"{type(value).__name__}"
    if isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.ndim == 1:
        value = value.tobytes()
    if isinstance(value, (bytes, bytearray, memoryview)):
        value = bytes(value)
        if len(value) == size:
            return value
        got = f"{len(value)} bytes"
    raise ShapeError(f"{op}: got {got} as {name}, expected {size} bytes")


def block_counter(op: str, stream: str, counter: Any, size: int) -> int:
    """The first block of a stream of `size` bytes. Raises RangeError where the counter would pass 2^32."""
    first = whole(op, "counter", counter, (1 << 32) - 1)
    blocks = -(-size // STREAMS[stream])
    if first + blocks > 1 << 32:
        raise RangeError(
            f"{op}: got {size} bytes from block {first} on, which is {first + blocks - (1 << 32)} blocks past the last "
            f"counter of {stream}, 2^32 - 1; start lower, or go on under another nonce"
        )
    return first
