"""A client's masked vector: the keys of its masks, what goes out under them, and what tells that from anything else."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import GCM

from fedcore.privacy.secagg.keys import KEY_BYTES, RoundKeys, pair_key, self_key
from fedcore.privacy.secagg.parameters import Parameters
from fedcore.privacy.secagg.peers import Peer
from fedcore.privacy.secagg.roster import Id
from fedcore.privacy.secagg.vector import Integers, Weighted

#: bytes that OpenSSL is given in one call: it counts them by an int
_AT_ONCE = 1 << 24


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


def masked(values: Weighted | Integers, keys: np.ndarray, signs: np.ndarray, p: Parameters) -> np.ndarray:
    """A vector under its masks: (⌈length · modulus_bits / 8⌉,) uint8, as it goes over the wire.

    `keys` are overwritten. Raises NonFiniteError.
    """
    try:
        return values.packed(keys, signs, p)
    finally:
        keys[:] = 0


def fingerprint(packed: np.ndarray, key: bytes) -> bytes:
    """What tells a masked vector from any other: 16 bytes.

    GMAC (NIST SP 800-38D), five times as fast as SHA-256. key: a client's secret one of the round. Two vectors have the
    same fingerprint with a chance of at most (bytes + 16) / 2**132, since nobody who could choose them sees the key,
    nor a fingerprint, which stays in the sealed state.
    """
    gmac = Cipher(AES(key), GCM(bytes(12))).encryptor()
    for at in range(0, len(packed), _AT_ONCE):
        gmac.authenticate_additional_data(packed[at : at + _AT_ONCE].data)
    gmac.finalize()
    return gmac.tag
