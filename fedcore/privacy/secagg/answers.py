"""What a server sends, each message made when it is asked for."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from hashlib import sha256
from typing import TYPE_CHECKING

from fedcore.privacy.secagg import merkle, wire
from fedcore.privacy.secagg.neighbourhoods import Neighbourhoods
from fedcore.privacy.secagg.roster import Id
from fedcore.privacy.secagg.round import Round

if TYPE_CHECKING:
    from fedcore.privacy.secagg.server import Server

Signed = dict[int, tuple[bytes, ...]]  # of a member: body, signature
Body = Callable[[int], bytes]


class Answers(Mapping[Id, bytes]):
    """Identifier -> message. What all of them say takes memory by members, their bytes would by pairs of members.

    made: position -> SHA-256 of the message of each, once it was made
    """

    def __init__(self, round: Round, stage: str, tag: bytes, to: AbstractSet[int], body: Body, made: dict[int, bytes]):
        self._round, self._kind, self._tag = round, wire.kind_of(stage, server=True), tag
        self._to, self._body, self._made = {round.roster.ids[i]: i for i in sorted(to)}, body, made

    def __getitem__(self, name: Id) -> bytes:
        position = self._to[name]
        message = wire.pack(self._kind, wire.SERVER, self._tag, self._body(position))
        self._made[position] = sha256(message).digest()
        return message

    def __contains__(self, name: object) -> bool:
        return name in self._to

    def __iter__(self) -> Iterator[Id]:
        return iter(self._to)

    def __len__(self) -> int:
        return len(self._to)


def body_of(server: Server, stage: str) -> Body:
    """What starts a stage, from what is in the server's state."""
    p, around, signed = server.round.parameters, server._around, server._signed
    if stage == "share":
        tree = merkle.Tree({i: body for i, (body, _) in signed["advertise"].items()}, p.clients)
        return _keys(p.malicious, tree, server._public, signed["advertise"], around)
    if stage == "mask":
        return _shares(signed["share"], around)
    there = server._included
    if stage == "acknowledge":
        return _lists(server._lists, lambda i: [j for j in around.held_by(i) if j in there])
    if not p.malicious:
        listed = wire.members(there, p.clients)
        return _request(lambda i: listed, server._request)
    seen = signed["acknowledge"]
    return _request(_lists(seen, lambda i: [j for j in around.holders[i] if j in seen]), server._request)


def _keys(malicious: bool, tree: merkle.Tree, public: bytes, advertised: Signed, around: Neighbourhoods) -> Body:
    """To start 'share': the root, the server's key, and the neighbours' keys, with signatures and proofs."""
    entries = {}
    for i, (keys, signature) in advertised.items():
        entries[i] = keys + signature + tree.proof(i) if malicious else keys

    def body(i: int) -> bytes:
        found = around.neighbours[i]
        return tree.root + public + wire.positions(found) + b"".join(entries[j] for j in found)

    return body


def _shares(shared: Signed, around: Neighbourhoods) -> Body:
    """To start 'mask': with whom to have masks, and the sealed shares to hold."""

    def share(sender: int, holder: int) -> bytes:
        data = shared[sender][0]
        count = int.from_bytes(data[:2], "little")
        start = 2 + 2 * count + wire.SEALED * struct.unpack_from(f"<{count}H", data, 2).index(holder)
        return data[start : start + wire.SEALED]

    def body(i: int) -> bytes:
        partners, wards = around.partners(i), set(around.wards[i])
        return wire.positions(partners) + b"".join(share(j, i) for j in partners if j in wards)

    return body


def _lists(signed: Signed, whose: Callable[[int], list[int]]) -> Body:
    """To start 'acknowledge', and the head of what starts 'unmask': what others signed."""

    def body(i: int) -> bytes:
        found = whose(i)
        parts = [struct.pack("<H", j) + b"".join(signed[j]) for j in found]
        return len(found).to_bytes(2, "little") + b"".join(parts)

    return body


def _request(head: Body, request: dict[int, list[tuple[int, int]]]) -> Body:
    """To start 'unmask': why it may be asked, and which shares are."""

    def body(i: int) -> bytes:
        asked = request[i]
        return head(i) + struct.pack("<H", len(asked)) + b"".join(struct.pack("<BH", kind, j) for kind, j in asked)

    return body
