"""A client's shares for its holders, and those that it holds of others."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fedcore.privacy.secagg import wire
from fedcore.privacy.secagg.keys import RoundKeys, Sealed
from fedcore.privacy.secagg.peers import Peer
from fedcore.privacy.secagg.round import Round


def sealed_shares(
    round: Round, keys: RoundKeys, me: int, holders: list[int], peers: Mapping[int, Peer], tag: bytes
) -> bytes:
    """Positions of the holders that are there, then 80 bytes for each: its shares of seed and mask secret, sealed."""
    from fedcore.ops import shamir_split

    p = round.parameters
    secret = np.frombuffer(keys.mask_bytes + keys.seed, np.uint8)[None]
    shares = shamir_split(secret, p.threshold, p.neighbours, keys.polynomials)
    try:
        there = [(x, holder) for x, holder in enumerate(holders) if holder in peers]
        parts, plain, size = [wire.positions([holder for _, holder in there])], shares.data.cast("B"), shares[0].nbytes
        for x, holder in there:
            box = Sealed(keys.share, peers[holder].share_public, tag, me, holder, _whose("share", round, holder))
            parts.append(box.seal(plain[x * size : (x + 1) * size]))
    finally:
        shares[:] = 0
    return b"".join(parts)


def opened_shares(
    round: Round, keys: RoundKeys, me: int, peers: Mapping[int, Peer], tag: bytes, sealed: Mapping[int, bytes]
) -> dict[int, bytes]:
    """Sender -> its shares, none of one whose do not open."""
    held = {}
    for sender, data in sealed.items():
        box = Sealed(keys.share, peers[sender].share_public, tag, sender, me, _whose("mask", round, sender))
        held[sender] = box.open(data) or b""
    return held


def _whose(stage: str, round: Round, position: int) -> str:
    """What errors call a member's public key."""
    return f"{stage}: the public key of {round.roster.ids[position]!r}"
