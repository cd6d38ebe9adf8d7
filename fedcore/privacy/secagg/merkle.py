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


class Proofs:
    """Proofs under one root. What one has shown of the tree the next ones need not hash again: where a path meets a
    node that is known, the nodes beside it from there on are known as well."""

    def __init__(self, root: bytes, count: int):
        self._count, self._depth = count, depth(count)
        self._known = {(self._depth, 0): root}  # (level from the leaves, index) -> hash

    def holds(self, position: int, data: bytes, proof: bytes) -> bool:
        """Whether `proof` shows that the leaf at a position holds `data`."""
        if len(proof) != HASH * self._depth or not 0 <= position < self._count:
            return False
        found = _leaf(position, data)
        path: dict[tuple[int, int], bytes] = {}
        for level in range(self._depth + 1):
            index = position >> level
            known = self._known.get((level, index))
            if known is not None:
                beside = [self._known[i, position >> i ^ 1] for i in range(level, self._depth)]
                if known != found or b"".join(beside) != proof[HASH * level :]:
                    return False
                self._known |= path
                return True
            sibling = proof[HASH * level : HASH * (level + 1)]
            path[level, index], path[level, index ^ 1] = found, sibling
            found = _node(sibling, found) if index & 1 else _node(found, sibling)
        return False
