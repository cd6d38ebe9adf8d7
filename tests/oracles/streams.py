"""Keystreams by OpenSSL, through the package cryptography."""

from __future__ import annotations

import numpy as np
import pytest


def openssl(stream: str, key: bytes, nonce: bytes, counter: int, size: int) -> np.ndarray:
    """`size` bytes of a stream from block `counter` on."""
    ciphers = pytest.importorskip(
        "cryptography.hazmat.primitives.ciphers", reason="the oracle of keystreams is the package cryptography"
    )
    if stream == "chacha20":
        cipher = ciphers.Cipher(ciphers.algorithms.ChaCha20(key, counter.to_bytes(4, "little") + nonce), None)
    else:
        mode = ciphers.modes.CTR(nonce + counter.to_bytes(4, "big"))
        cipher = ciphers.Cipher(ciphers.algorithms.AES(key), mode)
    return np.frombuffer(cipher.encryptor().update(bytes(size)), np.uint8)
