"""What a server reads from its members' messages, and refuses.

Who is who is checked in `wire.unpack`; here it is whether a body is signed, and what it says.
"""

from __future__ import annotations

from collections.abc import Collection

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fedcore.errors import Forged
from fedcore.privacy.secagg import wire
from fedcore.privacy.secagg.keys import KEY_BYTES, agreed, signed_text, verified
from fedcore.privacy.secagg.parameters import Parameters
from fedcore.privacy.secagg.peers import holders_of
from fedcore.privacy.secagg.round import Round
from fedcore.privacy.secagg.transcripts import ANSWERING, Sent, transcript


def longest(p: Parameters, kind: str) -> int:
    """Bytes of the longest honest body."""
    listed = 2 + 2 * wire.degree(p)
    return {
        "advertise": wire.advertised_bytes(p),
        "share": 2 + p.neighbours * (2 + wire.SEALED),
        wire.INCLUDED: listed,
        "mask": 4 + wire.chunk_bytes(p, 0),
        "acknowledge": listed,
        "unmask": 2 + wire.degree(p) * (wire.ENTRY + KEY_BYTES),
    }[kind]


def check_signed(round: Round, kind: str, tag: bytes, message: wire.Signed, sent: Sent, who: str) -> None:
    """Raise Forged unless a message is signed by its sender, and where it is of shares with all that was sent to it."""
    told = transcript(*sent.digests(message.sender)) if kind in ANSWERING else b""
    text = signed_text(kind, tag, message.sender, message.body, told)
    if not verified(round.roster.public(message.sender), message.signature, text):
        both = " and what it was sent: one of them was changed on the way" if told else ""
        raise Forged(f"{who}: is not signed by it for this stage{both}")


def read_advertised(round: Round, private: X25519PrivateKey, position: int, reader: wire.Reader, who: str) -> list[int]:
    """The holders of a member. Raises Forged for keys of low order, which `private` shows, and for a bad list."""
    body = reader.take(wire.advertised_bytes(round.parameters))
    reader.done()
    for public in (body[:KEY_BYTES], body[KEY_BYTES : 2 * KEY_BYTES]):
        agreed(private, public, "advertise: a public key of", round.roster.ids[position])
    return holders_of(round, position, body, who)


def read_shares(p: Parameters, reader: wire.Reader, expected: list[int], who: str) -> None:
    """Sealed shares for the holders that are expected."""
    if reader.positions(p.clients, p.neighbours) != expected:
        raise Forged(f"{who}: has shares for others than its holders")
    reader.take(wire.SEALED * len(expected))
    reader.done()


def read_list(p: Parameters, reader: wire.Reader, expected: list[int], what: str, who: str) -> None:
    """A list of members, which is to be the one that its sender was told of."""
    listed = reader.positions(p.clients, wire.degree(p))
    reader.done()
    if listed != expected:
        raise Forged(f"{who}: {what} other members than it was told of")


def read_given(reader: wire.Reader, asked: Collection[tuple[int, int]], who: str) -> None:
    """Shares, each asked for and given once."""
    given = set()
    for _ in range(reader.number()):
        entry = reader.number(1), reader.number()
        if entry not in asked or entry in given:
            raise Forged(f"{who}: has a share that was not asked for, or one twice")
        given.add(entry)
        reader.take(KEY_BYTES)
    reader.done()
