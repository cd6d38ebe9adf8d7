"""Shares that are false: the sum is true anyhow or void, and only who certainly lied is named."""

from __future__ import annotations

import numpy as np
import pytest
from secagg.driver import Rig, complete, key_of, rig_of

from fedcore import ops
from fedcore.errors import Void
from fedcore.privacy.secagg import unmasking, wire
from fedcore.privacy.secagg.keys import signed_text
from fedcore.reference.shamir_combine import weights


@pytest.mark.parametrize(("liars", "named"), [((1,), [1]), ((1, 4), [])])
@pytest.mark.parametrize("gone", [(), (5,)])
def test_who_gave_false_shares_is_named_where_it_is_certain_and_others_are_used(liars, named, gone):
    """Of 7 shares with threshold 4 one false one is certain, and two could as well be the true ones."""
    rig = Rig(complete(8, 4)).run("mask").run("unmask", gone=gone)
    for name in rig.messages:
        (data,) = rig.answers(name)
        if name in liars:
            body = bytearray(data[wire.HEADER.size : -64])
            for at in range(2 + wire.ENTRY, len(body), wire.ENTRY + 32):
                body[at] ^= 0x40
            text = signed_text("unmask", rig.server._tag, name, bytes(body))
            data = wire.pack(wire.kind_of("unmask"), name, rig.server._tag, bytes(body), key_of(name + 1).sign(text))
        rig.server.receive(name, data)
    rig.server.advance()
    found = rig.server.result()
    assert sorted(found.liars) == named
    assert any("some shares of the seed of 0 were false" in note for note in found.notes)
    assert (found.sum == rig.vectors[found.survivors].sum(0)).all()


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
    for name in rig.messages:
        (data,) = rig.answers(name)
        if name in pair:
            body = bytearray(data[wire.HEADER.size : -64])
            for at in range(2, len(body), wire.ENTRY + 32):
                holders = [holder for holder in range(n) if holder != int.from_bytes(body[at + 1 : at + 3], "little")]
                second = holders[1 : t + 1]  # the set that is tried next
                if not set(pair) <= set(second):
                    continue
                factors = weights(np.array([holders.index(holder) + 1 for holder in second]))
                other = pair[1 - pair.index(name)]
                body[at + wire.ENTRY] ^= int(factors[second.index(other)])
            text = signed_text("unmask", rig.server._tag, name, bytes(body))
            data = wire.pack(wire.kind_of("unmask"), name, rig.server._tag, bytes(body), key_of(name + 1).sign(text))
        rig.server.receive(name, data)
    rig.server.advance()
    found = rig.server.result()
    assert set(found.liars) <= set(pair)
    assert found.notes


def test_a_search_among_false_shares_ends(monkeypatch):
    monkeypatch.setattr(unmasking, "TRIES", 60)
    rig = Rig(complete(8, 4)).run("unmask")
    for name in rig.messages:
        (data,) = rig.answers(name)
        if name < 5:
            body = bytearray(data[wire.HEADER.size : -64])
            for at in range(2 + wire.ENTRY, len(body), wire.ENTRY + 32):
                body[at] ^= name + 1
            text = signed_text("unmask", rig.server._tag, name, bytes(body))
            data = wire.pack(wire.kind_of("unmask"), name, rig.server._tag, bytes(body), key_of(name + 1).sign(text))
        rig.server.receive(name, data)
    rig.server.advance()
    with pytest.raises(Void, match="60 sets of shares were tried"):
        rig.server.result()
