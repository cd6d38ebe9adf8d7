"""Secrets from shares of which some may be false."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Collection, Iterator, Mapping

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fedcore.errors import Void
from fedcore.numbers import shown
from fedcore.privacy.secagg import wire
from fedcore.privacy.secagg.decoding import false_shares
from fedcore.privacy.secagg.keys import KEY_BYTES, clamped, commitment
from fedcore.privacy.secagg.peers import SEED
from fedcore.privacy.secagg.round import Round

#: sets of shares that may turn out false in one round
TRIES = 4000
#: decodings in one round beyond one of each secret: those of many shares take long
DECODINGS = 200


class Secrets:
    """Collects shares by secret, and finds secrets that fit what their members advertised.

    A false share may be its holder's doing or that of the member who dealt it, and shares that lie together can fit
    what was advertised. A holder is named only where nothing else can be, as long as at most `corrupt` members lie (one
    where that is 0): its shares of more members' secrets than that are off polynomials that must be the dealt ones.
    """

    def __init__(self, round: Round, advertised: dict[int, bytes], holders: Callable[[int], list[int]]):
        self._round, self._advertised, self._holders = round, advertised, holders
        self._shares: dict[int, dict[int, bytes]] = {}
        self._lacking: dict[int, int] = {}  # member -> holders that answered and gave no share of it
        self._off: dict[int, set[int]] = {}  # holder -> members whose other shares its own do not fit
        self._sure: dict[int, set[int]] = {}  # the same, where the polynomial is certain
        self._dealt: set[int] = set()  # members that dealt false shares or none, or more than `corrupt` holders lie
        self._tries, self._decodings = TRIES, 0
        #: secrets of which some shares were false
        self.notes: list[str] = []

    def take(self, holder: int, body: bytes, asked: Collection[int]) -> None:
        """The shares of a holder's message, and the members of whom it was asked for one."""
        for at in range(2, len(body), wire.ENTRY + KEY_BYTES):
            _, of = struct.unpack_from("<BH", body, at)
            self._shares.setdefault(of, {})[holder] = body[at + wire.ENTRY : at + wire.ENTRY + KEY_BYTES]
        for of in asked:
            if holder not in self._shares.get(of, ()):
                self._lacking[of] = self._lacking.get(of, 0) + 1

    @property
    def liars(self) -> dict[int, str]:
        """Holder -> why: those that certainly gave false shares."""
        found = {holder: len(members) for holder, members in self._sure.items() if len(members) > self._liars_at_most}
        return {
            holder: f"unmask: gave false shares of the secrets of {count} members" for holder, count in found.items()
        }

    def find(self, needed: Mapping[int, int]) -> dict[int, bytes]:
        """Member -> its secret, of the kind that is needed.

        Decoded first; where too many shares are false for that, again when others have shown more of the liars, and
        last from sets of shares taken at random. Raises Void where too few true shares came.
        """
        least, left = self._round.parameters.threshold, dict(needed)
        found: dict[int, bytes] = {}
        self._decodings = len(needed) + DECODINGS
        self._dealt |= {of for of, count in self._lacking.items() if count > self._liars_at_most}  # they did not open
        short = {of: kind for of, kind in needed.items() if len(self._shares.get(of, ())) < least}
        if short:
            raise self._void(short)
        while left:
            shown = len(self._off)
            found |= {of: secret for of, kind in left.items() if (secret := self._first(of, kind, self._decoded(of)))}
            left = {of: kind for of, kind in left.items() if of not in found}
            if left and len(self._off) == shown:
                of, kind = next(iter(left.items()))
                secret = self._first(of, kind, _subsets(self._by_suspicion(of), least))
                if secret is None:
                    raise self._void(left)
                found[of] = secret
                del left[of]
        return {of: found[of] for of in needed}

    def _first(self, of: int, kind: int, subsets: Iterator[list[int]]) -> bytes | None:
        """The secret of the first set of shares that gives one that fits. Once some were false, others are compared."""
        for number, subset in enumerate(subsets):
            secret = self._combined(of, subset)
            if self._fits(of, kind, secret):
                if number or self._off:
                    self._compare(of, subset, secret, self._name(of, kind))
                return secret
            self._tries -= 1
            if self._tries < 0:
                break
        return None

    def _decoded(self, of: int) -> Iterator[list[int]]:
        """The shares least suspected; those that decoding leaves; and the same without any that are suspected."""
        order, t = self._by_suspicion(of), self._round.parameters.threshold
        yield order[:t]
        clean = sum(holder not in self._off for holder in order)
        for count in (len(order), clean) if t < clean < len(order) else (len(order),):
            if not self._decodings:
                return
            self._decodings -= 1
            false = false_shares(self._points(of, order[:count]), self._array(of, order[:count]), t)
            if false:
                yield [holder for i, holder in enumerate(order[:count]) if i not in set(false)][:t]
            spare = count - t
            if (spare if false == [] else spare // 2) >= self._liars_at_most - self._lacking.get(of, 0):
                self._dealt.add(of)  # so many liars among the holders would have been found

    @property
    def _liars_at_most(self) -> int:
        return max(self._round.parameters.corrupt, 1)

    def _void(self, left: Mapping[int, int]) -> Void:
        """The end of a round in which these members' secrets are not found, or have too few shares."""
        dealt = sorted(self._dealt & left.keys())
        of = dealt[0] if dealt else next(iter(left))
        names = [self._round.roster.ids[i] for i in dict.fromkeys([*dealt, *self.liars])]
        who = f"{', '.join(map(shown, names[:5]))}{' and others' * (len(names) > 5)}"
        advice = (
            f"certain to have lied: {who}; leave them out of the next round"
            if names
            else "nobody is certain to have lied; parameters for more dropout leave more shares to tell them by"
        )
        count, least, name = len(self._shares.get(of, ())), self._round.parameters.threshold, self._name(of, left[of])
        if count < least:
            what = (
                f"{count} shares of {name} came, expected at least {least}: {self._lacking.get(of, 0)} of its holders "
                f"answered without one{', more than may lie' if dealt else ''}"
            )
        else:
            gave = f"{'it' if dealt else 'it or holders of them'} gave false shares, too many to be told from true ones"
            what = f"{name} is not found: {gave}"
        return Void(f"unmask: {what}; {advice}", suspects=names)

    def _by_suspicion(self, of: int) -> list[int]:
        """The holders that gave shares of a member's secret, the least suspected first."""
        return sorted(self._shares[of], key=lambda holder: (len(self._off.get(holder, ())), holder))

    def _name(self, of: int, kind: int) -> str:
        return f"the {'seed' if kind == SEED else 'mask secret'} of {shown(self._round.roster.ids[of])}"

    def _points(self, of: int, subset: list[int]) -> np.ndarray:
        holders = self._holders(of)
        return np.array([holders.index(holder) + 1 for holder in subset])

    def _array(self, of: int, subset: list[int]) -> np.ndarray:
        return np.frombuffer(b"".join(self._shares[of][holder] for holder in subset), np.uint8).reshape(-1, KEY_BYTES)

    def _combined(self, of: int, subset: list[int]) -> bytes:
        from fedcore.ops import shamir_combine

        return shamir_combine(self._points(of, subset), self._array(of, subset)[:, None]).tobytes()

    def _fits(self, of: int, kind: int, secret: bytes) -> bool:
        body = self._advertised[of]
        if kind == SEED:
            return commitment(secret, self._round.binding) == body[64:96]
        if clamped(secret) != secret:  # that has the same public key as the one that was dealt, and another polynomial
            return False
        return X25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw() == body[32:64]

    def _compare(self, of: int, good: list[int], secret: bytes, name: str) -> None:
        """Note whose shares are off the polynomial of the good ones.

        Were that not the dealt one, which has the same secret, the two would meet in at most t - 2 shares: all others
        on it, of the m - len(off), would be of liars. Where those would be too many it is the dealt one; and where more
        are off it than may lie, it was its dealer who lied.
        """
        given, ids = self._shares[of], self._round.roster.ids
        off = [
            holder for holder in sorted(given.keys() - set(good)) if self._combined(of, [*good[1:], holder]) != secret
        ]
        if not off:
            return
        spare = len(given) - self._round.parameters.threshold
        certain = len(off) <= self._liars_at_most <= spare + 1 - len(off)
        for holder in off if certain or 2 * len(off) <= spare else ():
            self._off.setdefault(holder, set()).add(of)
            if certain:
                self._sure.setdefault(holder, set()).add(of)
        who = ", ".join(shown(ids[holder]) for holder in off[:5]) + " and others" * (len(off) > 5)
        self.notes.append(
            f"unmask: false shares of {name} came from {who}, who lied or were dealt them by {shown(ids[of])}"
            if certain
            else f"unmask: some shares of {name} were false"
        )


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
