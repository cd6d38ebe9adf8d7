"""The public keystream."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedcore.backends import implementation
from fedcore.errors import RangeError
from fedcore.numbers import whole
from fedcore.ops.rows import thread_count
from fedcore.ops.streams import KEY, NONCE, block_counter, fixed_bytes, stream_backend


def keystream(
    size: int,
    key: Any,
    nonce: Any,
    counter: int,
    stream: str = "chacha20",
    backend: str | None = None,
    threads: int | None = None,
) -> np.ndarray:
    """Bytes of a keyed stream: (size,) uint8, the same on every backend that has the stream.

    size      bytes, any number
    key       32 bytes (bytes, bytearray, memoryview or a uint8 array)
    nonce     12 bytes. A key and nonce serve one message: bytes that were drawn twice are known by their difference
    counter   the first block's number; size bytes from there on must not pass block 2³² − 1
    stream    'chacha20': RFC 8439 §2.4, blocks of 64 bytes, on every backend
              'aes256ctr': NIST SP 800-38A §6.5 with AES-256, blocks of 16 bytes; the counter block is nonce ‖ counter,
              big-endian. Only in C, on processors with AES-NI or VAES, since without them AES is not constant time

    Before its first use in a process a C kernel is checked against the standards' answers, at every length of tail.
    Raises ShapeError for a key or nonce of another length, RangeError for a counter or size that is not a whole number
    or would wrap, BackendError where the stream does not run or fails its check.
    """
    name = stream_backend("keystream", stream, backend)
    length = whole("size", size, 0, (1 << 63) - 1, of="keystream", error=RangeError)
    secret, once = fixed_bytes("keystream", "key", key, KEY), fixed_bytes("keystream", "nonce", nonce, NONCE)
    first = block_counter("keystream", stream, counter, length)
    count = thread_count(threads)
    work = implementation("keystream", name)
    if name == "triton":
        import torch

        tensor = torch.empty(length, dtype=torch.uint8, device="cuda" if torch.cuda.is_available() else "cpu")
        work(tensor, secret, once, first, stream, count)
        return tensor.cpu().numpy()
    out = np.empty(length, np.uint8)
    work(out, secret, once, first, stream, count)
    return out
