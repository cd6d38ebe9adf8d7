"""Clients that come back from a state: the same bytes again, or nothing."""

from __future__ import annotations

import itertools
import struct
import sys
from itertools import starmap

import numpy as np
import pytest
from secagg.driver import BOTH, BOUND, SEALING, Rig, complete, from_server, rig_of

import fedcore as fc
from fedcore.errors import FormatError, Replayed, Void
from fedcore.privacy.secagg import folding, wire
from fedcore.privacy.secagg.client import Client
from fedcore.privacy.secagg.server import Server
from fedcore.privacy.secagg.simulate import answer

ENTRY = struct.Struct("<BH")


def test_an_old_snapshot_repeats_or_stops():
    """Restored from before its vector was masked, a client does not mask another; nor answer a second request."""
    rig = rig_of("semi_honest").run("mask")
    client = rig.clients[0]
    old, generation = client.to_bytes(SEALING), client.generation
    sent = list(client.mask(rig.messages[0], rig.vectors[0]))
    restored = Client.from_bytes(old, SEALING)
    with pytest.raises(Replayed, match="may be an old one"):
        restored.mask(rig.messages[0], rig.vectors[1])
    assert Client.from_bytes(old, SEALING, generation).generation == generation
    with pytest.raises(Replayed, match="with 2 stages over, the newest is of round 7 with 3 stages over"):
        Client.from_bytes(old, SEALING, client.generation)
    newest = Client.from_bytes(client.to_bytes(SEALING), SEALING)
    assert list(newest.mask(rig.messages[0], rig.vectors[0])) == sent
    for one in (client, newest):
        with pytest.raises(Replayed, match="another vector"):
            one.mask(rig.messages[0], rig.vectors[1])
    with pytest.raises(FormatError, match="does not open"):
        Client.from_bytes(old[:-1] + bytes([old[-1] ^ 1]), SEALING)


@pytest.mark.parametrize("weighted", [False, True])
def test_a_vector_that_changes_once_it_was_given_is_sent_as_it_was_and_not_again(weighted):
    rig = Rig(complete(3, 2, length=wire.CHUNK + 9)).run("mask")
    client, message = rig.clients[0], rig.messages[0]
    quantizer = fc.secagg.Quantizer(BOUND, 1.0)
    numbers = np.linspace(-1, 1, wire.CHUNK + 8, dtype=np.float32) if weighted else rig.vectors[0].copy()
    vector = quantizer.weighted(numbers) if weighted else numbers
    once, was = client.mask(message, vector), numbers[-1]
    first = next(once)
    numbers[-1] -= 1
    second = next(once)
    with pytest.raises(Replayed, match="another vector"):
        client.mask(message, vector)
    numbers[-1] = was
    assert list(client.mask(message, vector)) == [first, second]
    if weighted:
        with pytest.raises(Replayed, match="another vector"):  # the same numbers of another weight
            client.mask(message, fc.secagg.Quantizer(BOUND, 1.0, 4.0).weighted(numbers, 3.0))


def test_the_state_is_saved_before_anything_is_sent():
    rig = rig_of("malicious", 3, 2)
    saved = []
    rig.clients[0]._save = lambda client: saved.append(Client.from_bytes(client.to_bytes(SEALING), SEALING))
    for stage in rig.p.stages:
        rig.run(stage)
        message, vector = rig.messages[0], rig.vectors[0]
        sent = answer(rig.clients[0], stage, message, vector)  # chunks are not made yet
        assert saved[-1].generation == rig.clients[0].generation
        assert list(answer(saved[-1], stage, message, vector)) == list(sent)


@pytest.mark.parametrize("written", [False, True])
def test_after_a_save_that_failed_only_the_same_is_sent_once_it_is_saved(written):
    """Whether or not the state came to the disk: of what is sent there is never a second answer under the same keys."""
    rig = rig_of("malicious", 3, 2)
    client, disk, generations, full = rig.clients[0], [], [], []

    def save(one):
        if written or not full:
            disk.append(one.to_bytes(SEALING))
            generations.append(one.generation)
        if full:
            raise OSError("no space left")

    client._save = save
    for stage in rig.p.stages:
        rig.run(stage)
        message, (vector, other), before = rig.messages[0], rig.vectors[:2], len(disk)
        full.append(True)
        for _ in range(2):
            with pytest.raises(OSError, match="no space"):
                answer(client, stage, message, vector)
        if stage == "mask":  # nothing was sent: from the state before another vector may be
            earlier = Client.from_bytes(disk[before - 1], SEALING, generations[before - 1])
            assert list(answer(earlier, stage, message, other))
        full.clear()
        tried = [client, *(Client.from_bytes(state, SEALING) for state in disk[before:])]
        for one in tried:
            if stage == "mask":
                with pytest.raises(Replayed, match="another vector"):
                    one.mask(message, other)
            if stage != "advertise":
                with pytest.raises(Replayed, match="has answered another message"):
                    answer(one, stage, message + b"\0", vector)
        sent, saves = list(answer(client, stage, message, vector)), len(disk)
        assert saves == before + 2 * written + 1
        for one in [*tried, Client.from_bytes(disk[-1], SEALING)]:
            assert list(answer(one, stage, message, vector)) == sent
        assert len(disk) == saves


def test_of_two_requests_the_one_whose_save_failed_is_answered():
    """Both fit the protocol; together they ask for both kinds of share of members 3 and 4."""
    rig = rig_of("semi_honest").run("mask").run("unmask", gone=(4,))
    first, second = (
        from_server(rig, "unmask", wire.members(there, 5) + struct.pack("<H", 4) + b"".join(starmap(ENTRY.pack, asked)))
        for there, asked in (
            ([0, 1, 2, 3], [(1, 1), (1, 2), (1, 3), (2, 4)]),
            ([0, 1, 2, 4], [(1, 1), (1, 2), (2, 3), (1, 4)]),
        )
    )
    client, states = rig.clients[0], []

    def save(one):
        states.append(one.to_bytes(SEALING))
        if len(states) == 1:
            raise OSError("input/output error")

    client._save = save
    with pytest.raises(OSError, match="input/output"):
        client.unmask(first)
    for one in (client, Client.from_bytes(states[0], SEALING)):
        with pytest.raises(Replayed, match="one a round is answered"):
            one.unmask(second)
    assert client.unmask(first) == Client.from_bytes(states[0], SEALING).unmask(first)


def test_a_state_has_what_a_client_was_told_and_not_the_proofs_of_it():
    """Against a malicious server a client of 1,000 is shown 120 kB of keys, signatures and proofs."""
    rig = rig_of("malicious", 40, 21).run("share")
    client = rig.clients[0]
    before = len(client.to_bytes(SEALING))
    client.share(rig.messages[0])
    assert len(client.to_bytes(SEALING)) - before < len(rig.messages[0]) / 4


@BOTH
def test_a_server_that_was_restored_has_decided_who_is_in_the_sum(adversary):
    """A vector that comes late is not let in, so that nobody is asked for the other kind of shares of its member."""
    rig = rig_of(adversary).run(until="mask")
    late = rig.answers(0)
    for name in (1, 2, 3, 4):
        for data in rig.answers(name):
            rig.server.receive(name, data)
    said = rig.server.advance()
    restored = Server.from_bytes(rig.server.to_bytes(SEALING), SEALING)
    assert dict(restored.answers()) == dict(said)
    assert 0 not in said
    for data in late:
        with pytest.raises(Replayed):
            restored.receive(0, data)
    assert dict(restored.answers()) == dict(said)


def interrupted(call, line):
    """Whether a call came to so many lines of folding, at which Ctrl+C stopped it."""
    left = line

    def trace(frame, event, _):
        nonlocal left
        left -= event == "line" and frame.f_code.co_filename == folding.__file__
        if left < 0:
            sys.settrace(None)
            raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


def test_a_server_that_is_interrupted_at_any_line_of_a_vector_takes_it_once_or_says_so():
    """The member sends again what the server did not say it has; then the sum is exact, or void from there on."""
    outcomes = []
    for line in itertools.count():
        rig = rig_of("semi_honest", 3, 2).run("mask")
        sent = {name: rig.answers(name)[0] for name in rig.ids}
        if not interrupted(lambda rig=rig, sent=sent: rig.server.receive(0, sent[0]), line):
            break
        try:
            for name in rig.server.missing():
                rig.server.receive(name, sent[name])
        except Void:
            with pytest.raises(Void, match="folded in part"):
                rig.server.to_bytes(SEALING)
            outcomes.append("void")
            continue
        assert rig.server.arriving() == []
        assert not rig.server._folding._tags
        rig.messages = dict(rig.server.advance())
        assert (rig.run().server.result().sum == rig.vectors.sum(0)).all()
        outcomes.append("exact")
    assert len(outcomes) > 20
    assert set(outcomes[-9:]) == {"exact", "void"}


@pytest.mark.parametrize(("kind", "made"), [("client", Client), ("server", Server)])
def test_a_state_of_another_version_is_told_as_one(kind, made):
    rig = rig_of()
    state = (rig.clients[0] if made is Client else rig.server).to_bytes(SEALING)
    said = f"state of a {kind}: got version 7, expected 8; finish the round with the release that wrote it"
    for data in (state[:4] + b"\x07" + state[5:], b"fcss\x07"):
        with pytest.raises(FormatError, match=said):
            made.from_bytes(data, SEALING)
    for data in (b"", b"fcss", b"xcss" + state[4:], state[:30]):
        with pytest.raises(FormatError, match="is not one; expected what to_bytes gave"):
            made.from_bytes(data, SEALING)
