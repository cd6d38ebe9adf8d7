"""Definition of shamir_split (Shamir, "How to share a secret", CACM 1979), byte by byte over GF(2^8).

Byte b of the secrets is the constant term of a polynomial of degree t − 1 whose other coefficients are keystream bytes:
share x of it is f_b(x) = s_b + a_{1,b} x + … + a_{t−1,b} x^(t−1), x = 1, 2, … The field is GF(2)[z] modulo
z^8 + z^4 + z^3 + z + 1 (0x11B, FIPS 197 section 4.2): addition is XOR. Byte b of coefficient c is byte
(c − 1) · size + b of ChaCha20 under the key, nonce 0, from block 0 on. Uniform coefficients make any t − 1 shares
uniform, whatever the secret is.

All is done by shifts and XORs on whole arrays: no branch and no address depends on a secret or on a share.
"""

from __future__ import annotations

import numpy as np

from fedcore.reference.keystream import keystream

#: z^8 modulo the field's polynomial
REDUCTION = 0x1B


def times(constant: int, values: np.ndarray) -> np.ndarray:
    """constant · values in GF(2^8), for uint8 values; the constant is public."""
    product, power = np.zeros_like(values), values.copy()
    for bit in range(8):
        if constant >> bit & 1:
            product ^= power
        power = power << 1 ^ (power >> 7) * np.uint8(REDUCTION)
    return product


def shamir_split(secrets: np.ndarray, threshold: int, out: np.ndarray, key: bytes) -> None:
    """Write share x of the bytes `secrets` (size,) uint8 to out[x − 1], for each row of `out` (shares, size)."""
    drawn = np.empty((threshold - 1) * len(secrets), np.uint8)
    keystream(drawn, key, bytes(12), 0, "chacha20")
    coefficients = np.vstack([secrets[None], drawn.reshape(threshold - 1, len(secrets))])
    for x, share in enumerate(out, start=1):
        share[:] = 0
        for coefficient in coefficients[::-1]:
            share[:] = times(x, share) ^ coefficient
