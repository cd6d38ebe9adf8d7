"""Shares that are false: the sum is true anyhow or void, and only who certainly lied is named."""

from __future__ import annotations

import numpy as np
import pytest
from secagg.driver import BOTH, BOUND, SEALING, Rig, complete, lying, rig_of, signed

from fedcore import ops
from fedcore.errors import Void
from fedcore.privacy.secagg import recovery, wire
from fedcore.privacy.secagg.keys import SIGNATURE_BYTES
from fedcore.privacy.secagg.parameters import Parameters
from fedcore.privacy.secagg.server import Server
from fedcore.reference.shamir_combine import product, weights


def flip(share: bytearray, by: int) -> None:
    share[0] ^= by


@pytest.mark.parametrize(("liars", "named"), [((1,), [1]), ((1, 4), [])])
@pytest.mark.parametrize("gone", [(), (5,)])
def test_who_gave_false_shares_is_named_where_it_is_certain_and_others_are_used(liars, named, gone):
    """Where one may lie, of 7 shares with threshold 4 one false one is certain, and two may be their dealer's doing."""
    rig = Rig(complete(8, 4)).run("mask").run("unmask", gone=gone)
    found = lying(rig, lambda holder, of, share: flip(share, 0x40) if holder in liars else None).result()
    assert sorted(found.liars) == named
    said = f"false shares of the seed of 0 came from {named[0]}" if named else "some shares of the seed of 0 were false"
    assert any(said in note for note in found.notes)
    assert (found.sum == rig.vectors[found.survivors].sum(0)).all()


@BOTH
@pytest.mark.parametrize("n", [10, 16, 30, 100])
def test_a_liar_is_named_under_parameters_as_they_are_chosen(adversary, n):
    rig = Rig(Parameters.choose(n, length=5, bound=BOUND, adversary=adversary)).run("unmask")
    found = lying(rig, lambda holder, of, share: flip(share, 1) if holder == 1 else None).result()
    assert sorted(found.liars) == [1]
    assert (found.sum == rig.vectors.sum(0)).all()


def test_whose_share_is_false_is_said_also_where_its_dealer_may_be_to_blame():
    rig = Rig(complete(8, 4)).run("unmask")
    found = lying(rig, lambda holder, of, share: flip(share, 1) if (holder, of) == (0, 3) else None).result()
    assert found.liars == {}
    assert found.notes == ["unmask: false shares of the seed of 3 came from 0, who lied or were dealt them by 3"]


def test_all_that_may_be_corrupt_lie_beside_dropouts():
    p = Parameters.choose(16, length=5, bound=BOUND, corrupt=0.125, dropout=0.375, adversary="malicious")
    rig = Rig(p).run("unmask")
    for name in (14, 15):
        del rig.messages[name]
    found = lying(rig, lambda holder, of, share: flip(share, 1) if holder < p.corrupt else None).result()
    assert (found.sum == rig.vectors.sum(0)).all()
    assert sorted(found.liars) == [0, 1]
    assert len(found.notes) == 16


def sealing_badly(p: Parameters, dealer: int, boxes: int) -> Rig:
    """A round in which the first boxes of a member do not open, at the stage in which it sends its vector."""
    rig = Rig(p).run("share")
    for name in rig.ids:
        (data,) = rig.answers(name)
        if name == dealer:
            body = bytearray(data[wire.HEADER.size : -SIGNATURE_BYTES])
            first = 2 + 2 * int.from_bytes(body[:2], "little")
            for i in range(boxes):
                body[first + wire.SEALED * i] ^= 1
            data = signed(rig, name, "share", bytes(body))
        rig.server.receive(name, data)
    rig.messages = dict(rig.server.advance())
    return rig


def test_shares_that_do_not_open_are_only_left_out():
    rig = sealing_badly(complete(5, 3), 4, 1)
    rig.run()
    assert (rig.server.result().sum == rig.vectors.sum(0)).all()
    assert rig.clients[0].faults == {4: "mask: its shares do not open"}


@BOTH
@pytest.mark.parametrize(
    ("boxes", "gone", "named"),
    [(19, (), [3]), (5, (), [3]), (3, (17, 18), [3]), (2, (16, 17, 18), []), (4, (), None)],
)
def test_a_dealer_whose_shares_do_not_open_is_suspected_where_its_holders_cannot_all_withhold_them(
    adversary, boxes, gone, named
):
    """Of 19 shares 15 are needed. What 2 holders did not get, the most that may be corrupt, they may have kept."""
    p = Parameters.choose(20, length=5, bound=BOUND, corrupt=0.1, dropout=0.2, adversary=adversary)
    assert (p.neighbours, p.threshold, p.corrupt) == (19, 15, 2)
    rig = sealing_badly(p, 3, boxes).run("unmask").run(gone=gone)
    restored = Server.from_bytes(rig.server.to_bytes(SEALING), SEALING)
    for server in (rig.server, restored):
        if named is None:
            assert (server.result().sum == rig.vectors.sum(0)).all()
            continue
        with pytest.raises(
            Void, match=rf"{19 - boxes - len(gone)} shares of the seed of 3 came.* at least 15"
        ) as caught:
            server.result()
        assert caught.value.suspects == named


def test_a_dealer_of_false_shares_has_nobody_named(monkeypatch):
    rig = rig_of("malicious", 6, 3).run("share")
    split = ops.shamir_split

    def bent(*given):
        shares = split(*given)
        shares[:1] ^= 0x55
        return shares

    for name in rig.ids:
        with monkeypatch.context() as patch:
            if name == 3:
                patch.setattr(ops, "shamir_split", bent)
            data = rig.clients[name].share(rig.messages[name])
        rig.server.receive(name, data)
    rig.messages = rig.server.advance()
    found = rig.run().server.result()
    assert found.liars == {}
    assert found.notes == ["unmask: false shares of the seed of 3 came from 0, who lied or were dealt them by 3"]
    assert (found.sum == rig.vectors.sum(0)).all()


def test_liars_cannot_have_an_honest_holder_named_by_bits_that_x25519_ignores():
    """Two shift shares of mask secrets by a polynomial that is 0 at all honest holders but one, and 1 at 0: in
    a bit that X25519 sets itself it leaves the public key as it is, and the honest one off the nearer polynomial."""
    dropped, liars, victim = (0, 1, 2), (3, 4), 5
    rig = Rig(complete(15, 10, corrupt=2, dropout=3)).run("mask").run("unmask", gone=dropped)

    def bend(holder, of, share):
        if holder in liars and of in dropped:
            at = {other: i + 1 for i, other in enumerate(j for j in range(15) if j != of)}
            roots = [at[other] for other in at if other not in (*dropped, *liars, victim)]
            weight = weights(np.array([at[holder], *roots]))[0]
            share[0] ^= next(value for value in range(1, 256) if product(value, weight) == 1)

    found = lying(rig, bend).result()
    assert set(found.liars) <= set(liars)
    assert (found.sum == rig.vectors[found.survivors].sum(0)).all()


def test_two_holders_that_lie_together_have_nobody_else_named():
    """Errors that cancel in a set of shares with honest ones, which gives the secret and another polynomial."""
    n, t, pair = 8, 4, (2, 3)
    rig = Rig(complete(n, t)).run("unmask")

    def bend(holder, of, share):
        holders = [other for other in range(n) if other != of]
        second = holders[1 : t + 1]  # the set that is tried after all that lie on one polynomial
        if holder in pair and set(pair) <= set(second):
            factors = weights(np.array([holders.index(other) + 1 for other in second]))
            share[0] ^= int(factors[second.index(pair[1 - pair.index(holder)])])

    found = lying(rig, bend).result()
    assert set(found.liars) <= set(pair)
    assert found.notes


def test_a_search_among_false_shares_ends(monkeypatch):
    monkeypatch.setattr(recovery, "TRIES", 60)
    rig = Rig(complete(8, 4)).run("unmask")
    server = lying(rig, lambda holder, of, share: flip(share, holder + 1) if holder < 5 else None)
    with pytest.raises(Void, match="false shares, too many to be told from true ones"):
        server.result()
