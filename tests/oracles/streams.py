"""Keystreams by OpenSSL, through the package cryptography, and published ones."""

from __future__ import annotations

import numpy as np
import pytest

# RFC 8439 section 2.3.2: key, nonce, counter, block
RFC_KEY, RFC_NONCE = bytes(range(32)), bytes.fromhex("000000090000004a00000000")
RFC_BLOCK = bytes.fromhex(
    "10f1e7e4d13b5915500fdd1fa32071c4c7d1f4c733c068030422aa9ac3d46c4e"
    "d2826446079faa0914c2d705d98b02a2b5129cd1de164eb9cbd083e8a2503c4e"
)
# section 2.4.2: the same key, counter 1
TEXT_NONCE = bytes.fromhex("000000000000004a00000000")
TEXT = (
    b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, "
    b"sunscreen would be it."
)
CIPHERTEXT = bytes.fromhex(
    "6e2e359a2568f98041ba0728dd0d6981e97e7aec1d4360c20a27afccfd9fae0bf91b65c5524733ab8f593dabcd62b357"
    "1639d624e65152ab8f530c359f0861d807ca0dbf500d6a6156a38e088a22b65e52bc514d16ccf806818ce91ab7793736"
    "5af90bbf74a35be6b40b8eedf2785e42874d"
)
# NIST SP 800-38A F.5.5: key, first counter block, plaintext, ciphertext
NIST_KEY = bytes.fromhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
NIST_COUNTER = bytes.fromhex("f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff")
NIST_TEXT = bytes.fromhex(
    "6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51"
    "30c81c46a35ce411e5fbc1191a0a52eff69f2445df4f9b17ad2b417be66c3710"
)
NIST_CIPHERTEXT = bytes.fromhex(
    "601ec313775789a5b7a7f504bbf3d228f443e3ca4d62b59aca84e990cacaf5c5"
    "2b0930daa23de94ce87017ba2d84988ddfc9c58db67aada613c2dd08457941a6"
)


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
