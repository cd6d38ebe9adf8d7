"""The masks that members' secrets take off a sum."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fedcore.errors import Void
from fedcore.privacy.secagg.keys import KEY_BYTES, pair_key, self_key
from fedcore.privacy.secagg.parameters import Parameters
from fedcore.privacy.secagg.roster import Id
from fedcore.privacy.secagg.round import Round


@dataclass(frozen=True)
class SecureSum:
    """What a round gave.

    sum        (length,) int64, the exact sum; where there is no bound residues, (length,) uint64 below 2**modulus_bits
    survivors  whose vectors are in it
    liars      member -> what it certainly did, as long as no more than `corrupt` members lie; the sum is true anyhow
    notes      of whose secrets shares were false, whoever it was that lied: their holders or who dealt them
    """

    sum: np.ndarray
    survivors: list[Id]
    liars: dict[Id, str]
    notes: list[str]


def mask_keys(
    round: Round,
    tag: bytes,
    included: dict[int, bytes],
    gone: dict[int, bytes],
    publics: Callable[[int], bytes],
    partners: Callable[[int], list[int]],
) -> tuple[np.ndarray, np.ndarray]:
    """Keys (m, 32), to be overwritten, and signs (m,) of what the sum of masked vectors lacks to be the plain one.

    included   position -> seed of every vector in the sum: its own mask is taken off
    gone       position -> mask secret of members that had masks with these and are not in the sum
    partners   position -> members that a member has masks with
    """
    keys = [self_key(seed, tag) for seed in included.values()]
    signs = [-1] * len(keys)
    for position, secret in gone.items():
        private = X25519PrivateKey.from_private_bytes(secret)
        for other in partners(position):
            if other in included:
                whose, name = "unmask: the public key of", round.roster.ids[other]
                keys.append(pair_key(private, publics(other), tag, position, other, whose, name))
                signs.append(-1 if other < position else 1)  # `other` added where its position is the lower one
    return np.frombuffer(bytearray().join(keys), np.uint8).reshape(-1, KEY_BYTES), np.array(signs, np.int8)


def unmasked(
    round: Round,
    tag: bytes,
    total: np.ndarray,
    found: dict[int, bytes],
    included: frozenset[int],
    advertised: dict[int, bytes],
    partners: Callable[[int], list[int]],
) -> np.ndarray:
    """The plain sum of a sum of masked vectors, from the secrets that it needs: see `SecureSum.sum`. Raises Void."""
    from fedcore.ops import unmask_sum

    p = round.parameters
    keys, signs = mask_keys(
        round,
        tag,
        {i: found[i] for i in included},
        {i: secret for i, secret in found.items() if i not in included},
        lambda i: advertised[i][32:64],
        partners,
    )
    try:
        plain = unmask_sum(total, keys, signs, p.modulus_bits, stream=p.stream)
    finally:
        keys[:] = 0
    return lifted(plain, p, len(included)) if p.bound else plain.astype(np.uint64)


def lifted(total: np.ndarray, p: Parameters, included: int) -> np.ndarray:
    """Residues as whole numbers around zero: (length,) int64. Raises Void for a sum that so many could not have."""
    away = np.uint64(64 - p.modulus_bits)
    low = (total.astype(np.uint64) << away).view(np.int64) >> away.astype(np.int64)
    most = included * p.bound
    if int(low.max()) > most or int(low.min()) < -most:
        raise Void(
            f"result: the sum leaves ±{most}, which {included} clients within their bound cannot: the masks did not "
            "cancel, or a client sent numbers beyond the bound"
        )
    return low
