"""A client's masked vector: the keys of its masks, and the chunks that go out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from fedcore.privacy.secagg import wire
from fedcore.privacy.secagg.keys import KEY_BYTES, ChunkTags, RoundKeys, pair_key, self_key
from fedcore.privacy.secagg.parameters import Parameters
from fedcore.privacy.secagg.peers import Peer
from fedcore.privacy.secagg.roster import Id
from fedcore.privacy.secagg.tagging import AT_ONCE, Tagging
from fedcore.privacy.secagg.vector import Integers, Weighted

#: numbers that are copied and masked at a time: their copy stays in a cache, and threads are worth their start
_BLOCK = 1 << 18


def mask_keys(
    keys: RoundKeys, tag: bytes, me: int, partners: list[int], peers: Mapping[int, Peer], names: list[Id]
) -> tuple[np.ndarray, np.ndarray]:
    """Keys (1 + m, 32) and signs (1 + m,): of the client's own mask, and of one for each partner.

    The lower position of a pair adds, the higher one subtracts.
    """
    found = [self_key(keys.seed, tag)]
    for other in partners:
        public = peers[other].mask_public
        found.append(pair_key(keys.mask, public, tag, me, other, "mask: the public key of", names[other]))
    signs = [1] + [1 if me < other else -1 for other in partners]
    return np.frombuffer(bytearray().join(found), np.uint8).reshape(-1, KEY_BYTES), np.array(signs, np.int8)


def chunks(
    values: Weighted | Integers,
    known: bytes,
    own: RoundKeys,
    keys: np.ndarray,
    signs: np.ndarray,
    p: Parameters,
    me: int,
    tag: bytes,
    tags: ChunkTags,
) -> Iterator[bytes]:
    """The messages that carry a masked vector, in order.

    known: the vector's `tags`. What is masked is a copy, which is compared with them before any of its part goes out:
    under these keys nothing but this vector is sent, whatever is done to `values` in between. Raises Replayed.
    """
    packed = np.empty((min(AT_ONCE, p.length) * p.modulus_bits + 7) // 8, np.uint8)
    key, room = own.derived("vector"), np.empty(min(_BLOCK, len(values.values)), values.values.dtype)
    for start in range(0, p.length, AT_ONCE):
        stop, at, tagging = min(start + AT_ONCE, p.length), 0, Tagging(values, key, start)
        for first in range(start, stop, _BLOCK):
            count, to = min(_BLOCK, stop - first), (first - start) * p.modulus_bits // 8
            block = values.values[first : first + count]
            copy = room[: len(block)]
            copy[:] = block
            tagging.add(copy)
            out = packed[to : to + (count * p.modulus_bits + 7) // 8]
            values.packed(copy, first, count, out, keys, signs, p)
        tagging.check(known)
        for number in range(start // wire.CHUNK, -(-stop // wire.CHUNK)):
            part = packed[at : at + wire.chunk_bytes(p, number)].data
            yield wire.chunk(me, tag, number, part, tags.tag(number, part))
            at += len(part)
