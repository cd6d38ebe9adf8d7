"""keystream_add in C."""

from __future__ import annotations

import numpy as np

from fedcore.native import address, ffi, isa_code, lib
from fedcore.native.keystream import checked_stream, stream_code


def keystream_add(
    values: np.ndarray, keys: np.ndarray, nonce: bytes, counter: int, signs: np.ndarray, stream: str, threads: int = 1
) -> None:
    """As fedcore.reference.keystream_add, and `stream` may be 'aes256ctr'. The GIL is released while it runs."""
    code = stream_code("keystream_add", stream)
    status = lib.fc_keystream_add(
        address(values, "uint32_t *"), values.size, code, address(keys, "const uint8_t *"), len(keys),
        ffi.from_buffer(nonce), counter, address(signs, "const int8_t *"), isa_code(), threads,
    )  # fmt: skip
    checked_stream(status, "keystream_add", stream)
