"""Shares that are false: the sum is true anyhow or void, and only who certainly lied is named."""

from __future__ import annotations

import numpy as np
import pytest
from secagg.driver import BOUND, Rig, complete, lying, rig_of

from fedcore import ops
from fedcore.errors import Void
from fedcore.privacy.secagg import recovery
from fedcore.privacy.secagg.parameters import Parameters
from fedcore.reference.shamir_combine import weights


def flip(share: bytearray, by: int) -> None:
    share[0] ^= by


@pytest.mark.parametrize(("liars", "named"), [((1,), [1]), ((1, 4), [])])
@pytest.mark.parametrize("gone", [(), (5,)])
def test_who_gave_false_shares_is_named_where_it_is_certain_and_others_are_used(liars, named, gone):
    """Of 7 shares with threshold 4 one false one is certain, and two could as well be the true ones."""
    rig = Rig(complete(8, 4)).run("mask").run("unmask", gone=gone)
    found = lying(rig, lambda holder, of, share: flip(share, 0x40) if holder in liars else None).result()
    assert sorted(found.liars) == named
    assert any("some shares of the seed of 0 were false" in note for note in found.notes)
    assert (found.sum == rig.vectors[found.survivors].sum(0)).all()


def test_all_that_may_be_corrupt_lie_beside_dropouts():
    p = Parameters.choose(16, length=5, bound=BOUND, corrupt=0.125, dropout=0.375, adversary="malicious")
    rig = Rig(p).run("unmask")
    for name in (14, 15):
        del rig.messages[name]
    found = lying(rig, lambda holder, of, share: flip(share, 1) if holder < p.corrupt else None).result()
    assert (found.sum == rig.vectors.sum(0)).all()
    assert sorted(found.liars) == [0, 1]
    assert len(found.notes) == 16


def test_shares_that_do_not_open_are_only_left_out():
    rig = Rig(complete(5, 3)).run("mask")
    message = rig.messages[0]
    rig.messages[0] = message[:-1] + bytes([message[-1] ^ 1])
    rig.run()
    assert (rig.server.result().sum == rig.vectors.sum(0)).all()
    assert rig.clients[0].faults == {4: "mask: its shares do not open"}


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
    assert found.notes == ["unmask: some shares of the seed of 3 were false"]
    assert (found.sum == rig.vectors.sum(0)).all()


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
