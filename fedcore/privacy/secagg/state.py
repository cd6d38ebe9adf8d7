"""The state of a member or server on disk: encrypted, authenticated, and in pieces of bounded size."""

from __future__ import annotations

import os
import struct
from collections.abc import Collection, Mapping
from itertools import accumulate, pairwise

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedcore.errors import FormatError, PrivacyError
from fedcore.privacy.secagg.wire import readable

_MAGIC, _SALT, _TAG, _PIECE = b"fcss\x06", 32, 16, 1 << 24


def seal(fields: dict[str, bytes], kind: str, sealing_key: bytes) -> bytes:
    """Seal named bytes under a key of 32 bytes: ChaCha20-Poly1305 under a fresh key for each state (HKDF with a random
    salt), piece by piece, the last one marked."""
    plain = bytearray()
    for name, value in fields.items():
        plain += struct.pack("<BQ", len(name), len(value)) + name.encode() + value
    salt = os.urandom(_SALT)
    cipher, out = _cipher(sealing_key, salt, kind), [_MAGIC, salt]
    count = max(1, -(-len(plain) // _PIECE))
    with memoryview(plain) as view:
        for i in range(count):
            out.append(cipher.encrypt(_nonce(i, i == count - 1), view[i * _PIECE : (i + 1) * _PIECE], None))
    plain[:] = bytes(len(plain))
    return b"".join(out)


def unseal(data: bytes, kind: str, sealing_key: bytes) -> dict[str, bytes]:
    """What was sealed. Raises FormatError for a state that was changed, cut, of another kind or under another key."""
    view = readable(data, f"state of a {kind}")
    if len(view) < len(_MAGIC) + _SALT + _TAG or view[: len(_MAGIC)] != _MAGIC:
        raise FormatError(f"state of a {kind}: is not one; expected what to_bytes gave")
    cipher, plain = _cipher(sealing_key, bytes(view[len(_MAGIC) : len(_MAGIC) + _SALT]), kind), bytearray()
    body = view[len(_MAGIC) + _SALT :]
    count = -(-len(body) // (_PIECE + _TAG))
    try:
        for i in range(count):
            piece = body[i * (_PIECE + _TAG) : (i + 1) * (_PIECE + _TAG)]
            plain += cipher.decrypt(_nonce(i, i == count - 1), piece, None)
    except InvalidTag:
        raise FormatError(f"state of a {kind}: does not open: changed, or sealed under another key") from None
    fields, at = {}, 0
    while at < len(plain):
        name, size = struct.unpack_from("<BQ", plain, at)
        at += 9
        fields[plain[at : at + name].decode()] = bytes(plain[at + name : at + name + size])
        at += name + size
    return fields


def positions(found: Collection[int]) -> bytes:
    """Members as a field of a state, ascending."""
    return np.array(sorted(found), "<u2").tobytes()


def read_positions(data: bytes) -> list[int]:
    """What `positions` wrote."""
    return np.frombuffer(data, "<u2").tolist()


def records(found: Mapping[int, tuple[bytes, ...]]) -> bytes:
    """Byte strings of each member, as a field of a state."""
    parts = []
    for position, values in found.items():
        parts.append(struct.pack(f"<HB{len(values)}I", position, len(values), *map(len, values)))
        parts += values
    return b"".join(parts)


def read_records(data: bytes) -> dict[int, tuple[bytes, ...]]:
    """What `records` wrote."""
    found, at = {}, 0
    while at < len(data):
        position, count = struct.unpack_from("<HB", data, at)
        sizes = struct.unpack_from(f"<{count}I", data, at + 3)
        ends = list(accumulate(sizes, initial=at + 3 + 4 * count))
        found[position] = tuple(data[start:end] for start, end in pairwise(ends))
        at = ends[-1]
    return found


def _nonce(number: int, last: bool) -> bytes:
    return struct.pack("<QI", number, last)


def _cipher(sealing_key: bytes, salt: bytes, kind: str) -> ChaCha20Poly1305:
    if not isinstance(sealing_key, bytes) or len(sealing_key) != 32:
        raise PrivacyError("sealing_key: expected 32 random bytes; make them with os.urandom")
    info = b"fedcore secagg 1 state of a " + kind.encode()
    return ChaCha20Poly1305(HKDF(SHA256(), 32, salt, info).derive(sealing_key))
