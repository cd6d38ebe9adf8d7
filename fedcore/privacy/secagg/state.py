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

from fedcore.errors import FormatError, PrivacyError, Replayed
from fedcore.privacy.seal import check_sealing_key
from fedcore.privacy.secagg.round import Round
from fedcore.privacy.secagg.wire import readable

_KIND, _VERSION, _SALT, _TAG, _PIECE = b"fcss", 8, 32, 16, 1 << 24
_MAGIC = _KIND + bytes([_VERSION])
#: of a generation: the round, and how many stages of it are over, with the highest byte first so that they compare
_WHEN = struct.Struct(">QB")
GENERATION_BYTES = 32


def generation_of(round: Round, stages: int) -> bytes:
    """What names one state of a party: 32 bytes that grow with rounds and stages. 23 of them are random, so that no
    other session, member, start or process has the same, though it be in the same stage of a round of this number."""
    return _WHEN.pack(round.number, stages) + os.urandom(GENERATION_BYTES - _WHEN.size)


def check_newest(found: bytes, newest: bytes | None, kind: str) -> None:
    """Raise Replayed unless a state has the newest generation, if that is known; PrivacyError where it is none."""
    if newest is None:
        return
    if not isinstance(newest, bytes) or len(newest) != GENERATION_BYTES:
        got = f"{len(newest)} bytes" if isinstance(newest, bytes) else type(newest).__name__
        raise PrivacyError(f"generation: got {got}, expected the {GENERATION_BYTES} bytes that `generation` gave")
    if found == newest:
        return
    old, new = ("of round {} with {} stages over".format(*_WHEN.unpack_from(each)) for each in (found, newest))
    wrong = f"{old}, the newest is {new}" if old != new else f"another one {old} than the newest"
    raise Replayed(f"state of a {kind}: is {wrong}; restore that one")


def seal(fields: dict[str, bytes], kind: str, sealing_key: bytes) -> bytes:
    """Seal named bytes under a key of 32 bytes: ChaCha20-Poly1305 under a fresh key for each state (HKDF with a random
    salt), piece by piece, the last one marked."""
    heads = {name: struct.pack("<BQ", len(name), len(value)) + name.encode() for name, value in fields.items()}
    # put together in one go: a buffer that grows leaves what it held behind
    plain = bytearray(b"").join(part for name, value in fields.items() for part in (heads[name], value))
    salt = os.urandom(_SALT)
    cipher, out = _cipher(sealing_key, salt, kind), [_MAGIC, salt]
    count = max(1, -(-len(plain) // _PIECE))
    with memoryview(plain) as view:
        for i in range(count):
            out.append(cipher.encrypt(_nonce(i, i == count - 1), view[i * _PIECE : (i + 1) * _PIECE], None))
    plain[:] = bytes(len(plain))
    return b"".join(out)


def unseal(data: bytes, kind: str, sealing_key: bytes) -> dict[str, bytes]:
    """What was sealed. Raises FormatError for a state that was changed, cut, of another kind or
    version, or under another key."""
    view = readable(data, f"state of a {kind}")
    if len(view) >= len(_MAGIC) and view[: len(_KIND)] == _KIND and view[len(_KIND)] != _VERSION:
        raise FormatError(
            f"state of a {kind}: got version {view[len(_KIND)]}, expected {_VERSION}; finish the round with the "
            "release that wrote it"
        )
    if len(view) < len(_MAGIC) + _SALT + _TAG or view[: len(_MAGIC)] != _MAGIC:
        raise FormatError(f"state of a {kind}: is not one; expected what to_bytes gave")
    cipher = _cipher(sealing_key, bytes(view[len(_MAGIC) : len(_MAGIC) + _SALT]), kind)
    body = view[len(_MAGIC) + _SALT :]
    count = -(-len(body) // (_PIECE + _TAG))
    plain = bytearray(len(body) - count * _TAG)
    try:
        for i in range(count):
            piece = body[i * (_PIECE + _TAG) : (i + 1) * (_PIECE + _TAG)]
            plain[i * _PIECE : (i + 1) * _PIECE] = cipher.decrypt(_nonce(i, i == count - 1), piece, None)
        return _fields(plain)
    except InvalidTag:
        raise FormatError(f"state of a {kind}: does not open: changed, or sealed under another key") from None
    finally:
        plain[:] = bytes(len(plain))


def _fields(plain: bytearray) -> dict[str, bytes]:
    """Name -> bytes of an opened state."""
    fields, at = {}, 0
    with memoryview(plain) as view:
        while at < len(plain):
            name, size = struct.unpack_from("<BQ", plain, at)
            at += 9
            fields[str(view[at : at + name], "utf-8")] = bytes(view[at + name : at + name + size])
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
    check_sealing_key(sealing_key)
    info = b"fedcore secagg 1 state of a " + kind.encode()
    return ChaCha20Poly1305(HKDF(SHA256(), 32, salt, info).derive(sealing_key))
