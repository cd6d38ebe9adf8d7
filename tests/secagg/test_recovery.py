"""Secrets from shares of which as many are false as decoding can tell, without the rounds around them."""

from __future__ import annotations

import os

import numpy as np
import pytest
from secagg.driver import CONTEXT, complete, key_of

from fedcore import ops
from fedcore.errors import Void
from fedcore.privacy.secagg import recovery
from fedcore.privacy.secagg.decoding import false_shares
from fedcore.privacy.secagg.keys import commitment
from fedcore.privacy.secagg.peers import SEED
from fedcore.privacy.secagg.roster import Roster
from fedcore.privacy.secagg.round import Round

RNG = np.random.default_rng(6)


def shares_at(points: np.ndarray, threshold: int) -> np.ndarray:
    """True shares of 32 bytes."""
    return ops.shamir_split(os.urandom(32), threshold, 255, os.urandom(32))[points - 1, 0]


LIES = {
    "the same": lambda points, t: np.full((len(points), 32), 9, np.uint8),
    "one byte": lambda points, t: (np.arange(32) == 7) * RNG.integers(1, 256, (len(points), 1)).astype(np.uint8),
    "one byte, the first another": lambda points, t: (
        LIES["one byte"](points, t) | (np.arange(32) == 3) * (np.arange(len(points)) == 0)[:, None].astype(np.uint8)
    ),
    "on another polynomial": shares_at,
    "random": lambda points, t: RNG.integers(1, 256, (len(points), 32)).astype(np.uint8),
}


@pytest.mark.parametrize(("count", "threshold"), [(1, 1), (5, 5), (5, 4), (6, 4), (10, 4), (98, 68), (255, 129)])
@pytest.mark.parametrize("lies", LIES.values(), ids=LIES)
def test_false_shares_up_to_half_the_spare_ones_are_found_whatever_is_in_them(count, threshold, lies):
    points = RNG.permutation(255)[:count] + 1
    shares = shares_at(points, threshold)
    assert false_shares(points, shares, threshold) == []
    for many in {min(1, (count - threshold) // 2), (count - threshold) // 2} - {0}:
        bad, came = np.sort(RNG.permutation(count)[:many]), shares.copy()
        came[bad] ^= lies(points[bad], threshold)
        assert false_shares(points, came, threshold) == bad.tolist()


def test_more_are_found_where_their_bytes_differ_and_none_named_where_they_do_not():
    points = np.arange(40) + 17
    shares = shares_at(points, 30)
    random, same = shares.copy(), shares.copy()
    random[:9] ^= LIES["random"](points[:9], 30)
    same[:9] ^= 5
    assert false_shares(points, random, 30) == list(range(9))
    assert false_shares(points, same, 30) is None
    one = shares[:31].copy()
    one[0] ^= 1
    assert false_shares(points[:31], one, 30) is None


class Dealt:
    """Seeds of the first members of a round, dealt to all others; what holders give of them, bent."""

    def __init__(self, n: int, threshold: int, corrupt: int, members: int = 1):
        p = complete(n, threshold, corrupt=corrupt)
        roster = Roster({i: key_of(i + 1).public_key().public_bytes_raw() for i in range(n)})
        self.round, self.seeds = Round(p, roster, b"session", 1, CONTEXT), [os.urandom(32) for _ in range(members)]
        self.withheld: set[tuple[int, int]] = set()  # (member, holder)
        self.shares = [ops.shamir_split(seed, threshold, n - 1, os.urandom(32))[:, 0] for seed in self.seeds]

    def found(self) -> tuple[recovery.Secrets, dict[int, bytes]]:
        holders = [[j for j in range(self.round.parameters.clients) if j != i] for i in range(len(self.seeds))]
        advertised = {i: bytes(64) + commitment(seed, self.round.binding) for i, seed in enumerate(self.seeds)}
        secrets = recovery.Secrets(self.round, advertised, holders.__getitem__)
        for i, shares in enumerate(self.shares):
            for holder, share in zip(holders[i], shares, strict=True):
                given = bytes([SEED]) + i.to_bytes(2, "little") + share.tobytes()
                secrets.take(holder, bytes(2) + (b"" if (i, holder) in self.withheld else given), [i])
        return secrets, secrets.find(dict.fromkeys(range(len(self.seeds)), SEED))

    def lie(self, member: int, holder: int) -> None:
        self.shares[member][holder - (holder > member)] ^= 0x11


def test_as_many_corrupt_holders_as_are_allowed_for_are_found_and_named():
    """By random sets of 68 of 98 shares, 9 false ones are avoided once in 80,000 times."""
    dealt = Dealt(99, 68, corrupt=9, members=11)
    liars = range(20, 29)
    for member in range(11):
        for liar in liars:
            dealt.lie(member, liar)
    secrets, found = dealt.found()
    assert found == dict(enumerate(dealt.seeds))
    assert sorted(secrets.liars) == [*liars]
    assert len(secrets.notes) == 11


def test_liars_that_other_secrets_show_are_left_out_where_spare_shares_are_few(monkeypatch):
    """Of the first secret 9 shares are spare and 5 false, which no decoding tells; the second shows 3 of the liars."""
    monkeypatch.setattr(recovery, "TRIES", 6)
    dealt = Dealt(16, 6, corrupt=5, members=2)
    for member, liar in ((0, 1), (0, 2), (0, 3), (0, 4), (0, 5), (1, 3), (1, 4), (1, 5)):
        dealt.lie(member, liar)
    secrets, found = dealt.found()
    assert found == dict(enumerate(dealt.seeds))
    assert secrets.liars == {}


def test_decodings_that_new_liars_call_for_end(monkeypatch):
    """The second secret shows two liars, for which the first would be decoded again."""
    monkeypatch.setattr(recovery, "TRIES", 6)
    monkeypatch.setattr(recovery, "DECODINGS", 0)
    dealt, calls = Dealt(16, 6, corrupt=5, members=2), []
    for member, liar in ((0, 2), (0, 4), (0, 6), (0, 7), (0, 9), (1, 2), (1, 4)):
        dealt.lie(member, liar)
    monkeypatch.setattr(recovery, "false_shares", lambda *given: calls.append(1) or false_shares(*given))
    with pytest.raises(Void, match="the seed of 0 is not found"):
        dealt.found()
    assert len(calls) == 2


@pytest.mark.parametrize("consistent", [True, False])
def test_a_dealer_of_false_shares_voids_the_round_and_is_suspected(consistent, monkeypatch):
    monkeypatch.setattr(recovery, "TRIES", 40)
    dealt = Dealt(12, 7, corrupt=2, members=4)
    shares = dealt.shares[3]
    shares[:] = (
        ops.shamir_split(bytes(32), 7, 11, bytes(32))[:, 0] if consistent else RNG.integers(0, 256, shares.shape)
    )
    dealt.lie(0, 5)
    with pytest.raises(Void, match="the seed of 3 is not found: it gave false shares") as caught:
        dealt.found()
    assert caught.value.suspects == [3]


def test_where_dealer_or_holders_may_have_lied_nobody_is_suspected(monkeypatch):
    monkeypatch.setattr(recovery, "TRIES", 40)
    dealt = Dealt(9, 7, corrupt=2, members=2)
    dealt.lie(0, 5)
    dealt.shares[1] = LIES["random"](range(8), 7)
    with pytest.raises(Void, match=r"the seed of 1 is not found: it or holders of them.*; nobody is certain") as caught:
        dealt.found()
    assert caught.value.suspects == []


@pytest.mark.parametrize(("withheld", "suspects"), [((1, 2), [0]), ((1,), [])])
def test_holders_that_withhold_shares_cannot_be_those_that_give_false_ones(withheld, suspects, monkeypatch):
    """Two may be corrupt: with one false share beside two that are lacking, it is the dealer."""
    monkeypatch.setattr(recovery, "TRIES", 6)
    dealt = Dealt(10, 8 - len(withheld) + 1, corrupt=2)
    dealt.withheld = {(0, holder) for holder in withheld}
    dealt.lie(0, 5)
    with pytest.raises(Void, match="the seed of 0 is not found") as caught:
        dealt.found()
    assert caught.value.suspects == suspects


def test_liars_beyond_half_the_spare_shares_have_no_honest_dealer_suspected(monkeypatch):
    monkeypatch.setattr(recovery, "TRIES", 6)
    dealt = Dealt(16, 6, corrupt=5)
    for liar in (2, 4, 6, 7, 9):
        dealt.lie(0, liar)
    with pytest.raises(Void, match="the seed of 0 is not found") as caught:
        dealt.found()
    assert caught.value.suspects == []


def test_a_secret_that_liars_give_by_chance_casts_suspicion_on_nobody():
    """Five give one error; at the points 2 to 5 their Lagrange weights beside 6 and 7 add up to 0, so that the secret
    is right and the polynomial is not."""
    dealt = Dealt(16, 6, corrupt=5)
    for liar in range(1, 6):
        dealt.lie(0, liar)
    secrets, found = dealt.found()
    assert found == {0: dealt.seeds[0]}
    assert secrets.notes
    assert secrets._off == {}
