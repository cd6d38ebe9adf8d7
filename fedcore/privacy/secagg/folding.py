"""The sum of masked vectors, folded as they arrive."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fedcore.errors import Forged, FormatError, RangeError, Replayed, Void
from fedcore.privacy.secagg import wire
from fedcore.privacy.secagg.keys import ChunkTags
from fedcore.privacy.secagg.parameters import Parameters

#: clients whose vectors may be on their way at once: the chunks of each are kept until it is whole
IN_FLIGHT = 8


class Folding:
    """Σ of whole vectors modulo 2**bits, in one array; chunks of vectors that are on their way wait, packed.

    A vector counts whole or not at all, so that a client that goes away half-way leaves nothing in the sum.
    """

    def __init__(self, p: Parameters):
        self._p = p
        self._total = np.zeros(p.length, np.uint32 if p.modulus_bits <= 32 else np.uint64)
        self._waiting: dict[int, list[bytes]] = {}
        self._tags: dict[int, ChunkTags] = {}
        self._torn = False

    @property
    def waiting(self) -> list[int]:
        """Members whose vectors came in part; first the one whose last chunk is the longest ago."""
        return [*self._waiting]

    @property
    def total(self) -> np.ndarray:
        """(length,) residues. Raises Void where a vector was folded in part, as by Ctrl+C."""
        self._check_whole()
        return self._total

    def _check_whole(self) -> None:
        if self._torn:
            raise Void("mask: a vector was folded in part when the server was stopped; go on from its last state")

    def take(
        self, position: int, message: wire.Signed, tags: Callable[[int], ChunkTags], who: str
    ) -> list[bytes | memoryview] | None:
        """Keep the next chunk of a member; of a vector that is whole with it, which then is not kept, all chunks.

        tags: member -> what its chunks are checked by. Raises Forged for a chunk that it did not make, Replayed for one
        that is not the next, FormatError for one of another length or with bits beyond the last coordinate, RangeError
        while too many other vectors are on their way, Void as `total` does.
        """
        self._check_whole()
        if len(message.body) < 4:
            raise FormatError(f"{who}: has no number of a chunk")
        number, packed = int.from_bytes(message.body[:4], "little"), message.body[4:]
        if position not in self._tags:
            self._tags[position] = tags(position)
        if not self._tags[position].fits(number, packed, message.signature):
            raise Forged(f"{who}: chunk {number} is not one that it made for this round")
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
        if number + 1 == wire.chunks(self._p):
            return [*waiting, packed]
        self._waiting.pop(position, None)  # now the last of those that wait
        self._waiting[position] = [*waiting, bytes(packed)]
        return None

    def fold(self, position: int, whole: list[bytes | memoryview], done: set[int]) -> None:
        """Add a whole vector to the sum, and its member to those whose vectors are in it: both, or the sum is void."""
        from fedcore.ops import unpack_add

        self._torn = True
        for number, packed in enumerate(whole):
            start = number * wire.CHUNK
            unpack_add(np.frombuffer(packed, np.uint8), self._p.modulus_bits, self._total, start)
        done.add(position)
        self._torn = False
        self.forget(position)

    def forget(self, position: int | None = None) -> None:
        """Drop what came of a vector that is not whole, or of all of them."""
        for one in [*self._tags] if position is None else [position]:
            self._waiting.pop(one, None)
            self._tags.pop(one, None)
