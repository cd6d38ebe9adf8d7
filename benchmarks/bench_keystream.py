"""keystream and keystream_add on one core, beside OpenSSL's streams through the package cryptography."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
from measure import alternate, require_green, save

import fedcore as fc

SIZE = 64 << 20
KEYS = 16
NONCE = bytes(12)
BLOCK = {"chacha20": "ChaCha20", "aes256ctr": "AES-256-CTR"}


def openssl(stream: str, key: bytes, data: bytes, out: bytearray) -> Callable[[], object]:
    """Encryption of zeros into a ready buffer: OpenSSL gives its streams in no other way."""
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    if stream == "chacha20":
        cipher = Cipher(algorithms.ChaCha20(key, bytes(16)), None)
    else:
        cipher = Cipher(algorithms.AES(key), modes.CTR(bytes(16)))
    return lambda: cipher.encryptor().update_into(data, out)


def main() -> None:
    require_green("keystream")
    keys, signs = [os.urandom(32) for _ in range(KEYS)], [1, -1] * (KEYS // 2)
    values, data, out = np.zeros(SIZE // 4, np.uint32), bytes(SIZE), bytearray(SIZE)
    works: dict[str, Callable[[], object]] = {}
    amounts: dict[str, int] = {}
    for stream, name in BLOCK.items():
        works[f"{name}, into fresh memory"] = lambda s=stream: fc.ops.keystream(SIZE, keys[0], NONCE, 0, s, threads=1)
        works[f"{name}, cryptography"] = openssl(stream, keys[0], data, out)
        for count in (1, KEYS):
            label = f"{name}, {count} {'key' if count == 1 else 'keys'} added"
            works[label] = lambda s=stream, n=count: fc.ops.keystream_add(
                values, keys[:n], NONCE, 0, signs[:n], s, threads=1
            )
            amounts[label] = count
    times = alternate(works, rounds=7)
    results: dict[str, object] = {"bytes": SIZE, "threads": 1}
    results |= {name: {**t, "GB/s": amounts.get(name, 1) * SIZE / t["median"] / 1e9} for name, t in times.items()}
    save("keystream", results, ("cryptography",))


if __name__ == "__main__":
    main()
