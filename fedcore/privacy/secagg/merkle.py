"""A Merkle tree over what all members advertised: one root commits the server to one set of keys.

Leaves and nodes are hashed under different prefixes, as in RFC 6962, and a leaf with its position; members that
advertised nothing have an empty leaf.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

HASH = 32


def _leaf(position: int, data: bytes) -> bytes:
    return hashlib.sha256(b"\x00" + position.to_bytes(4, "little") + data).digest()


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()


def depth(count: int) -> int:
    """Hashes of a proof in a tree of `count` leaves."""
    return (count - 1).bit_length()


class Tree:
    """The tree over leaves 0 to count − 1; those not in `leaves` are empty."""

    def __init__(self, leaves: Mapping[int, bytes], count: int):
        level = [_leaf(position, leaves.get(position, b"")) for position in range(1 << depth(count))]
        self._levels = [level]
        while len(level) > 1:
            level = [_node(level[i], level[i + 1]) for i in range(0, len(level), 2)]
            self._levels.append(level)

    @property
    def root(self) -> bytes:
        """32 bytes that commit to every leaf."""
        return self._levels[-1][0]

    def proof(self, position: int) -> bytes:
        """The siblings from a leaf up to the root."""
        return b"".join(level[(position >> i) ^ 1] for i, level in enumerate(self._levels[:-1]))


def proven(root: bytes, position: int, data: bytes, proof: bytes, count: int) -> bool:
    """Whether `proof` shows that the leaf at a position holds `data`."""
    if len(proof) != HASH * depth(count) or not 0 <= position < count:
        return False
    found = _leaf(position, data)
    for i in range(depth(count)):
        beside = proof[HASH * i : HASH * (i + 1)]
        found = _node(beside, found) if position >> i & 1 else _node(found, beside)
    return found == root
