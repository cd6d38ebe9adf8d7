"""Secrets from shares, and the masks that they take off a sum."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fedcore.errors import Void
from fedcore.privacy.secagg.keys import KEY_BYTES, commitment, pair_key, self_key
from fedcore.privacy.secagg.parameters import Parameters
from fedcore.privacy.secagg.peers import SEED
from fedcore.privacy.secagg.round import Round

#: sets of shares that are tried for one secret
TRIES = 2000


class Secrets:
    """Collects shares by secret, and finds secrets that fit what their members advertised."""

    def __init__(self, round: Round, advertised: dict[int, bytes], holders: Callable[[int], list[int]]):
        self._round, self._advertised, self._holders = round, advertised, holders
        self._shares: dict[int, dict[int, bytes]] = {}
        #: member -> why: holders whose shares were false
        self.liars: dict[int, str] = {}

    def add(self, of: int, holder: int, share: bytes) -> None:
        """A share of a member's secret, from a holder."""
        self._shares.setdefault(of, {})[holder] = share

    def find(self, of: int, kind: int) -> bytes:
        """A member's seed or mask secret. Raises Void where too few true shares came; names who gave false ones."""
        given, t = self._shares.get(of, {}), self._round.parameters.threshold
        name, what = self._round.roster.ids[of], "seed" if kind == SEED else "mask secret"
        if len(given) < t:
            raise Void(f"unmask: {len(given)} shares of the {what} of {name!r} came, expected at least {t}")
        order = sorted(given, key=lambda holder: (holder in self.liars, holder))
        for subset in _subsets(order, t):
            secret = self._combined(of, given, subset)
            if self._fits(of, kind, secret):
                if subset != order[:t]:
                    self._name_liars(of, given, subset, secret)
                return secret
        raise Void(f"unmask: the shares of the {what} of {name!r} do not give what it advertised; some are false")

    def _combined(self, of: int, given: dict[int, bytes], subset: list[int]) -> bytes:
        from fedcore.ops import shamir_combine

        holders = self._holders(of)
        points = [holders.index(holder) + 1 for holder in subset]
        shares = np.frombuffer(b"".join(given[holder] for holder in subset), np.uint8)
        return shamir_combine(points, shares.reshape(len(subset), 1, KEY_BYTES)).tobytes()

    def _fits(self, of: int, kind: int, secret: bytes) -> bool:
        body = self._advertised[of]
        if kind == SEED:
            return commitment(secret, self._round.binding) == body[64:96]
        return X25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw() == body[32:64]

    def _name_liars(self, of: int, given: dict[int, bytes], good: list[int], secret: bytes) -> None:
        """Every share that does not lie on the polynomial of the good ones."""
        for holder in given.keys() - set(good):
            if self._combined(of, given, [*good[1:], holder]) != secret:
                name = self._round.roster.ids[of]
                self.liars.setdefault(holder, f"unmask: gave a false share of the secret of {name!r}")


def _subsets(order: list[int], t: int) -> Iterator[list[int]]:
    """Sets of t: the first, those with one exchanged, then random ones."""
    yield order[:t]
    if len(order) == t:
        return
    for left_out in range(t):
        yield order[:left_out] + order[left_out + 1 : t + 1]
    chooser = random.Random(0)  # which honest shares are tried first is no secret
    for _ in range(TRIES):
        yield sorted(chooser.sample(order, t))


def mask_keys(
    round: Round,
    tag: bytes,
    included: dict[int, bytes],
    gone: dict[int, bytes],
    publics: Callable[[int], bytes],
    partners: Callable[[int], list[int]],
) -> tuple[np.ndarray, np.ndarray]:
    """Keys (m, 32) and signs (m,) of what is to be added to the sum of masked vectors to leave the plain one.

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
                keys.append(pair_key(private, publics(other), tag, position, other, round.roster.ids[other]))
                signs.append(-1 if other < position else 1)  # `other` added where its position is the lower one
    return np.frombuffer(b"".join(keys), np.uint8).reshape(-1, KEY_BYTES), np.array(signs, np.int8)


def lifted(total: np.ndarray, p: Parameters, included: int) -> np.ndarray:
    """Residues as whole numbers around zero: (length,) int64. Raises Void for a sum that so many could not have."""
    wide, half = total.astype(np.uint64), np.uint64((1 << p.modulus_bits) // 2)
    low = (
        wide.view(np.int64) if p.modulus_bits == 64 else wide.astype(np.int64) - (wide >= half) * (1 << p.modulus_bits)
    )
    most = included * p.bound
    if int(low.max()) > most or int(low.min()) < -most:
        raise Void(
            f"result: the sum leaves ±{most}, which {included} clients within their bound cannot: the masks did not "
            "cancel, or a client sent numbers beyond the bound"
        )
    return low
