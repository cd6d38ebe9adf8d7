"""Chunks of masked vectors: whose they are, that nobody changed, swapped, moved or repeated one, and in what order."""

from __future__ import annotations

import tracemalloc
from hashlib import sha256

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from secagg.driver import SEALING, Rig, complete, key_of

from fedcore import ops
from fedcore.errors import Forged, FormatError, Replayed, Void
from fedcore.privacy.secagg import wire
from fedcore.privacy.secagg.folding import IN_FLIGHT
from fedcore.privacy.secagg.keys import TAG_BYTES, ChunkTags, signed_text
from fedcore.privacy.secagg.parameters import Parameters
from fedcore.privacy.secagg.server import Server

BOTH = pytest.mark.parametrize("adversary", ["semi_honest", "malicious"])
BODY = wire.HEADER.size + 4


def masked(adversary: str = "semi_honest") -> tuple[Rig, dict[int, list[bytes]]]:
    """A round in its mask stage, and what each of three clients sends: two chunks, lists first where there are any."""
    rig = Rig(complete(3, 2, adversary, length=wire.CHUNK + 9)).run("mask")
    return rig, {name: rig.answers(name) for name in rig.ids}


def renumbered(data: bytes, number: int) -> bytes:
    return data[: wire.HEADER.size] + number.to_bytes(4, "little") + data[BODY:]


@BOTH
def test_a_chunk_that_was_changed_swapped_or_moved_is_refused(adversary):
    rig, sent = masked(adversary)
    if adversary == "malicious":
        for name in rig.ids:
            rig.server.receive(name, sent[name].pop(0))
    first, second = sent[0]
    sender = second[:6] + (1).to_bytes(2, "little") + second[8:]
    bad = {
        "a bit": first[: -TAG_BYTES - 9] + bytes([first[-TAG_BYTES - 9] ^ 1]) + first[-TAG_BYTES - 8 :],
        "its tag": first[:-1] + bytes([first[-1] ^ 1]),
        "another's tag": first[:-TAG_BYTES] + sent[1][0][-TAG_BYTES:],
        "another chunk as this one": renumbered(second, 0),
        "another's chunk": sent[1][0][:6] + (0).to_bytes(2, "little") + sent[1][0][8:],
    }
    for what, data in bad.items():
        with pytest.raises(Forged, match="mask: the message of 0: chunk 0 is not one that it made for this round"):
            rig.server.receive(0, data), what
    with pytest.raises(Forged, match="mask: the message of 0: chunk 1 is not one that it made"):
        rig.server.receive(0, renumbered(first, 1))
    rig.server.receive(0, first)
    with pytest.raises(Replayed, match="chunk 0, expected chunk 1"):
        rig.server.receive(0, first)
    rig.server.receive(1, sent[1][0])
    with pytest.raises(Forged, match="mask: the message of 1: chunk 1 is not one that it made"):
        rig.server.receive(1, sender)
    rig.server.receive(0, second)
    with pytest.raises(Replayed, match="came before"):
        rig.server.receive(0, second)
    rig.server.receive(1, sent[1][1])
    for data in sent[2]:
        rig.server.receive(2, data)
    rig.messages = dict(rig.server.advance())
    assert (rig.run().server.result().sum == rig.vectors.sum(0)).all()


def test_a_chunk_of_another_round_with_the_same_keys_is_refused():
    """The tag covers the round: a header of this one does not help."""
    rig, sent = masked()
    other, theirs = masked()
    assert rig.server._tag != other.server._tag
    with pytest.raises(Replayed, match="another round"):
        rig.server.receive(0, theirs[0][0])
    moved = sent[0][0][: wire.HEADER.size] + theirs[0][0][wire.HEADER.size :]
    with pytest.raises(Forged, match="is not one that it made"):
        rig.server.receive(0, moved)
    private, body = rig.server._private, rig.server._signed["advertise"][0][0]
    public, packed = private.public_key().public_bytes_raw(), sent[0][0][BODY:-TAG_BYTES]
    for binding, member, fits in (
        (rig.server._tag, 0, True),
        (other.server._tag, 0, False),
        (rig.server._tag, 1, False),
    ):
        tags = ChunkTags(private, body[:32], binding, member, public, "")
        assert tags.fits(0, packed, sent[0][0][-TAG_BYTES:]) == fits


def test_a_server_key_put_in_place_of_the_servers_makes_no_chunk_that_the_server_takes():
    """Nor does it let who put it there make one: it knows the key that the client has, and not the server's. Shares are
    signed together with that key, and refused before; had they been taken, chunks would still not be."""
    rig = Rig(complete(4, 2)).run("share")
    mine, at = X25519PrivateKey.generate(), wire.HEADER.size + 32
    public = mine.public_key().public_bytes_raw()
    rig.messages[0] = rig.messages[0][:at] + public + rig.messages[0][at + 32 :]
    with pytest.raises(Forged, match=r"share: the message of 0: is not signed by it for .* what it was sent"):
        rig.server.receive(0, rig.answers(0)[0])
    rig.server._sent.now[0] = sha256(rig.messages[0]).digest()
    rig.run("mask")
    (data,) = rig.answers(0)
    packed = data[BODY:-TAG_BYTES]
    shared = rig.server._signed["advertise"][0][0][:32]
    known = ChunkTags(mine, shared, rig.server._tag, 0, public, "")
    assert known.fits(0, packed, data[-TAG_BYTES:])
    assert known.tag(0, packed) == data[-TAG_BYTES:]
    with pytest.raises(Forged, match="mask: the message of 0: chunk 0 is not one that it made"):
        rig.server.receive(0, data)
    rig.run(gone=(0,))
    assert rig.server.result().survivors == [1, 2, 3]


def test_a_server_key_of_low_order_is_refused():
    rig, at = Rig(complete(3, 2)).run("share"), wire.HEADER.size + 32
    good = rig.messages[0]
    with pytest.raises(Forged, match="share: the server's own public key is of low order"):
        rig.clients[0].share(good[:at] + bytes(32) + good[at + 32 :])
    assert rig.clients[0].share(good)


def test_lists_come_first_signed_and_once():
    rig, sent = masked("malicious")
    listed, first, _ = sent[0]
    with pytest.raises(Replayed, match="late, again or too early"):
        rig.server.receive(0, first)
    body = listed[wire.HEADER.size : -64]
    other = key_of(2).sign(signed_text("included", rig.server._tag, 0, body))
    with pytest.raises(Forged, match="is not signed by it"):
        rig.server.receive(0, listed[:-64] + other)
    rig.server.receive(0, listed)
    with pytest.raises(Replayed, match="late, again or too early"):
        rig.server.receive(0, listed)
    rig.server.receive(0, first)


def test_chunks_come_in_order_once_and_whole():
    rig = Rig(complete(3, 1, length=wire.CHUNK + 9)).run("mask")
    server, chunks = rig.server, {name: rig.answers(name) for name in rig.ids}
    with pytest.raises(Replayed, match="chunk 1, expected chunk 0"):
        server.receive(0, chunks[0][1])
    server.receive(0, chunks[0][0])
    with pytest.raises(Replayed, match="chunk 0, expected chunk 1"):
        server.receive(0, chunks[0][0])
    assert 0 in server.missing()
    for name in (1, 2):
        for data in chunks[name]:
            server.receive(name, data)
    rig.messages = dict(server.advance())  # client 0 left half-way: nothing of it is in the sum
    rig.run(gone=(0,))
    assert server.result().survivors == [1, 2]
    assert (server.result().sum == rig.vectors[1:].sum(0)).all()


@BOTH
def test_chunks_that_are_left_over_are_gone_after_their_stage(adversary):
    """Of as many vectors as a server takes at once: megabytes each, which would stay to the end."""
    rig = Rig(complete(IN_FLIGHT + 10, 9, adversary, length=wire.CHUNK + 9)).run("mask")
    whole, late = rig.ids[IN_FLIGHT:], rig.ids[:IN_FLIGHT]
    sent = {name: rig.answers(name)[:-1] if name in late else rig.answers(name) for name in rig.ids}
    for name in whole:
        for data in sent[name]:
            rig.server.receive(name, data)
    tracemalloc.start()
    try:
        for name in late:
            for data in sent[name]:
                rig.server.receive(name, data)
        kept = tracemalloc.get_traced_memory()[0]
        rig.messages = dict(rig.server.advance())
        left = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    chunks = IN_FLIGHT * wire.chunk_bytes(rig.p, 0)
    assert kept > chunks
    assert left < chunks / 10
    rig.run(gone=tuple(late))
    assert rig.server.result().survivors == whole
    assert (rig.server.result().sum == rig.vectors[IN_FLIGHT:].sum(0)).all()


def test_a_vector_that_was_folded_in_part_voids_the_sum_and_every_state_of_it(monkeypatch):
    """Taken again it would be in the sum twice, in part; the state before it is whole."""
    rig, sent = masked()
    state = rig.server.to_bytes(SEALING)
    rig.server.receive(0, sent[0][0])
    add, calls = ops.unpack_add, []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        add(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(ops, "unpack_add", interrupted)
        with pytest.raises(KeyboardInterrupt):
            rig.server.receive(0, sent[0][1])
    for refused in (lambda: rig.server.receive(0, sent[0][0]), lambda: rig.server.to_bytes(SEALING)):
        with pytest.raises(Void, match="folded in part"):
            refused()
    rig.server = Server.from_bytes(state, SEALING)
    rig.run()
    assert (rig.server.result().sum == rig.vectors.sum(0)).all()


def test_bits_beyond_the_last_coordinate_and_other_lengths_are_refused():
    rig = Rig(complete(3, 2, length=5)).run("mask")  # 5 × 13 bits: seven are left in the ninth byte
    (data,) = rig.answers(0)
    body = data[wire.HEADER.size : -TAG_BYTES]
    for bad in (body[:-1] + bytes([body[-1] | 0x80]), body[:-1], body + b"\0", body[:3]):
        tag = rig.clients[0]._tags.tag(0, bad[4:])
        with pytest.raises(FormatError, match="mask: the message of 0"):
            rig.server.receive(0, wire.pack(wire.kind_of("mask"), 0, rig.server._tag, bad, tag))
    rig.run()
    assert (rig.server.result().sum == rig.vectors.sum(0)).all()


def test_a_servers_messages_are_made_one_by_one_and_stay_what_they_were():
    p = Parameters.choose(80, length=1, bound=1, adversary="malicious")
    rig = Rig(p)
    for name in rig.ids:
        rig.server.receive(name, rig.clients[name].advertise())
    tracemalloc.start()
    answers = rig.server.advance()
    total = sum(len(data) for data in answers.values())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total > 1_000_000
    assert peak < total / 5
    assert len(answers) == 80
    assert 80 not in answers
    kept = answers[3]
    for name, message in answers.items():
        rig.server.receive(name, rig.clients[name].share(message))
    later = rig.server.advance()
    vectors, before = dict(later), later[5]
    for name, message in vectors.items():
        for data in rig.clients[name].mask(message, rig.vectors[name] * 0):
            rig.server.receive(name, data)
    rig.server.advance()
    assert answers[3] == kept
    assert later[5] == before
