"""Messages of the server that are changed on their way: whose they were drops out, and nobody is named for it."""

from __future__ import annotations

import struct

import pytest
from secagg.driver import BOTH, BOUND, SEALING, Rig, key_of, sparse

from fedcore.errors import Forged, Void
from fedcore.privacy.secagg import wire
from fedcore.privacy.secagg.parameters import Parameters
from fedcore.privacy.secagg.server import Server

VICTIM = 7


def rig_of(adversary: str) -> Rig:
    """Of 19 shares 15 are needed, and 2 members may be corrupt."""
    return Rig(Parameters.choose(20, length=5, bound=BOUND, corrupt=0.1, dropout=0.2, adversary=adversary))


def holders_of(rig: Rig, count: int) -> list[int]:
    return [i for i in rig.ids if i != VICTIM and VICTIM in rig.server._around.held_by(i)][:count]


def sealed_share_changed(rig: Rig, holder: int) -> bytes:
    """The message that starts 'mask' with a bit of the victim's sealed share flipped."""
    data = bytearray(rig.messages[holder])
    (count,) = struct.unpack_from("<H", data, wire.HEADER.size)
    listed = struct.unpack_from(f"<{count}H", data, wire.HEADER.size + 2)
    number = [i for i in listed if rig.clients[holder]._peers[i].ward].index(VICTIM)
    data[wire.HEADER.size + 2 + 2 * count + wire.SEALED * number + 5] ^= 1
    return bytes(data)


def request_left_out(rig: Rig, holder: int) -> bytes:
    """The message that starts 'unmask' without the request for the victim's share."""
    body, asked = rig.messages[holder][wire.HEADER.size :], rig.server._request[holder]
    left = [one for one in asked if one[1] != VICTIM]
    head = body[: len(body) - 2 - wire.ENTRY * len(asked)]
    entries = b"".join(struct.pack("<BH", *one) for one in left)
    body = head + struct.pack("<H", len(left)) + entries
    return wire.pack(wire.kind_of("unmask", server=True), wire.SERVER, rig.server._tag, body)


def keys_changed(rig: Rig, reader: int, whose: int) -> bytes:
    """The message that starts 'share' with another share key of a member, of which no signature goes with it."""
    good = rig.server._signed["advertise"][whose][0][:32]
    assert rig.messages[reader].count(good) == 1
    return rig.messages[reader].replace(good, key_of(99).public_key().public_bytes_raw())


def ended(rig: Rig, changed: list[int]) -> Server:
    """The server after the rest of a round in which the shares of those whose messages were changed are refused."""
    while rig.server.stage:
        refused = {}
        for name in rig.messages:
            for data in rig.answers(name):
                try:
                    rig.server.receive(name, data)
                except Forged as error:
                    refused[name] = str(error)
        if rig.server.stage == "unmask":
            assert list(refused) == changed
            assert all("is not signed by it for this stage and what it was sent" in why for why in refused.values())
        rig.messages = dict(rig.server.advance())
    return rig.server


@BOTH
@pytest.mark.parametrize(("stage", "change"), [("mask", sealed_share_changed), ("unmask", request_left_out)])
def test_a_dealer_is_not_named_for_shares_that_were_kept_from_its_holders(adversary, stage, change):
    """By whoever is on the line, without any key: more than `corrupt` holders have no share of the victim's."""
    for make, left in (
        (lambda: rig_of(adversary), 14),
        (lambda: Rig(sparse(adversary)), 2 + (adversary != "malicious")),
    ):
        rig = make().run(stage)
        many = holders_of(rig, rig.p.neighbours - rig.p.threshold + 1)
        assert len(many) > max(rig.p.corrupt, 1)
        rig.messages |= {name: change(rig, name) for name in many}
        with pytest.raises(Void, match=rf"unmask: {left} holders of the shares of \d+ are left") as caught:
            ended(rig, many)
        assert caught.value.suspects == []
    rig = rig_of(adversary).run(stage)
    few = holders_of(rig, rig.p.corrupt + 1)
    rig.messages |= {name: change(rig, name) for name in few}
    found = ended(rig, few).result()
    assert (found.liars, found.notes) == ({}, [])
    assert (found.sum == rig.vectors.sum(0)).all()


def test_members_that_trust_their_server_are_not_named_for_keys_that_were_changed():
    """Without signatures on others' keys, as a semi-honest server's transport is to keep them: of the holders' in the
    message to a dealer, whose shares they cannot open, and of the dealer's in those to its holders."""
    rig = rig_of("semi_honest").run("share")
    for holder in range(3):
        rig.messages[VICTIM] = keys_changed(rig, VICTIM, holder)
    with pytest.raises(Forged, match="what it was sent: one of them was changed on the way"):
        rig.server.receive(VICTIM, rig.answers(VICTIM)[0])
    del rig.messages[VICTIM]
    server = ended(rig, [])
    assert (server.result().sum == rig.vectors[server.result().survivors].sum(0)).all()
    rig = rig_of("semi_honest").run("share")
    rig.messages |= {holder: keys_changed(rig, holder, VICTIM) for holder in range(3)}
    server = ended(rig, [])
    assert server.result().survivors == [i for i in rig.ids if i > 2]
    assert server.result().liars == {}


@BOTH
def test_a_server_that_was_restarted_knows_what_it_sent(adversary):
    """Of stages before from its state, and of the one that it is in as it makes the messages again."""
    rig = rig_of(adversary)
    while rig.server.stage:
        rig.server = Server.from_bytes(rig.server.to_bytes(SEALING), SEALING)
        rig.messages = dict(rig.server.answers()) or rig.messages
        for name in rig.messages:
            for data in rig.answers(name):
                rig.server.receive(name, data)
            if name == 9:  # without its messages, which are made again for whoever has not answered
                rig.server = Server.from_bytes(rig.server.to_bytes(SEALING), SEALING)
        rig.server = Server.from_bytes(rig.server.to_bytes(SEALING), SEALING)
        rig.messages = dict(rig.server.advance())
    assert (rig.server.result().sum == rig.vectors.sum(0)).all()


def test_a_changed_message_is_refused_by_a_restarted_server_too():
    rig = rig_of("malicious").run("mask")
    (holder,) = holders_of(rig, 1)
    rig.messages[holder] = sealed_share_changed(rig, holder)
    rig.run("unmask")
    rig.server = Server.from_bytes(rig.server.to_bytes(SEALING), SEALING)
    with pytest.raises(Forged, match="is not signed by it for this stage and what it was sent"):
        rig.server.receive(holder, rig.answers(holder)[0])
    rig.server.receive(VICTIM, rig.answers(VICTIM)[0])
