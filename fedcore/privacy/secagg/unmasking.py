"""Secrets from shares, and the masks that they take off a sum."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fedcore.errors import Void
from fedcore.privacy.secagg import wire
from fedcore.privacy.secagg.keys import KEY_BYTES, commitment, pair_key, self_key
from fedcore.privacy.secagg.parameters import Parameters
from fedcore.privacy.secagg.peers import SEED
from fedcore.privacy.secagg.roster import Id
from fedcore.privacy.secagg.round import Round

#: sets of shares that may turn out false in one round
TRIES = 4000


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


class Secrets:
    """Collects shares by secret, and finds secrets that fit what their members advertised.

    A false share may be its holder's doing or that of the member who dealt it, and shares that lie together can fit
    what was advertised. A holder is named only where nothing else can be, as long as at most `corrupt` members lie (one
    where that is 0): its shares of more members' secrets than that are off polynomials that only one can be, within
    half the distance of the code.
    """

    def __init__(self, round: Round, advertised: dict[int, bytes], holders: Callable[[int], list[int]]):
        self._round, self._advertised, self._holders = round, advertised, holders
        self._shares: dict[int, dict[int, bytes]] = {}
        self._off: dict[int, set[int]] = {}  # holder -> members whose other shares its own do not fit
        self._sure: dict[int, set[int]] = {}  # the same, where the polynomial is certain
        self._tries = TRIES
        #: secrets of which some shares were false
        self.notes: list[str] = []

    def take(self, holder: int, body: bytes) -> None:
        """The shares of a holder's message."""
        for at in range(2, len(body), wire.ENTRY + KEY_BYTES):
            _, of = struct.unpack_from("<BH", body, at)
            self._shares.setdefault(of, {})[holder] = body[at + wire.ENTRY : at + wire.ENTRY + KEY_BYTES]

    @property
    def liars(self) -> dict[int, str]:
        """Holder -> why: those that certainly gave false shares."""
        most = max(self._round.parameters.corrupt, 1)
        found = {holder: len(members) for holder, members in self._sure.items() if len(members) > most}
        return {
            holder: f"unmask: gave false shares of the secrets of {count} members" for holder, count in found.items()
        }

    def find(self, of: int, kind: int) -> bytes:
        """A member's seed or mask secret. Raises Void where too few true shares came, or the search takes too long."""
        given, t = self._shares.get(of, {}), self._round.parameters.threshold
        name, what = self._round.roster.ids[of], "seed" if kind == SEED else "mask secret"
        if len(given) < t:
            raise Void(f"unmask: {len(given)} shares of the {what} of {name!r} came, expected at least {t}")
        order = sorted(given, key=lambda holder: (len(self._off.get(holder, ())), holder))
        for number, subset in enumerate(_subsets(order, t)):
            secret = self._combined(of, given, subset)
            if self._fits(of, kind, secret):
                if (number or self._off) and self._compare(of, given, subset, secret):
                    self.notes.append(f"unmask: some shares of the {what} of {name!r} were false")
                return secret
            self._tries -= 1
            if self._tries < 0:
                raise Void(
                    f"unmask: {TRIES} sets of shares were tried, those of the {what} of {name!r} last; many are false"
                )
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

    def _compare(self, of: int, given: dict[int, bytes], good: list[int], secret: bytes) -> list[int]:
        """Whose shares are off the polynomial of the good ones; kept apart where no other is as close to what came."""
        off = [
            holder
            for holder in sorted(given.keys() - set(good))
            if self._combined(of, given, [*good[1:], holder]) != secret
        ]
        spare = len(given) - self._round.parameters.threshold
        certain = 2 * len(off) <= spare and 2 * max(self._round.parameters.corrupt, 1) <= spare + 2
        for holder in off:
            self._off.setdefault(holder, set()).add(of)
            if certain:
                self._sure.setdefault(holder, set()).add(of)
        return off


def _subsets(order: list[int], t: int) -> Iterator[list[int]]:
    """Sets of t: the first, those with one exchanged, then random ones."""
    yield order[:t]
    if len(order) == t:
        return
    for left_out in range(t):
        yield order[:left_out] + order[left_out + 1 : t + 1]
    chooser = random.Random(0)  # which honest shares are tried first is no secret
    while True:
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
                whose = f"unmask: the public key of {round.roster.ids[other]!r}"
                keys.append(pair_key(private, publics(other), tag, position, other, whose))
                signs.append(-1 if other < position else 1)  # `other` added where its position is the lower one
    return np.frombuffer(b"".join(keys), np.uint8).reshape(-1, KEY_BYTES), np.array(signs, np.int8)


def unmasked(
    round: Round,
    tag: bytes,
    total: np.ndarray,
    found: dict[int, bytes],
    included: list[int],
    advertised: dict[int, bytes],
    partners: Callable[[int], list[int]],
) -> np.ndarray:
    """The plain sum of a sum of masked vectors, from the secrets that it needs: see `SecureSum.sum`. Raises Void."""
    from fedcore.ops import unmask_sum

    p, there = round.parameters, set(included)
    keys, signs = mask_keys(
        round,
        tag,
        {i: found[i] for i in included},
        {i: secret for i, secret in found.items() if i not in there},
        lambda i: advertised[i][32:64],
        partners,
    )
    plain = unmask_sum(total, keys, signs, p.modulus_bits, stream=p.stream)
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
