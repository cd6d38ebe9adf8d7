"""What a client reads from its server's messages, and refuses.

Each reader takes a whole message, checks every field, and returns what it says; nothing of a client changes before all
of a message is accepted. Against a malicious server it is the checks here that hold, not the server's word.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from fedcore.errors import Forged, Void
from fedcore.numbers import shown
from fedcore.privacy.secagg import merkle, wire
from fedcore.privacy.secagg.keys import KEY_BYTES, SIGNATURE_BYTES, signed_text, verified
from fedcore.privacy.secagg.round import Round

SEED, MASK = 1, 2  # which share is asked for: of a survivor's seed, or of a dropout's mask secret


class Peer(NamedTuple):
    """What another member advertised, and whether the client is a holder of its shares."""

    share_public: bytes
    mask_public: bytes
    ward: bool


@dataclass(frozen=True)
class Keys:
    """The root that commits the server to all keys, the server's own key for chunks, and neighbours by position."""

    root: bytes
    server: bytes
    peers: dict[int, Peer]


def _open(tag: bytes, stage: str, data: bytes, most: int) -> tuple[wire.Reader, str]:
    who = f"{stage}: the server's message"
    message = wire.unpack(data, wire.kind_of(stage, server=True), wire.SERVER, tag, most, who)
    return wire.Reader(message.body, who), who


def read_keys(round: Round, me: int, holders: Collection[int], data: bytes) -> Keys:
    """What the message that starts 'share' says.

    Neighbours are the client's holders and those whose holder it is. Against a malicious server each comes with its
    signature and its proof under the root. Raises Forged for one that is named twice, is no neighbour, did not sign, is
    not in the tree or has other holders than it may; Void where holders are fewer than the threshold.
    """
    p, size, public = round.parameters, wire.advertised_bytes(round.parameters), round.graph.public
    proof = SIGNATURE_BYTES + merkle.HASH * merkle.depth(p.clients) if p.malicious else 0
    most = merkle.HASH + KEY_BYTES + 2 + wire.degree(p) * (2 + size + proof)
    reader, who = _open(round.binding, "share", data, most)
    root, server = reader.take(merkle.HASH), reader.take(KEY_BYTES)
    found = reader.positions(p.clients, wire.degree(p))
    if me in found:
        raise Forged(f"{who}: names the client as its own neighbour")
    records = dict(zip(found, reader.each(len(found), size + proof), strict=True))
    reader.done()
    if proof:
        proofs = merkle.Proofs(root, p.clients)
        for position, record in records.items():
            _check_advertised(round, proofs, position, record[:size], record[size:], who)
    mine = set(holders) & records.keys()
    # the public graphs are symmetric
    wards = mine if public else {i for i, record in records.items() if me in holders_of(round, i, record, who)}
    if strangers := records.keys() - mine - wards:
        raise Forged(f"{who}: names {shown(round.roster.ids[min(strangers)])}, which is no neighbour")
    if len(wards) > p.in_degree:
        raise Forged(f"{who}: more than {p.in_degree} members have the client as a holder, the server is to cut pairs")
    _enough(len(mine), round, who, "of the client's holders advertised keys")
    return Keys(root, server, {i: Peer(record[:32], record[32:64], i in wards) for i, record in records.items()})


def _check_advertised(round: Round, proofs: merkle.Proofs, position: int, body: bytes, signed: bytes, who: str) -> None:
    """A member's signature on its keys, and the proof that they are the ones that the server committed to."""
    name = round.roster.ids[position]
    signature, proof = signed[:SIGNATURE_BYTES], signed[SIGNATURE_BYTES:]
    if not verified(round.roster.public(position), signature, signed_text("advertise", round.binding, position, body)):
        raise Forged(f"{who}: holds keys of {shown(name)} that it did not sign for this round")
    if not proofs.holds(position, body, proof):
        raise Forged(f"{who}: holds keys of {shown(name)} that are not under the root that the server committed to")


def holders_of(round: Round, position: int, body: bytes, who: str) -> list[int]:
    """The holders of a member: those of the public graph, or those it advertised. Raises Forged for a bad list."""
    p = round.parameters
    if round.graph.public:
        return round.graph.holders(position)
    found = list(struct.unpack_from(f"<{p.neighbours}H", body, wire.ADVERTISED))
    wire.check_positions(found, p.clients, who)
    if position in found:
        raise Forged(f"{who}: {shown(round.roster.ids[position])} drew itself as a holder")
    return found


def read_sealed(
    round: Round, holders: Collection[int], peers: Mapping[int, Peer], tag: bytes, data: bytes
) -> tuple[list[int], dict[int, bytes]]:
    """(members to have a mask with, sealed shares by sender) of the message that starts 'mask'.

    Raises Forged for a member that advertised no keys, Void where fewer holders than the threshold have shares.
    """
    reader, who = _open(tag, "mask", data, 2 + len(peers) * (2 + wire.SEALED))
    partners = reader.positions(round.parameters.clients, len(peers))
    if not set(partners) <= peers.keys():
        raise Forged(f"{who}: names a member whose keys the client never saw")
    wards = [position for position in partners if peers[position].ward]
    sealed = dict(zip(wards, reader.each(len(wards), wire.SEALED), strict=True))
    reader.done()
    _enough(len(set(partners) & set(holders)), round, who, "of the client's holders shared their secrets")
    return partners, sealed


def read_included(
    round: Round, me: int, partners: Collection[int], held: Collection[int], tag: bytes, data: bytes
) -> set[int]:
    """Members whose signed lists say that their vectors were sent, of the message that starts 'acknowledge'.

    A list names all with whom its member has a mask: a client acknowledges only one that has a mask with it. Raises
    Forged for a member whose shares the client does not hold, a list without the client, and a bad signature.
    """
    p = round.parameters
    most = wire.degree(p)
    reader, who = _open(tag, "acknowledge", data, 2 + len(held) * (4 + 2 * most + SIGNATURE_BYTES))
    included: set[int] = set()
    count = reader.number()
    for _ in range(count):
        position = reader.number()
        if position in included or position not in held or position not in partners:
            raise Forged(f"{who}: names member {position} twice, or one whose shares the client does not hold")
        listed = reader.positions(p.clients, most)
        text = signed_text("included", tag, position, wire.positions(listed))
        if not verified(round.roster.public(position), reader.take(SIGNATURE_BYTES), text):
            raise Forged(f"{who}: holds a list that {shown(round.roster.ids[position])} did not sign")
        if me not in listed:
            raise Forged(
                f"{who}: {shown(round.roster.ids[position])} has no mask with the client; it was told of others"
            )
        included.add(position)
    reader.done()
    if p.complete:  # the client sees all that are in the sum (`read_request`); elsewhere its neighbours alone
        _least(len(included) + 1, round, who)
    return included


def read_request(
    round: Round,
    me: int,
    holders: Collection[int],
    held: Collection[int],
    included: Collection[int] | None,
    tag: bytes,
    data: bytes,
) -> list[tuple[int, int]]:
    """[(kind of share, member)] that the message which starts 'unmask' asks for.

    A member's seed or its mask secret, never both, once each, and only of members whose shares the client holds.
    Against a malicious server (`included` is given): at least the threshold of holders acknowledged the client, so that
    its own mask secret cannot be had; seeds only of members that it acknowledged, mask secrets only of others. In a
    complete graph these holders acknowledged the same members as the client: twice the threshold being more than all
    holders and those that lie together, no two sets of members are each acknowledged by so many, and all that answer
    make one sum, of at least `min_included`. With a server that follows the protocol: a list of all in the sum, long
    enough, and what is asked for fits it. Raises Forged, Void.
    """
    p = round.parameters
    most = p.neighbours * (4 + 2 * wire.degree(p) + SIGNATURE_BYTES) if p.malicious else (p.clients + 7) // 8
    reader, who = _open(tag, "unmask", data, 4 + most + 2 * len(held) * wire.ENTRY)
    if p.malicious:
        _read_acknowledged(round, me, holders, included or (), tag, reader, who)
    else:
        included = reader.members(p.clients)
        _least(len(included), round, who)
    asked: dict[int, int] = {}
    for _ in range(reader.number()):
        kind, position = reader.number(1), reader.number()
        if kind not in (SEED, MASK):
            raise Forged(f"{who}: asks for a secret of kind {kind}; only seeds and mask secrets are ever shared")
        if position not in held:
            raise Forged(f"{who}: asks for a share of member {position}, which the client does not hold")
        if position in asked:
            raise Forged(
                f"{who}: asks for {shown(round.roster.ids[position])} twice; one kind of share a member is given"
            )
        if included is not None and (kind == SEED) != (position in included):
            none = "no proof came that its vector is in the sum" if p.malicious else "its vector is not in the sum"
            was = none if kind == SEED else "its vector is in the sum"
            what = "seed" if kind == SEED else "mask secret"
            raise Forged(f"{who}: asks for the {what} of {shown(round.roster.ids[position])}, but {was}")
        asked[position] = kind
    reader.done()
    if not p.malicious:
        alive = sum(asked.get(holder) == SEED for holder in holders)
        _enough(alive, round, who, "of the client's neighbours are in the sum")
    return [(kind, position) for position, kind in asked.items()]


def _read_acknowledged(
    round: Round,
    me: int,
    holders: Collection[int],
    included: Collection[int],
    tag: bytes,
    reader: wire.Reader,
    who: str,
) -> None:
    """The holders that acknowledged the client, in a complete graph with all that it acknowledged; each is checked."""
    p, seen, same = round.parameters, set(), {*included, me}
    for _ in range(reader.number()):
        position = reader.number()
        if position in seen or position not in holders:
            raise Forged(f"{who}: names acknowledging member {position} twice, or one that is no holder")
        listed = reader.positions(p.clients, wire.degree(p))
        text = signed_text("acknowledge", tag, position, wire.positions(listed))
        if not verified(round.roster.public(position), reader.take(SIGNATURE_BYTES), text):
            raise Forged(f"{who}: holds an acknowledgement that {shown(round.roster.ids[position])} did not sign")
        if me not in listed:
            raise Forged(f"{who}: {shown(round.roster.ids[position])} did not acknowledge the client")
        if p.complete and {*listed, position} != same:
            raise Forged(f"{who}: {shown(round.roster.ids[position])} acknowledged other members than the client did")
        seen.add(position)
    _enough(len(seen), round, who, "of the client's holders acknowledged it")


def _least(count: int, round: Round, who: str) -> None:
    if count < round.parameters.min_included:
        raise Void(f"{who}: {count} members are in the sum, expected at least {round.parameters.min_included}")


def _enough(count: int, round: Round, who: str, what: str) -> None:
    if count < round.parameters.threshold:
        raise Void(f"{who}: {count} {what}, expected at least {round.parameters.threshold}; it leaves the round")
