"""What signatures, keys, proofs and states are bound to: none can be taken for another of the same form."""

from __future__ import annotations

import hashlib
import itertools
import struct

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from secagg.driver import SEALING, body_of, from_server, key_of, rig_of

from fedcore.errors import Forged, FormatError, PrivacyError
from fedcore.privacy.secagg import merkle, state, wire
from fedcore.privacy.secagg.client import Client
from fedcore.privacy.secagg.keys import ChunkTags, commitment, self_key, signed_text
from fedcore.privacy.secagg.server import Server
from fedcore.privacy.secagg.transcripts import ANSWERING, transcript

SIGNED = ("advertise", "share", wire.INCLUDED, "acknowledge", "unmask")


@pytest.mark.parametrize(("kind", "other"), [*itertools.permutations(SIGNED, 2)])
def test_a_signature_of_one_kind_of_message_is_none_of_another(kind, other):
    """With each body as a signature on it could come from a member that never meant this."""
    rig = rig_of().run("mask" if kind == wire.INCLUDED else kind)
    good = next(iter(rig.answers(0)))
    told = transcript(*rig.server._sent.digests(0)) if kind in ANSWERING else b""
    signature = key_of(1).sign(signed_text(other, rig.server._tag, 0, body_of(good), told))
    with pytest.raises(Forged, match="is not signed by it for this stage"):
        rig.server.receive(0, wire.pack(wire.kind_of(kind), 0, rig.server._tag, body_of(good), signature))
    rig.server.receive(0, good)


def test_lists_of_who_has_masks_and_acknowledgements_are_not_taken_for_each_other():
    """Where nobody drops out both are the same bytes. A list was sent with a vector; an acknowledgement says of others'
    vectors that they came, which lets a server unmask them."""
    rig = rig_of().run("acknowledge")
    client, tag, names = rig.clients[0], rig.server._tag, (1, 2, 3, 4)

    def entries(label):
        found = [struct.pack("<H", len(names))]
        for name in names:
            listed = wire.positions([i for i in rig.ids if i != name])
            found += [struct.pack("<H", name), listed, key_of(name + 1).sign(signed_text(label, tag, name, listed))]
        return b"".join(found)

    with pytest.raises(Forged, match="holds a list that 1 did not sign"):
        client.acknowledge(from_server(rig, "acknowledge", entries("acknowledge")))
    client.acknowledge(from_server(rig, "acknowledge", entries("included")))
    with pytest.raises(Forged, match="holds an acknowledgement that 1 did not sign"):
        client.unmask(from_server(rig, "unmask", entries("included") + bytes(2)))
    assert client.unmask(from_server(rig, "unmask", entries("acknowledge") + bytes(2)))


def test_the_root_is_of_leaves_with_their_positions_and_of_nodes_under_another_prefix():
    """By hand, of three leaves: all sides must find the same root, and no node's hash may be that of a leaf."""

    def leaf(position, data):
        return hashlib.sha256(b"\x00" + struct.pack("<I", position) + data).digest()

    def node(left, right):
        return hashlib.sha256(b"\x01" + left + right).digest()

    tree = merkle.Tree({0: b"a", 2: b"c"}, 3)
    left, right = node(leaf(0, b"a"), leaf(1, b"")), node(leaf(2, b"c"), leaf(3, b""))
    assert tree.root == node(left, right)
    assert tree.proof(2) == leaf(3, b"") + left


def test_a_seed_commitment_and_a_key_of_ones_own_mask_are_of_one_round():
    seed, one, other = b"s" * 32, bytes(32), b"\x01" * 32
    assert commitment(seed, one) != commitment(seed, other)
    assert self_key(seed, one) != self_key(seed, other)


def test_a_key_of_chunks_is_of_the_servers_key_as_it_was_sent():
    """X25519 ignores the highest bit of a public key: with it changed on the way both sides agree on one secret."""
    server, member = X25519PrivateKey.generate(), X25519PrivateKey.generate()
    key, public = (private.public_key().public_bytes_raw() for private in (server, member))
    changed = key[:31] + bytes([key[31] ^ 0x80])
    mine = ChunkTags(server, public, bytes(32), 0, key, "")
    for sent, fits in ((key, True), (changed, False)):
        tag = ChunkTags(member, sent, bytes(32), 0, sent, "").tag(0, b"packed")
        assert mine.fits(0, b"packed", tag) == fits


def test_a_state_of_a_client_is_none_of_a_server():
    rig = rig_of()
    for one, other, what in ((rig.clients[0], Server, "server"), (rig.server, Client, "client")):
        with pytest.raises(FormatError, match=f"state of a {what}: does not open"):
            other.from_bytes(one.to_bytes(SEALING), SEALING)


@pytest.mark.parametrize(
    ("key", "got"), [(bytes(31), "31 bytes"), (SEALING.hex(), "str"), (bytearray(32), "bytearray")]
)
def test_a_sealing_key_that_is_none_is_refused_and_not_shown(key, got):
    server = rig_of().server
    for use in (lambda: server.to_bytes(key), lambda: Server.from_bytes(server.to_bytes(SEALING), key)):
        with pytest.raises(PrivacyError, match=f"sealing_key: got {got}, expected 32 random bytes; make them with"):
            use()


@pytest.mark.parametrize("pieces", [1, 2])
def test_a_state_of_more_pieces_than_are_there_does_not_open(pieces):
    """Cut between two pieces all that is left is as it was sealed."""
    fields = {"a": bytes(2 * state._PIECE)}
    data = state.seal(fields, "server", SEALING)
    assert state.unseal(data, "server", SEALING) == fields
    last = 1 + 8 + len("a") + 16  # what the third piece has: the field's head moves so much into it, and the tag
    with pytest.raises(FormatError, match="state of a server: does not open"):
        state.unseal(data[: -last - (2 - pieces) * (state._PIECE + 16)], "server", SEALING)
