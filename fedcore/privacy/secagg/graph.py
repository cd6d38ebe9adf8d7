"""Who is whose neighbour: all others, a random circle that all can find, or what each client draws by itself.

The holders of a client are the k members that get shares of its secrets. Where a server follows the protocol the
relation is symmetric: all others, or the k/2 before and after it on a circle in an order that the round's binding gives
(Bell et al. 2020 §3.2, a Harary graph on a random order). Against a malicious server of a larger cohort each client
draws its holders itself (§4), and advertises them, signed, in the tree that commits the server.
"""

from __future__ import annotations

import numpy as np

from fedcore.privacy.secagg.keys import hkdf
from fedcore.privacy.secagg.parameters import Parameters


def random_order(count: int, key: bytes) -> np.ndarray:
    """A random order of 0 to count − 1: 64-bit words of ChaCha20, sorted."""
    from fedcore.ops import keystream

    return np.argsort(keystream(8 * count, key, bytes(12), 0).view("<u8"), kind="stable")


def drawn(p: Parameters, key: bytes, me: int) -> list[int]:
    """The k holders that a client draws by its own secret key, ascending."""
    order = random_order(p.clients - 1, key)[: p.neighbours]
    return sorted(int(other) + (other >= me) for other in order)


class Graph:
    """The public graph of a round; where clients draw their holders there is none, and `public` is False."""

    def __init__(self, p: Parameters, binding: bytes):
        self.public = p.complete or not p.malicious
        self._p = p
        if self.public and not p.complete:
            self._order = random_order(p.clients, hkdf(binding, "draw", binding))
            self._rank = np.empty(p.clients, np.int64)
            self._rank[self._order] = np.arange(p.clients)

    def holders(self, position: int) -> list[int]:
        """The holders of a client's shares, ascending; the share of each has x = its index here + 1."""
        if self._p.complete:
            return [other for other in range(self._p.clients) if other != position]
        half, at = self._p.neighbours // 2, self._rank[position]
        around = self._order.take(np.arange(at - half, at + half + 1), mode="wrap").tolist()
        del around[half]  # the client itself
        return sorted(around)
