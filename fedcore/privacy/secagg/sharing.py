"""A client's shares for its holders, and those that it holds of others."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fedcore.privacy.secagg import wire
from fedcore.privacy.secagg.keys import RoundKeys, Seals
from fedcore.privacy.secagg.peers import Peer
from fedcore.privacy.secagg.round import Round


def seals_of(round: Round, keys: RoundKeys, me: int, tag: bytes) -> Seals:
    """What seals a client's shares and opens those that it holds."""
    return Seals(keys.share, tag, me, "share: the public key of", round.roster.ids)


def sealed_shares(round: Round, keys: RoundKeys, seals: Seals, holders: list[int], peers: Mapping[int, Peer]) -> bytes:
    """Positions of the holders that are there, then 80 bytes for each: its shares of seed and mask secret, sealed."""
    from fedcore.ops import shamir_split

    p = round.parameters
    secret = np.frombuffer(bytearray().join((keys.mask_bytes, keys.seed)), np.uint8)[None]
    try:
        shares = shamir_split(secret, p.threshold, p.neighbours, keys.derived("polynomials"))
    finally:
        secret[:] = 0
    try:
        there = [(x, holder) for x, holder in enumerate(holders) if holder in peers]
        parts, plain, size = [wire.positions([holder for _, holder in there])], shares.data.cast("B"), shares[0].nbytes
        for x, holder in there:
            parts.append(seals.seal(holder, peers[holder].share_public, plain[x * size : (x + 1) * size]))
    finally:
        shares[:] = 0
    return b"".join(parts)


def opened_shares(seals: Seals, peers: Mapping[int, Peer], sealed: Mapping[int, bytes]) -> dict[int, bytearray]:
    """Sender -> its shares, to be overwritten, none of one whose do not open."""
    opened = {sender: seals.open(sender, peers[sender].share_public, data) for sender, data in sealed.items()}
    return {sender: bytearray(shares or b"") for sender, shares in opened.items()}
