"""Servers and members that lie, each refused: what a malicious server may not learn, and who is named."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from secagg.driver import BOTH, SEALING, Rig, complete, from_server, key_of, request, rig_of, sparse

from fedcore.errors import Forged, PrivacyError, Replayed, Void
from fedcore.privacy import Distributed
from fedcore.privacy.secagg import wire
from fedcore.privacy.secagg.keys import signed_text
from fedcore.privacy.secagg.masking import mask_keys
from fedcore.privacy.secagg.parameters import Parameters
from fedcore.privacy.secagg.peers import MASK, SEED
from fedcore.privacy.secagg.policy import Offer, Policy
from fedcore.privacy.secagg.server import Server


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
    """Different survivor lists to two neighbourhoods: each client leaves unless enough of its holders saw what it saw,
    and gives seeds only of members whose list it did see, and mask secrets of others."""
    rig = rig_of(n=6, t=4).run("acknowledge")
    told, untold, tag = {0, 1}, {2, 3, 4, 5}, rig.server._tag
    lists = {j: struct.pack("<H", j) + b"".join(rig.server._lists[j]) for j in rig.ids}

    def told_of(name, others):
        seen = [j for j in others if j != name]
        message = from_server(rig, "acknowledge", struct.pack("<H", len(seen)) + b"".join(lists[j] for j in seen))
        return rig.clients[name].acknowledge(message)[wire.HEADER.size :]

    acks = {name: told_of(name, rig.ids) for name in told} | {name: told_of(name, untold | {1}) for name in untold}

    def ask(name, by, kind, of):
        shown = b"".join(struct.pack("<H", other) + acks[other] for other in by)
        message = struct.pack("<H", len(by)) + shown + struct.pack("<HBH", 1, kind, of)
        return rig.clients[name].unmask(from_server(rig, "unmask", message))

    with pytest.raises(Forged, match="3 did not acknowledge the client"):
        ask(0, [3], SEED, 1)
    with pytest.raises(Forged, match="3 acknowledged other members than the client did"):
        ask(1, [3], SEED, 0)
    with pytest.raises(Void, match="1 of the client's holders acknowledged it, expected at least 4"):
        ask(0, [1], SEED, 1)
    listed = wire.positions([2, 3, 4, 5])  # of member 1, that lies
    acks[1] = listed + key_of(2).sign(signed_text("acknowledge", tag, 1, listed))
    with pytest.raises(Forged, match="seed of 0, but no proof"):
        ask(2, [1, 3, 4, 5], SEED, 0)
    with pytest.raises(Forged, match="mask secret of 1, but its vector is in the sum"):
        ask(2, [1, 3, 4, 5], MASK, 1)
    assert ask(2, [1, 3, 4, 5], MASK, 0)


def test_only_a_clients_own_holders_acknowledge_it():
    """Corrupt members can all draw one client. Were their acknowledgements to count, it would give shares although too
    few honest holders saw that its vector is in the sum, and its own mask secret could be had from these."""
    rig = Rig(sparse("malicious"))
    for name in rig.ids:
        rig.clients[name]._holders = sorted((name + step) % 12 for step in (1, 2, 3, 4))
    rig.run("unmask")
    client, listed = rig.clients[0], wire.positions([0])
    entries = []
    for ward in (8, 9, 10):
        signature = key_of(ward + 1).sign(signed_text("acknowledge", rig.server._tag, ward, listed))
        entries.append(struct.pack("<H", ward) + listed + signature)
    body = struct.pack("<H", 3) + b"".join(entries) + struct.pack("<HBH", 1, SEED, 8)
    assert rig.p.threshold == 3
    with pytest.raises(Forged, match="names acknowledging member 8 twice, or one that is no holder"):
        client.unmask(from_server(rig, "unmask", body))
    assert client.unmask(rig.messages[0])


def test_a_client_of_whose_neighbours_too_few_are_in_the_sum_answers_nothing():
    """The rest of a sum in which hardly any of its neighbours are could be the client alone."""
    rig = Rig(sparse("semi_honest")).run("unmask")
    client, holders = rig.clients[0], rig.holders(0)
    asked = [(SEED, i) for i in holders[:3]] + [(MASK, i) for i in holders[3:]]
    there = wire.members(set(range(12)) - set(holders[3:]), 12)
    body = there + struct.pack("<H", len(asked)) + b"".join(struct.pack("<BH", *one) for one in asked)
    with pytest.raises(Void, match="3 of the client's neighbours are in the sum, expected at least 4"):
        client.unmask(from_server(rig, "unmask", body))
    assert client.unmask(rig.messages[0])


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
        mine = rig.clients[one]
        return mask_keys(mine._keys, mine._tag, mine._me, [other], mine._peers, rig.roster.ids)[0][1].tobytes()

    assert key(0, 1) == key(1, 0)
    assert key(2, 3) == key(3, 2)
    assert key(0, 3) != key(3, 0)


def test_a_sum_whose_masks_do_not_cancel_is_void():
    rig = Rig(complete(4, 3, length=64)).run("unmask")
    rig.server._folding._total += np.uint32(123456789)
    rig.run()
    with pytest.raises(Void, match="masks did not cancel"):
        rig.server.result()


def test_errors_never_show_a_secret():
    """Names and numbers only: no bytes of any key in what is raised."""
    rig = rig_of("semi_honest").run("unmask")
    client = rig.clients[0]
    secrets = [bytes(client._secret), client._keys.seed, client._keys.mask_bytes, *map(bytes, client._held.values())]
    with pytest.raises(Forged) as found:
        client.unmask(request(rig, 0, [(9, 1)]))
    assert not any(secret.hex() in str(found.value) or repr(secret) in str(found.value) for secret in secrets)


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
