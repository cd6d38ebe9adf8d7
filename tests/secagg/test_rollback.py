"""A party that is there twice, or in an old state: never a second vector under the same keys, nor a second answer."""

from __future__ import annotations

import copy
import itertools
import pickle
import struct
import threading
from contextlib import suppress

import pytest
from secagg.driver import BOTH, CONTEXT, SEALING, Rig, complete, from_server, key_of, rig_of

import fedcore as fc
from fedcore.errors import PrivacyError, Replayed
from fedcore.privacy.secagg import client as client_file
from fedcore.privacy.secagg import wire
from fedcore.privacy.secagg.client import Client
from fedcore.privacy.secagg.peers import MASK, SEED
from fedcore.privacy.secagg.server import Server


class Disk:
    """States that anybody can put back, and beside them the newest generation, which nobody can: changed by who names
    the one before alone, and written first."""

    def __init__(self):
        self.newest, self.states = None, {}

    def of(self, newest):
        """`save` of a process that found this generation."""

        def save(client):
            nonlocal newest
            if self.newest not in (newest, client.generation):
                raise OSError("another process has gone on with this client")
            self.newest = newest = client.generation
            self.states[client.round.number, len(client._answered)] = client.to_bytes(SEALING)

        return save


def round_of(number=7, session=b"session", until="mask", disk=None, adversary="malicious"):
    """A round before a stage; what client 0 saves goes to the disk."""
    rig = Rig(complete(4, 3, adversary), seed=number)
    rig.server = Server(rig.p, rig.roster, session, number, CONTEXT)
    save = disk and disk.of(disk.newest)
    rig.clients = {
        i: Client(rig.p, i, key_of(i + 1), rig.roster, session, number, CONTEXT, None if i else save) for i in rig.ids
    }
    return rig.run(until)


def test_a_state_of_an_earlier_round_is_not_taken_for_the_newest():
    disk = Disk()
    first = round_of(6, disk=disk).run(None)
    round_of(7, disk=disk)  # the client stops here, where it has not masked yet
    with pytest.raises(Replayed, match="is of round 6 with 2 stages over, the newest is of round 7 with 2 stages over"):
        Client.from_bytes(disk.states[6, 2], SEALING, disk.newest)
    assert Client.from_bytes(disk.states[7, 2], SEALING, disk.newest).round.number == 7
    assert len(first.server.result().survivors) == 4


@pytest.mark.parametrize(
    "other",
    [
        lambda: round_of(7, b"another session").clients[0],
        lambda: round_of(7).clients[0],  # started anew, with other keys
        lambda: round_of(7).clients[1],
    ],
)
def test_a_state_of_another_session_start_or_member_is_not_taken_for_the_newest(other):
    newest = round_of(7).clients[0].generation
    with pytest.raises(Replayed, match="is another one of round 7 with 2 stages over than the newest"):
        Client.from_bytes(other().to_bytes(SEALING), SEALING, newest)


def test_generations_grow_from_stage_to_stage_and_round_to_round():
    """Also where a round is left out, or left in the middle; no two are the same."""
    found = []
    for number, until in ((0, None), (1, "mask"), (300, None), (1 << 40, None)):
        found.append(round_of(number, until=until).clients[0].generation)
    rig = rig_of()
    seen = [rig.clients[0].generation]
    for stage in (*rig.p.stages[1:], None):
        seen.append(rig.run(stage).clients[0].generation)
    for each in (found, seen):
        assert all(one < two for one, two in itertools.pairwise(each))
    assert {len(one) for one in found + seen} == {32}
    assert rig_of().clients[0].generation != rig_of().clients[0].generation


@pytest.mark.parametrize("newest", [2, "2", bytes(31), b"", memoryview(bytes(32))])
def test_a_generation_is_what_a_client_says_that_it_is(newest):
    rig = rig_of()
    for one in (rig.clients[0], rig.server):
        with pytest.raises(PrivacyError, match=r"generation: got .*, expected the 32 bytes that `generation` gave"):
            type(one).from_bytes(one.to_bytes(SEALING), SEALING, newest)


def test_of_two_processes_that_go_on_from_one_state_one_is_stopped_by_its_save():
    """Both masked another vector: they have other generations, though both answered the same message."""
    disk = Disk()
    rig = round_of(7, disk=disk)
    state, newest = disk.states[7, 2], disk.newest
    one, two = (Client.from_bytes(state, SEALING, newest, disk.of(newest)) for _ in range(2))
    sent = list(one.mask(rig.messages[0], rig.vectors[0]))
    for _ in range(2):  # a save that is tried again does not take the other's generation for its own
        with pytest.raises(OSError, match="another process"):
            two.mask(rig.messages[0], -rig.vectors[0])
    again = Client.from_bytes(disk.states[7, 3], SEALING, disk.newest)
    assert list(again.mask(rig.messages[0], rig.vectors[0])) == sent


def meeting(monkeypatch, name):
    """A function of the client's that waits for a second thread to come to it, for a while."""
    real, both = getattr(client_file, name), threading.Barrier(2)

    def wait(*args):
        with suppress(threading.BrokenBarrierError):
            both.wait(0.3)
        return real(*args)

    monkeypatch.setattr(client_file, name, wait)


def outcomes(*calls):
    """What calls at the same time gave or raised."""
    found = [None] * len(calls)

    def run(i):
        try:
            found[i] = calls[i]()
        except Exception as error:
            found[i] = error

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(calls))]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    return found


@pytest.mark.parametrize("at", ["fingerprint", "opened_shares"])
def test_of_two_threads_with_two_vectors_one_masks(monkeypatch, at):
    rig = rig_of().run("mask")
    client, message = rig.clients[0], rig.messages[0]
    meeting(monkeypatch, at)
    found = outcomes(*(lambda v=v: list(client.mask(message, v)) for v in (rig.vectors[0], -rig.vectors[0])))
    assert sorted(type(one).__name__ for one in found) == ["Replayed", "list"]


def test_of_two_threads_with_two_requests_one_is_answered(monkeypatch):
    """Both fit the protocol; together they ask for both kinds of share of members 3 and 4."""
    rig = rig_of("semi_honest").run("mask").run("unmask", gone=(4,))
    asked = {
        (0, 1, 2, 3): [(SEED, 1), (SEED, 2), (SEED, 3), (MASK, 4)],
        (0, 1, 2, 4): [(SEED, 1), (SEED, 2), (MASK, 3), (SEED, 4)],
    }
    messages = [
        from_server(
            rig, "unmask", wire.members(there, 5) + b"\x04\0" + b"".join(struct.pack("<BH", *a) for a in shares)
        )
        for there, shares in asked.items()
    ]
    meeting(monkeypatch, "read_request")
    found = outcomes(*(lambda m=m: rig.clients[0].unmask(m) for m in messages))
    assert sorted(type(one).__name__ for one in found) == ["Replayed", "bytes"]


def test_a_save_that_calls_its_own_client_does_not_mask_another_vector():
    rig = rig_of().run("mask")
    client, said = rig.clients[0], []

    def save(one):
        for call in (lambda: one.mask(rig.messages[0], -rig.vectors[0]), one.close):
            with pytest.raises(PrivacyError, match="called from within `save`") as found:
                call()
            said.append(str(found.value))
        assert Client.from_bytes(one.to_bytes(SEALING), SEALING, one.generation)._vector

    client._save = save
    assert len(list(client.mask(rig.messages[0], rig.vectors[0]))) == 2
    assert [line.partition(":")[0] for line in said] == ["mask", "close"]


@pytest.mark.parametrize("twice", [copy.copy, copy.deepcopy, pickle.dumps])
def test_parties_and_what_holds_their_keys_are_not_copied(twice):
    rig = rig_of("malicious").run("mask")
    one = rig.clients[0]
    draw = fc.secagg.GroupDraw(rig.roster, 1, 2, b"session", 7)
    for held in (one, rig.server, one._keys, one._seals, one._tags, draw):
        with pytest.raises(PrivacyError, match=r"is not copied or pickled: a second one could .* keep this one"):
            twice(held)


@BOTH
def test_a_server_in_a_state_of_before_it_decided_is_not_taken_for_the_newest(adversary):
    """It could count another set of clients in, and ask those that were not asked yet for the other kind of shares."""
    rig = rig_of(adversary).run("mask")
    old, decided = rig.server.to_bytes(SEALING), rig.server.generation
    for name in (1, 2, 3, 4):
        for data in rig.answers(name):
            rig.server.receive(name, data)
    assert rig.server.generation == decided
    half = rig.server.to_bytes(SEALING)
    said = dict(rig.server.advance())
    newest = rig.server.generation
    assert decided < newest
    for state in (old, half):
        with pytest.raises(Replayed, match="of a server: is of round 7 with 2 stages over, the newest is of round 7 w"):
            Server.from_bytes(state, SEALING, newest)
        assert Server.from_bytes(state, SEALING, decided).stage == "mask"
    restored = Server.from_bytes(rig.server.to_bytes(SEALING), SEALING, newest)
    assert dict(restored.answers()) == said
    assert restored.generation == newest
