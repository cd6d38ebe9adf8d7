"""Messages: a fixed header, a body of little-endian fields, and a signature on what members send, or a tag on chunks.

Every message is hostile until checked. A reader never allocates what a length claims: it takes slices of the bytes that
are there, and no message is looked into that is longer than the largest honest one.
"""

from __future__ import annotations

import operator
import struct
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from fedcore.errors import Forged, FormatError, Replayed
from fedcore.privacy.secagg.keys import SIGNATURE_BYTES, TAG_BYTES
from fedcore.privacy.secagg.parameters import STAGES, Parameters

MAGIC, VERSION = b"fcsa", 3
#: magic, version, kind, sender, bytes of the body, the round's tag
HEADER = struct.Struct("<4sBBHQ8s")
#: the position that stands for the server, and what its kinds have more than the stage's
SERVER, FROM_SERVER = 0xFFFF, 16
#: coordinates of one chunk of a masked vector; a multiple of 8, so that each starts on a byte
CHUNK = 1 << 18
#: what a member signs in the mask stage before its vector, against a malicious server: with whom it has masks
INCLUDED = "included"
_KINDS = (*STAGES, INCLUDED)
ADVERTISED, SEALED, ENTRY = 96, 80, 3


@dataclass(frozen=True)
class Signed:
    """A message of a member, its signature (a chunk's tag) not yet checked."""

    sender: int
    body: memoryview
    signature: bytes


def kind_of(stage: str, server: bool = False) -> int:
    """The number of a message: the stage it is sent in, or that a server's message starts; or INCLUDED."""
    return _KINDS.index(stage) + (FROM_SERVER if server else 0)


def pack(kind: int, sender: int, tag: bytes, body: bytes, signature: bytes = b"") -> bytes:
    """A message."""
    return b"".join((HEADER.pack(MAGIC, VERSION, kind, sender, len(body), tag[:8]), body, signature))


def chunk(sender: int, tag: bytes, number: int, packed: memoryview, mac: bytes) -> bytes:
    """A chunk of a masked vector, copied once."""
    head = HEADER.pack(MAGIC, VERSION, kind_of("mask"), sender, 4 + len(packed), tag[:8])
    return b"".join((head, number.to_bytes(4, "little"), packed, mac))


def readable(data: bytes, who: str) -> memoryview:
    """The bytes of a message, not copied. Raises FormatError for what is none."""
    if isinstance(data, (bytes, bytearray, memoryview)):
        with suppress(TypeError):  # of a view with gaps
            view = memoryview(data)
            return view.cast("B").toreadonly() if view.nbytes else memoryview(b"")
    raise FormatError(f"{who}: got {type(data).__name__}, expected bytes, or a view of them without gaps")


def unpack(data: bytes, kind: int, sender: int, tag: bytes, most: int, who: str) -> Signed:
    """Check all that can be checked without keys. `who` names stage and sender in errors.

    Raises FormatError for bytes that are no message or of a wrong length, Replayed for one of another stage or round,
    Forged for one that names another sender.
    """
    view = readable(data, who)
    tail = 0 if sender == SERVER else TAG_BYTES if kind == kind_of("mask") else SIGNATURE_BYTES
    if len(view) < HEADER.size:
        raise FormatError(f"{who}: got {len(view)} bytes, expected at least {HEADER.size + tail}")
    magic, version, got, name, length, round_tag = HEADER.unpack(view[: HEADER.size])
    if magic != MAGIC:
        raise FormatError(f"{who}: is not a message of a secure sum")
    if version != VERSION:
        raise FormatError(f"{who}: got version {version}, expected {VERSION}; update the older side")
    if name != sender:
        raise Forged(f"{who}: names another sender")
    if round_tag != tag[:8]:
        raise Replayed(f"{who}: is of another round, session, model or set of keys than this one")
    if got != kind:
        stage = _KINDS[got % FROM_SERVER] if got % FROM_SERVER < len(_KINDS) else "no stage"
        raise Replayed(f"{who}: is a message of {stage}, which came late, again or too early")
    if length > most or length != len(view) - HEADER.size - tail:
        raise FormatError(
            f"{who}: its header claims a body of {length} bytes, it has {len(view) - HEADER.size - tail}, expected at "
            f"most {most}"
        )
    return Signed(name, view[HEADER.size : len(view) - tail], bytes(view[len(view) - tail :]))


class Reader:
    """Fields of a body, one after the other; each is checked to be there before it is taken."""

    def __init__(self, body: memoryview, who: str):
        self._left, self._who = body, who

    def take(self, size: int) -> bytes:
        """The next `size` bytes."""
        if size > len(self._left):
            raise FormatError(f"{self._who}: is cut short: {size} bytes expected, {len(self._left)} left")
        found, self._left = bytes(self._left[:size]), self._left[size:]
        return found

    def each(self, count: int, size: int) -> list[bytes]:
        """The next `count` fields of `size` bytes."""
        found = self.take(count * size)
        return [found[at : at + size] for at in range(0, len(found), size)]

    def number(self, size: int = 2) -> int:
        """A whole number of `size` bytes."""
        return int.from_bytes(self.take(size), "little")

    def positions(self, clients: int, most: int) -> list[int]:
        """A counted list of members, each once, in ascending order."""
        count = self.number()
        if count > most:
            raise FormatError(f"{self._who}: lists {count} members, expected at most {most}")
        found = list(struct.unpack(f"<{count}H", self.take(2 * count)))
        check_positions(found, clients, self._who)
        return found

    def members(self, clients: int) -> set[int]:
        """A set of members, as `members` writes it. Raises Forged for one beyond the last."""
        bits = np.unpackbits(np.frombuffer(self.take((clients + 7) // 8), np.uint8), bitorder="little")
        if bits[clients:].any():
            raise Forged(f"{self._who}: names a member beyond the last of {clients}")
        return set(np.flatnonzero(bits).tolist())

    def rest(self) -> memoryview:
        """All that is left."""
        found, self._left = self._left, self._left[:0]
        return found

    @property
    def more(self) -> bool:
        """Whether anything is left."""
        return len(self._left) > 0

    def done(self) -> None:
        """Raise FormatError unless everything was read."""
        if self._left:
            raise FormatError(f"{self._who}: has {len(self._left)} bytes too many")


def check_positions(found: list[int], clients: int, who: str) -> None:
    """Raise Forged unless positions are of members and ascend, so that none is there twice."""
    if any(map(operator.ge, found, found[1:])):
        raise Forged(f"{who}: names a member twice or out of order")
    if found and found[-1] >= clients:
        raise Forged(f"{who}: names member {found[-1]} of {clients}")


def positions(found: list[int]) -> bytes:
    """A counted list of members for the wire."""
    return struct.pack(f"<H{len(found)}H", len(found), *found)


def members(found: Iterable[int], clients: int) -> bytes:
    """A set of members for the wire: bit i, counted from the low end, for member i."""
    bits = np.zeros(clients, np.uint8)
    bits[list(found)] = 1
    return np.packbits(bits, bitorder="little").tobytes()


def advertised_bytes(p: Parameters) -> int:
    """Bytes of the body of an advertisement: keys, and the neighbours where clients draw them."""
    return ADVERTISED + (2 * p.neighbours if p.malicious and not p.complete else 0)


def chunks(p: Parameters) -> int:
    """Chunks of a masked vector."""
    return -(-p.length // CHUNK)


def chunk_bytes(p: Parameters, number: int) -> int:
    """Packed bytes of one chunk."""
    return (min(CHUNK, p.length - number * CHUNK) * p.modulus_bits + 7) // 8


def degree(p: Parameters) -> int:
    """The most members that a client has a mask with."""
    return min(p.clients - 1, p.neighbours + (p.in_degree if p.malicious and not p.complete else 0))
