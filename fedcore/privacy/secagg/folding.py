"""The sum of masked vectors, folded as they arrive."""

from __future__ import annotations

import numpy as np

from fedcore.errors import FormatError, RangeError, Replayed
from fedcore.privacy.secagg import wire
from fedcore.privacy.secagg.parameters import Parameters

#: clients whose vectors may be on their way at once: the chunks of each are kept until it is whole
IN_FLIGHT = 8


class Folding:
    """Σ of whole vectors modulo 2**bits, in one array; chunks of vectors that are on their way wait, packed.

    A vector counts whole or not at all, so that a client that goes away half-way leaves nothing in the sum.
    """

    def __init__(self, p: Parameters):
        self._p = p
        self.total = np.zeros(p.length, np.uint32 if p.modulus_bits <= 32 else np.uint64)
        self._waiting: dict[int, list[bytes]] = {}

    def take(self, position: int, number: int, packed: memoryview, who: str) -> bool:
        """Keep the next chunk of a member; whether its vector is whole and in the sum now.

        Raises Replayed for a chunk that is not the next, FormatError for one of another length or with bits beyond the
        last coordinate, RangeError while too many other vectors are on their way.
        """
        waiting = self._waiting.get(position, [])
        if number != len(waiting):
            raise Replayed(f"{who}: is chunk {number}, expected chunk {len(waiting)}")
        if number >= wire.chunks(self._p) or len(packed) != wire.chunk_bytes(self._p, number):
            raise FormatError(f"{who}: chunk {number} has {len(packed)} bytes, expected those of its coordinates")
        used = (min(wire.CHUNK, self._p.length - number * wire.CHUNK) * self._p.modulus_bits - 1) % 8 + 1
        if packed[-1] >> used:
            raise FormatError(f"{who}: chunk {number} has bits beyond its last coordinate")
        if position not in self._waiting and len(self._waiting) >= IN_FLIGHT and wire.chunks(self._p) > 1:
            raise RangeError(f"{who}: {IN_FLIGHT} other vectors are on their way; send it again when one is whole")
        self._waiting.setdefault(position, []).append(bytes(packed))
        if number + 1 < wire.chunks(self._p):
            return False
        self._fold(self._waiting.pop(position))
        return True

    def _fold(self, parts: list[bytes]) -> None:
        from fedcore.ops import unpack_add

        for number, packed in enumerate(parts):
            start = number * wire.CHUNK
            unpack_add(np.frombuffer(packed, np.uint8), self._p.modulus_bits, self.total, start)

    def forget(self, position: int) -> None:
        """Drop what came of a vector that is not whole."""
        self._waiting.pop(position, None)
