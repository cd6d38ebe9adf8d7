"""Servers and members that lie, each refused: what a malicious server may not learn, and who is named."""

from __future__ import annotations

import struct
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from secagg.driver import SEALING, Rig, complete, key_of, sparse

from fedcore import ops
from fedcore.errors import Forged, FormatError, PrivacyError, Replayed, Void
from fedcore.privacy import Distributed
from fedcore.privacy.secagg import unmasking, wire
from fedcore.privacy.secagg.client import Client
from fedcore.privacy.secagg.guard import Offer, Policy
from fedcore.privacy.secagg.keys import signed_text
from fedcore.privacy.secagg.parameters import Parameters
from fedcore.privacy.secagg.peers import MASK, SEED
from fedcore.privacy.secagg.server import Server
from fedcore.privacy.secagg.simulate import answer
from fedcore.reference.shamir_combine import weights

BOTH = pytest.mark.parametrize("adversary", ["semi_honest", "malicious"])


def rig_of(adversary: str = "malicious", n: int = 5, t: int = 3) -> Rig:
    return Rig(complete(n, t, adversary))


def from_server(rig: Rig, stage: str, body: bytes) -> bytes:
    tag = rig.server.round.binding if stage == "share" else rig.server._tag
    return wire.pack(wire.kind_of(stage, server=True), wire.SERVER, tag, body)


def request(rig: Rig, name: int, asked: list[tuple[int, int]]) -> bytes:
    """The server's last message to a client with other shares asked for, everything else as it was."""
    body = rig.messages[name][wire.HEADER.size :]
    old = len(rig.server._request[name])
    head = body[: len(body) - 2 - wire.ENTRY * old]
    return from_server(
        rig, "unmask", head + struct.pack("<H", len(asked)) + b"".join(struct.pack("<BH", *a) for a in asked)
    )


@BOTH
def test_both_kinds_of_share_of_one_member_are_refused(adversary):
    rig = rig_of(adversary).run("unmask")
    asked = rig.server._request[0]
    for extra in ((MASK, 1), (SEED, 1)):
        with pytest.raises(Forged, match=r"twice|in the sum"):
            rig.clients[0].unmask(request(rig, 0, [*asked, extra]))
    assert rig.clients[0].unmask(rig.messages[0])


@BOTH
def test_only_seeds_and_mask_secrets_of_members_whose_shares_are_held_are_given(adversary):
    """There is no way to ask for the secret that shares are sealed with, nor for one's own secrets."""
    rig = rig_of(adversary).run("unmask")
    for asked in ((3, 1), (0, 1), (SEED, 0), (SEED, 40_000)):
        with pytest.raises(Forged, match=r"secret of kind|does not hold"):
            rig.clients[0].unmask(request(rig, 0, [asked]))


def test_a_second_unmask_request_is_refused():
    rig = rig_of("semi_honest").run("unmask", gone=(4,))
    first, asked = rig.clients[0].unmask(rig.messages[0]), rig.server._request[0]
    assert rig.clients[0].unmask(rig.messages[0]) == first
    with pytest.raises(Replayed, match="another message"):
        rig.clients[0].unmask(request(rig, 0, asked[1:]))


def test_a_member_that_some_were_told_is_in_the_sum_is_nowhere_called_gone():
    """Different survivor lists to two neighbourhoods: each client gives mask secrets only of members whose list it did
    not see, and leaves unless enough of its holders saw its own."""
    rig = rig_of(n=6, t=4).run("acknowledge")
    told, untold = (1, 2), (3, 4, 5)
    for name in told:
        rig.server.receive(name, rig.clients[name].acknowledge(rig.messages[name]))
    hidden = {}
    for name in untold:  # the list of client 0 is kept from these
        wards = [j for j in range(6) if j not in (0, name)]
        parts = [struct.pack("<H", j) + b"".join(rig.server._lists[j]) for j in wards]
        message = from_server(rig, "acknowledge", struct.pack("<H", len(wards)) + b"".join(parts))
        hidden[name] = rig.clients[name].acknowledge(message)
    rig.clients[0].acknowledge(rig.messages[0])

    def acknowledged(name, by):
        entries = []
        for other in by:
            if other == name:
                continue
            ack = hidden.get(other) or rig.clients[other].acknowledge(rig.messages[other])
            body = ack[wire.HEADER.size : -64]
            if name in struct.unpack(f"<{len(body) // 2 - 1}H", body[2:]):
                entries.append(struct.pack("<H", other) + body + ack[-64:])
        return struct.pack("<H", len(entries)) + b"".join(entries)

    def ask(name, kind, of):
        body = acknowledged(name, range(6)) + struct.pack("<HBH", 1, kind, of)
        return rig.clients[name].unmask(from_server(rig, "unmask", body))

    ack = hidden[3]
    body = struct.pack("<HH", 1, 3) + ack[wire.HEADER.size : -64] + ack[-64:] + struct.pack("<HBH", 1, SEED, 1)
    with pytest.raises(Forged, match="3 did not acknowledge the client"):
        rig.clients[0].unmask(from_server(rig, "unmask", body))
    for name in told:
        with pytest.raises(Forged, match="mask secret of 0, but its vector is in the sum"):
            ask(name, MASK, 0)
    for name in untold:
        with pytest.raises(Forged, match="seed of 0, but no proof"):
            ask(name, SEED, 0)
    with pytest.raises(Void, match="2 of the client's holders acknowledged it, expected at least 4"):
        ask(0, SEED, 1)


@BOTH
def test_two_models_to_two_halves_do_not_cancel(adversary):
    """Nobody is told: the masks between the halves have other keys, so that the sum is noise, or is refused before."""
    p = complete(4, 3, adversary, length=64)
    rig = Rig(p, {2: b"\x01" * 32, 3: b"\x01" * 32})
    server = rig.server
    for name in range(4):  # the server passes on keys that the others made for another model, as if for this one
        body, kind = rig.clients[name].advertise()[wire.HEADER.size : -64], wire.kind_of("advertise")
        text = signed_text("advertise", server.round.binding, name, body)
        server.receive(name, wire.pack(kind, name, server._tag, body, key_of(name + 1).sign(text)))
    messages = dict(server.advance())
    with pytest.raises(Replayed, match="another round, session, model"):
        rig.clients[3].share(messages[3])
    tag = wire.HEADER.size - 8
    for name in (2, 3):
        messages[name] = messages[name][:tag] + rig.clients[3].round.binding[:8] + messages[name][tag + 8 :]
    if adversary == "malicious":
        for name in (2, 3):  # and 0 and 1 as well, had the server not the keys to sign for them here
            with pytest.raises(Forged, match="did not sign for this round"):
                rig.clients[name].share(messages[name])
        return
    for name in range(4):
        rig.clients[name].share(messages[name])

    def key(one, other):
        return rig.clients[one]._mask_keys([other])[0][1].tobytes()

    assert key(0, 1) == key(1, 0)
    assert key(2, 3) == key(3, 2)
    assert key(0, 3) != key(3, 0)


def test_a_sum_whose_masks_do_not_cancel_is_void():
    rig = Rig(complete(4, 3, length=64)).run("unmask")
    rig.server._folding.total += np.uint32(123456789)
    rig.run()
    with pytest.raises(Void, match="masks did not cancel"):
        rig.server.result()


def test_an_old_snapshot_repeats_or_stops():
    """Restored from before its vector was masked, a client does not mask another; nor answer a second request."""
    rig = rig_of("semi_honest").run("mask")
    client = rig.clients[0]
    old, generation = client.to_bytes(SEALING), client.generation
    sent = list(client.mask(rig.messages[0], rig.vectors[0]))
    restored = Client.from_bytes(old, SEALING)
    with pytest.raises(Replayed, match="may be an old one"):
        restored.mask(rig.messages[0], rig.vectors[1])
    with pytest.raises(Replayed, match=f"is of generation {generation}, the newest is {generation + 1}"):
        Client.from_bytes(old, SEALING, client.generation)
    newest = Client.from_bytes(client.to_bytes(SEALING), SEALING)
    assert list(newest.mask(rig.messages[0], rig.vectors[0])) == sent
    for one in (client, newest):
        with pytest.raises(Replayed, match="another vector"):
            one.mask(rig.messages[0], rig.vectors[1])
    with pytest.raises(FormatError, match="does not open"):
        Client.from_bytes(old[:-1] + bytes([old[-1] ^ 1]), SEALING)


def test_the_state_is_saved_before_anything_is_sent():
    rig = rig_of("malicious", 3, 2)
    saved = []
    rig.clients[0]._save = lambda client: saved.append(Client.from_bytes(client.to_bytes(SEALING), SEALING))
    for stage in rig.p.stages:
        rig.run(stage)
        message, vector = rig.messages[0], rig.vectors[0]
        sent = answer(rig.clients[0], stage, message, vector)  # chunks are not made yet
        assert saved[-1].generation == rig.p.stages.index(stage) + 1
        assert list(answer(saved[-1], stage, message, vector)) == list(sent)


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


def test_a_client_whose_draw_names_itself_or_crowds_another_is_refused():
    rig = Rig(sparse("malicious"))
    data = rig.clients[3].advertise()
    for draw in ([1, 2, 3, 4], [1, 1, 2, 4], [1, 2, 4, 12]):
        body = data[wire.HEADER.size : -64][:96] + struct.pack("<4H", *draw)
        signature = key_of(4).sign(signed_text("advertise", rig.server._tag, 3, body))
        with pytest.raises(Forged, match=r"drew itself|twice|member 12"):
            rig.server.receive(3, wire.pack(0, 3, rig.server._tag, body, signature))


def test_more_members_than_honest_draws_give_are_refused():
    p = sparse("malicious")
    rig = Rig(replace(p, in_degree=4))
    for name in rig.ids:
        rig.clients[name]._holders = [i for i in range(7) if i != name][:4] if name < 7 else [7, 8, 9, 10]
        if name in rig.clients[name]._holders:
            rig.clients[name]._holders = sorted({7, 8, 9, 10, 11} - {name})
        rig.server.receive(name, rig.clients[name].advertise())
    rig.server._p = p  # a server that does not mind
    messages = rig.server.advance()
    with pytest.raises(Forged, match="more than 4 members"):
        rig.clients[0].share(messages[0])


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


def test_shares_that_do_not_open_are_only_left_out():
    rig = Rig(complete(5, 3)).run("mask")
    message = rig.messages[0]
    rig.messages[0] = message[:-1] + bytes([message[-1] ^ 1])
    rig.run()
    assert (rig.server.result().sum == rig.vectors.sum(0)).all()
    assert rig.clients[0].faults == {4: "mask: its shares do not open"}


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


def test_errors_never_show_a_secret():
    """Names and numbers only: no bytes of any key in what is raised."""
    rig = rig_of("semi_honest").run("unmask")
    client = rig.clients[0]
    secrets = [client._secret, client._keys.seed, client._keys.mask_bytes, *(s for s in client._held.values())]
    with pytest.raises(Forged) as found:
        client.unmask(request(rig, 0, [(9, 1)]))
    assert not any(secret.hex() in str(found.value) or repr(secret) in str(found.value) for secret in secrets)


def test_what_could_not_be_saved_is_not_sent_by_a_second_try():
    """Nor is a restart from the last state that was saved able to mask another vector than was sent."""
    rig = rig_of("malicious", 3, 2)
    client, disk, full = rig.clients[0], [], []

    def save(one):
        if full:
            raise OSError("no space left")
        disk.append(one.to_bytes(SEALING))

    client._save = save
    for stage in rig.p.stages:
        rig.run(stage)
        message, generation = rig.messages[0], client.generation
        full.append(True)
        for _ in range(2):
            with pytest.raises(OSError, match="no space"):
                answer(client, stage, message, rig.vectors[0])
        assert client.generation == generation
        full.clear()
        sent = list(answer(client, stage, message, rig.vectors[0]))
        saved = Client.from_bytes(disk[-1], SEALING)
        assert list(answer(saved, stage, message, rig.vectors[0])) == sent


def test_below_its_floor_a_round_is_void_for_the_server_and_for_every_client():
    """100 clients on a sparse circle, noise for 75: a sum of 74 would do for the shares and not for the noise."""
    noise = Distributed(1.0, 1.0, 100, 75, 10, 8, bytes(32))
    p = Parameters.for_distributed(noise, dropout=0.25)
    assert not p.complete
    assert p.threshold + 1 < p.min_included == 75
    assert p.min_honest == 65
    assert Parameters.from_bytes(p.to_bytes()) == p
    Policy(smallest_cohort=65).check(Offer(p))
    with pytest.raises(PrivacyError, match="only 65 honest"):
        Policy(smallest_cohort=66).check(Offer(p))
    rig = Rig(p)
    rig.vectors %= 2**p.modulus_bits
    rig.run("mask")
    for name in rig.ids[:74]:
        rig.server.receive(name, rig.answers(name)[0])
    state = rig.server.to_bytes(SEALING)
    with pytest.raises(Void, match="74 vectors came, expected at least 75"):
        rig.server.advance()
    rig.server = Server.from_bytes(state, SEALING)
    for name in rig.ids[74:76]:
        rig.server.receive(name, rig.answers(name)[0])
    rig.messages = rig.server.advance()
    good, size = rig.messages[0], 13
    there = rig.server._request[0]
    dropped = [i for i in rig.ids[:76] if (SEED, i) not in there and i != 0]

    def listed(found):
        return good[: wire.HEADER.size] + wire.members(found, 100) + good[wire.HEADER.size + size :]

    with pytest.raises(Void, match="74 members are in the sum, expected at least 75"):
        rig.clients[0].unmask(listed(set(range(76)) - set(dropped[:2])))
    member = next(i for kind, i in there if kind == SEED)
    with pytest.raises(Forged, match="its vector is not in the sum"):
        rig.clients[0].unmask(listed(set(range(76)) - {member}))
    assert rig.clients[0].unmask(good)


def test_where_clients_see_all_members_they_keep_the_floor_against_a_malicious_server():
    rig = Rig(complete(6, 4, "malicious", least_included=6)).run("acknowledge")
    data = rig.messages[0]
    lists = rig.server._lists
    few = struct.pack("<H", 4) + b"".join(struct.pack("<H", j) + b"".join(lists[j]) for j in range(1, 5))
    with pytest.raises(Void, match="5 members are in the sum, expected at least 6"):
        rig.clients[0].acknowledge(from_server(rig, "acknowledge", few))
    assert rig.clients[0].acknowledge(data)


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
