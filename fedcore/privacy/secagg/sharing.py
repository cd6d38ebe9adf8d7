"""A client's shares for its holders, and those that it holds of others."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fedcore.privacy.secagg import wire
from fedcore.privacy.secagg.keys import RoundKeys, Seals
from fedcore.privacy.secagg.peers import Peer
from fedcore.privacy.secagg.round import Round


def sealed_shares(
    round: Round, keys: RoundKeys, me: int, holders: list[int], peers: Mapping[int, Peer], tag: bytes
) -> bytes:
    """Positions of the holders that are there, then 80 bytes for each: its shares of seed and mask secret, sealed."""
    from fedcore.ops import shamir_split

    p = round.parameters
    secret = np.frombuffer(keys.mask_bytes + keys.seed, np.uint8)[None]
    shares = shamir_split(secret, p.threshold, p.neighbours, keys.derived("polynomials"))
    try:
        there = [(x, holder) for x, holder in enumerate(holders) if holder in peers]
        parts, plain, size = [wire.positions([holder for _, holder in there])], shares.data.cast("B"), shares[0].nbytes
        seals = Seals(keys.share, tag, me, "share: the public key of", round.roster.ids)
        for x, holder in there:
            parts.append(seals.seal(holder, peers[holder].share_public, plain[x * size : (x + 1) * size]))
    finally:
        shares[:] = 0
    return b"".join(parts)


def opened_shares(
    round: Round, keys: RoundKeys, me: int, peers: Mapping[int, Peer], tag: bytes, sealed: Mapping[int, bytes]
) -> dict[int, bytes]:
    """Sender -> its shares, none of one whose do not open."""
    seals = Seals(keys.share, tag, me, "mask: the public key of", round.roster.ids)
    return {sender: seals.open(sender, peers[sender].share_public, data) or b"" for sender, data in sealed.items()}
