"""Keys, neighbours, lists and messages that are not what their members signed, each refused by name."""

from __future__ import annotations

import struct
import tracemalloc
from dataclasses import replace

import pytest
from secagg.driver import BOTH, Rig, body_of, from_server, key_of, rig_of, signed, sparse

from fedcore.errors import Forged, FormatError, Replayed, Void
from fedcore.privacy.secagg import wire
from fedcore.privacy.secagg.keys import signed_text


@pytest.mark.parametrize("make", [lambda: rig_of("malicious"), lambda: Rig(sparse("malicious"))])
def test_keys_that_were_not_signed_or_not_committed_to_are_refused(make):
    rig = make().run("share")
    good, p = rig.messages[0], rig.p
    size = wire.advertised_bytes(p) + 64 + 32 * ((p.clients - 1).bit_length())
    count = struct.unpack_from("<H", good, wire.HEADER.size + 64)[0]
    start = wire.HEADER.size + 66 + 2 * count

    def changed(at):
        return good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :]

    with pytest.raises(Forged, match="did not sign"):
        rig.clients[0].share(changed(start + 3))
    with pytest.raises(Forged, match="not under the root"):
        rig.clients[0].share(changed(start + size - 1))
    with pytest.raises(Forged, match="not under the root"):
        rig.clients[0].share(changed(wire.HEADER.size + 1))
    assert rig.clients[0].share(good)


def test_duplicate_neighbours_itself_and_strangers_are_refused():
    rig = Rig(sparse("semi_honest")).run("share")
    client, root = rig.clients[0], bytes(32) + rig.messages[0][wire.HEADER.size + 32 : wire.HEADER.size + 64]
    keys = [rig.server._signed["advertise"][i][0] for i in range(12)]

    def message(names):
        return from_server(rig, "share", root + wire.positions(names) + b"".join(keys[i] for i in names))

    mine = rig.holders(0)
    stranger = next(i for i in range(1, 12) if i not in mine)
    for names, why in (
        (sorted([mine[0], *mine[:-1]]), "twice"),
        (sorted([0, *mine[1:]]), "itself|its own neighbour"),
        (sorted([stranger, *mine[1:]]), "no neighbour"),
    ):
        with pytest.raises(Forged, match=why):
            client.share(message(names))
    with pytest.raises(Void, match="3 of the client's holders"):
        client.share(message(mine[:3]))


def test_a_draw_that_names_its_member_or_another_one_twice_is_refused():
    rig = Rig(sparse("malicious"))
    data = rig.clients[3].advertise()
    for draw in ([1, 2, 3, 4], [1, 1, 2, 4], [1, 2, 4, 12]):
        body = data[wire.HEADER.size : -64][:96] + struct.pack("<4H", *draw)
        with pytest.raises(Forged, match=r"drew itself|twice|member 12"):
            rig.server.receive(3, signed(rig, 3, "advertise", body))


def test_more_members_than_honest_draws_give_are_refused():
    p = sparse("malicious")
    rig = Rig(replace(p, in_degree=4))
    for name in rig.ids:
        rig.clients[name]._holders = [i for i in range(7) if i != name][:4] if name < 7 else [7, 8, 9, 10]
        if name in rig.clients[name]._holders:
            rig.clients[name]._holders = sorted({7, 8, 9, 10, 11} - {name})
        rig.server.receive(name, rig.clients[name].advertise())
    rig.server._around._p = p  # a server that does not mind
    messages = rig.server.advance()
    with pytest.raises(Forged, match="more than 4 members"):
        rig.clients[0].share(messages[0])


def test_masks_with_members_whose_keys_the_client_never_saw_are_refused():
    rig = Rig(sparse("semi_honest")).run("mask")
    client, mine = rig.clients[0], rig.holders(0)
    stranger = next(i for i in range(1, 12) if i not in mine)
    sealed = rig.messages[0][wire.HEADER.size + 2 + 2 * len(mine) :]
    for names in (sorted([stranger, *mine[1:]]), [stranger]):
        body = wire.positions(names) + sealed[: wire.SEALED * len(names)]
        with pytest.raises(Forged, match="mask: the server's message: names a member whose keys the client never saw"):
            client.mask(from_server(rig, "mask", body), rig.vectors[0])
    assert list(client.mask(rig.messages[0], rig.vectors[0]))


@BOTH
def test_no_vector_is_masked_among_fewer_holders_than_the_threshold(adversary):
    """Those that did not share cannot be asked for shares: the mask would stay on, or be a few members' alone."""
    rig = rig_of(adversary).run("mask")
    client, good = rig.clients[0], rig.messages[0][wire.HEADER.size :]
    names, sealed = [1, 2, 3, 4], good[10:]
    assert good[:10] == wire.positions(names)
    for count in (0, 2):
        body = wire.positions(names[:count]) + sealed[: wire.SEALED * count]
        with pytest.raises(Void, match=f"{count} of the client's holders shared their secrets, expected at least 3"):
            client.mask(from_server(rig, "mask", body), rig.vectors[0])
    body = wire.positions(names[:3]) + sealed[: wire.SEALED * 3]
    assert list(client.mask(from_server(rig, "mask", body), rig.vectors[0]))


def test_lists_that_leave_the_client_out_or_are_not_signed_are_refused():
    """A server that told member 1 of fewer partners than client 0 has would leave a mask on or take one off."""
    rig = rig_of(n=5, t=3).run("acknowledge")
    tag, without = rig.server._tag, wire.positions([2, 3, 4])
    honest = key_of(2).sign(signed_text("included", tag, 1, without))
    other = key_of(3).sign(signed_text("included", tag, 1, wire.positions([0, 2, 3, 4])))
    for listed, signature, why in (
        (without, honest, "1 has no mask with the client"),
        (wire.positions([0, 2, 3, 4]), other, "1 did not sign"),
    ):
        with pytest.raises(Forged, match=why):
            rig.clients[0].acknowledge(from_server(rig, "acknowledge", struct.pack("<HH", 1, 1) + listed + signature))
    with pytest.raises(Forged, match="whose shares the client does not hold"):
        rig.clients[0].acknowledge(from_server(rig, "acknowledge", struct.pack("<HH", 1, 0) + without + honest))


@BOTH
def test_forged_late_and_reordered_messages_are_refused_by_name(adversary):
    rig = rig_of(adversary).run("share")
    first, second = (rig.answers(name)[0] for name in (1, 2))
    server = rig.server
    with pytest.raises(Forged, match=r"share: the message of 2: names another sender"):
        server.receive(2, first)
    with pytest.raises(Forged, match="not in the roster"):
        server.receive(77, first)
    with pytest.raises(Forged, match="is not signed by it"):
        server.receive(1, first[:-1] + bytes([first[-1] ^ 1]))
    with pytest.raises(FormatError, match="claims a body of"):
        server.receive(1, first[:-1])
    server.receive(1, first)
    with pytest.raises(Replayed, match="came before"):
        server.receive(1, first)
    for name in (0, 2, 3):
        server.receive(name, rig.answers(name)[0])
    late = rig.answers(4)[0]
    rig.messages = server.advance()
    with pytest.raises(Replayed, match="late, again or too early"):
        server.receive(4, late)
    with pytest.raises(Replayed, match="late, again or too early"):
        server.receive(2, second)
    with pytest.raises(Replayed, match="out of order"):
        rig.clients[1].unmask(rig.messages[1])


@BOTH
def test_no_message_is_looked_into_that_is_longer_than_the_longest_honest_one(adversary):
    """Also where its header says how long it is: nothing of it is hashed or compared with a signature."""
    rig = rig_of(adversary).run("share")
    sent = body_of(rig.answers(1)[0])
    longest = 2 + rig.p.neighbours * (2 + wire.SEALED)
    assert len(sent) == longest
    with pytest.raises(FormatError, match=f"claims a body of {longest + 1} bytes, .* expected at most {longest}"):
        rig.server.receive(1, signed(rig, 1, "share", sent + b"x"))
    body = rig.messages[0][wire.HEADER.size :]
    with pytest.raises(FormatError, match=rf"claims a body of {1 << 20} bytes, .* expected at most \d{{3,4}}$"):
        rig.clients[0].share(from_server(rig, "share", body + bytes((1 << 20) - len(body))))


def test_a_header_that_claims_two_to_the_sixty_bytes_takes_no_memory():
    rig = rig_of().run("share")
    data = bytearray(rig.answers(1)[0])
    data[8:16] = struct.pack("<Q", 1 << 60)
    message = bytearray(rig.messages[0])
    message[8:16] = struct.pack("<Q", 1 << 60)
    tracemalloc.start()
    with pytest.raises(FormatError, match=f"claims a body of {1 << 60} bytes"):
        rig.server.receive(1, bytes(data))
    with pytest.raises(FormatError, match=f"claims a body of {1 << 60} bytes"):
        rig.clients[0].share(bytes(message))
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
