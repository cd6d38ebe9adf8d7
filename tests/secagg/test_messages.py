"""Keys against the standards' vectors, fields, proofs, rosters and states that are anything but what they should."""

from __future__ import annotations

import random

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from secagg.driver import SEALING, Rig, complete, key_of, signed

from fedcore.errors import FedcoreError, Forged, FormatError, PrivacyError
from fedcore.privacy import distributed
from fedcore.privacy.secagg import keys, merkle, wire
from fedcore.privacy.secagg.client import Client
from fedcore.privacy.secagg.keys import LABELS, Seals, agreed, hkdf, pair_key, signing_key, verified
from fedcore.privacy.secagg.roster import Roster
from fedcore.privacy.secagg.server import Server

#: points of low order and their kin that Wycheproof's X25519 tests list: each makes a shared secret of zeros
LOW_ORDER = [
    "00" * 32,
    "01" + "00" * 31,
    "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
    "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
]


def test_x25519_is_that_of_rfc_7748():
    """§6.1."""
    a = X25519PrivateKey.from_private_bytes(
        bytes.fromhex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a")
    )
    b = bytes.fromhex("de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f")
    assert a.public_key().public_bytes_raw().hex() == "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a"
    assert agreed(a, b, "b").hex() == "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742"


@pytest.mark.parametrize("public", LOW_ORDER)
def test_keys_of_low_order_are_refused_by_clients_and_server(public):
    with pytest.raises(Forged, match="low order"):
        agreed(X25519PrivateKey.generate(), bytes.fromhex(public), "b")
    rig = Rig(complete(3, 2))
    good = rig.clients[1].advertise()[wire.HEADER.size : -64]
    for at in (0, 32):  # of the key for shares, and of the one for masks
        body = good[:at] + bytes.fromhex(public) + good[at + 32 :]
        with pytest.raises(Forged, match="advertise: a public key of 1 is of low order"):
            rig.server.receive(1, signed(rig, 1, "advertise", body))


@pytest.mark.parametrize(
    ("key", "message", "expected"),
    [
        (
            "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
            "",
            "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24"
            "655141438e7a100b",
        ),
        (
            "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
            "af82",
            "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28d"
            "c027beceea1ec40a",
        ),
    ],
)
def test_ed25519_is_that_of_rfc_8032(key, message, expected):
    """§7.1, and what Wycheproof adds: a changed, cut, or non-canonical signature is none."""
    private, text = signing_key(bytes.fromhex(key)), bytes.fromhex(message)
    public, signature = private.public_key().public_bytes_raw(), private.sign(text)
    assert signature.hex() == expected
    assert verified(public, signature, text)
    order = (1 << 252) + 27742317777372353535851937790883648493
    high = (int.from_bytes(signature[32:], "little") + order).to_bytes(32, "little")
    for bad in (signature[:32] + high, signature[:-1], bytes(64), signature[32:] + signature[:32]):
        assert not verified(public, bad, text)
    assert not verified(public, signature, text + b"x")
    assert not verified(b"\xff" * 32, signature, text)


def test_hkdf_is_that_of_rfc_5869():
    """Test case 1; ours differs in its info alone."""
    found = HKDF(SHA256(), 42, bytes(range(13)), bytes(range(0xF0, 0xFA))).derive(b"\x0b" * 22)
    assert found.hex() == ("3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865")
    info = b"fedcore secagg 1 pair\x00" + bytes(32) + b"who"
    assert hkdf(b"secret", "pair", bytes(32), b"who") == HKDF(SHA256(), 32, None, info).derive(b"secret")


def test_the_seal_is_that_of_rfc_8439():
    """§2.8.2, by its tag."""
    nonce, header = bytes.fromhex("070000004041424344454647"), bytes.fromhex("50515253c0c1c2c3c4c5c6c7")
    text = b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, "
    text += b"sunscreen would be it."
    sealed = ChaCha20Poly1305(bytes(range(0x80, 0xA0))).encrypt(nonce, text, header)
    assert sealed[-16:].hex() == "1ae10b594f09e26a7e902ecbd0600691"


def test_fields_that_are_not_all_there_are_not_read():
    reader = wire.Reader(memoryview(bytes(range(10))), "share: the server's message")
    with pytest.raises(FormatError, match="is cut short: 12 bytes expected, 10 left"):
        reader.each(3, 4)
    assert reader.each(2, 4) == [bytes(range(4)), bytes(range(4, 8))]
    assert reader.each(0, 4) == []
    with pytest.raises(FormatError, match="has 2 bytes too many"):
        reader.done()


def test_no_key_serves_two_purposes_rounds_or_directions():
    one, other = X25519PrivateKey.generate(), X25519PrivateKey.generate()
    publics = [key.public_key().public_bytes_raw() for key in (one, other)]
    found = {hkdf(bytes(32), label, bytes(32)) for label in LABELS}
    assert len(found) == len(LABELS)
    mask = pair_key(one, publics[1], bytes(32), 3, 5, "key of", "b")
    assert mask == pair_key(other, publics[0], bytes(32), 5, 3, "key of", "a")
    assert mask != pair_key(one, publics[1], b"\x01" * 32, 3, 5, "key of", "b")
    names = [*range(6)]
    there, back = Seals(one, bytes(32), 3, "key of", names), Seals(other, bytes(32), 5, "key of", names)
    sealed = there.seal(5, publics[1], b"shares")
    assert back.open(3, publics[0], sealed) == b"shares"
    assert there.open(5, publics[1], sealed) is None
    assert back.open(4, publics[0], sealed) is None
    assert Seals(other, b"\x01" * 32, 5, "key of", names).open(3, publics[0], sealed) is None
    assert back.open(3, publics[0], sealed[:-1] + bytes([sealed[-1] ^ 1])) is None
    with pytest.raises(Forged, match="key of 4 is of low order"):
        there.seal(4, bytes(32), b"shares")


def test_what_was_agreed_on_to_seal_opens_too(monkeypatch):
    one, other = X25519PrivateKey.generate(), X25519PrivateKey.generate()
    publics = [key.public_key().public_bytes_raw() for key in (one, other)]
    there, back = Seals(one, bytes(32), 3, "key of", [*range(6)]), Seals(other, bytes(32), 5, "key of", [*range(6)])
    sealed, answer = there.seal(5, publics[1], b"shares"), back.seal(3, publics[0], b"others")
    monkeypatch.setattr("fedcore.privacy.secagg.keys.agreed", None)
    assert there.open(5, publics[1], answer) == b"others"
    assert back.open(3, publics[0], sealed) == b"shares"


def test_noise_and_rounding_of_a_secure_round_are_drawn_under_keys_of_their_own(monkeypatch):
    """All of a member's keys of a round, and what `Distributed.encode` makes of its noise key: no two are the same."""
    found, derived = {}, distributed.derived

    def keeping(secret, purpose):
        found[purpose.split()[1]] = derived(secret, purpose)
        return found[purpose.split()[1]]

    monkeypatch.setattr(distributed, "derived", keeping)
    client = Rig(complete(3, 2)).clients[0]
    one = distributed.Distributed(1.0, 0.3, clients=10, fewest=8, corrupt=0, dimension=9, seed=bytes(32))
    one.encode(np.zeros(9, np.float32), client.noise_key)
    assert found.keys() == {"noise", "rounding"}
    others = {hkdf(client._secret, label, client.round.binding) for label in LABELS}
    assert client.noise_key in others
    assert len(others | set(found.values())) == len(LABELS) + 2


def test_the_round_is_bound_to_parameters_members_session_number_and_context():
    parts = [b"parameters", b"roster", b"session", 1, b"context"]
    found = {keys.round_binding(*parts)}
    for i in range(5):
        other = [*parts[:i], 2 if i == 3 else parts[i] + b"x", *parts[i + 1 :]]
        found.add(keys.round_binding(*other))
    found.add(keys.round_binding(b"parametersroster", b"", b"session", 1, b"context"))
    assert len(found) == 7


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 13])
def test_proofs_hold_for_their_leaf_alone(count):
    """Each on its own, and after others under the same root, in any order."""
    leaves = {i: bytes([i]) * 7 for i in range(count) if i != 1}
    tree = merkle.Tree(leaves, count)
    order = random.Random(count).sample(range(count), count)
    after = merkle.Proofs(tree.root, count)
    for i in order + order:
        data, proof = leaves.get(i, b""), tree.proof(i)
        for proofs in (merkle.Proofs(tree.root, count), after):
            assert not proofs.holds(i, data + b"x", proof)
            assert not proofs.holds(i + 1, data, proof)
            assert not proofs.holds(i, data, proof + bytes(32))
            for at in range(0, len(proof), 11):
                assert not proofs.holds(i, data, proof[:at] + bytes([proof[at] ^ 1]) + proof[at + 1 :])
            assert proofs.holds(i, data, proof)
        assert not merkle.Proofs(bytes(32), count).holds(i, data, proof)


def test_rosters_are_checked_and_ordered():
    public = [key_of(i + 1).public_key().public_bytes_raw() for i in range(3)]
    one = Roster({"b": public[0], "a": public[1]})
    assert one.ids == ["a", "b"]
    assert Roster.from_bytes(one.to_bytes()).digest() == one.digest()
    assert Roster({"a": public[0], "b": public[1]}).digest() != one.digest()
    for bad in ({}, {"a": public[0], 1: public[1]}, {"a": b"short"}, {"a": public[0], "b": public[0]}):
        with pytest.raises(PrivacyError, match="roster"):
            Roster(bad)
    with pytest.raises(PrivacyError, match="enrol it first"):
        one.position("c")
    with pytest.raises(PrivacyError, match="is not the one"):
        Client(complete(2, 1), "a", Ed25519PrivateKey.generate(), one, b"s", 0, bytes(32))


def test_states_that_were_changed_do_not_open():
    rig = Rig(complete(3, 2)).run("unmask")
    for one, kind in ((rig.clients[0], Client), (rig.server, Server)):
        data = one.to_bytes(SEALING)
        for bad in (data[:-1], data + b"x", data[:40] + bytes([data[40] ^ 1]) + data[41:], b"", data[5:]):
            with pytest.raises(FedcoreError, match="state of a"):
                kind.from_bytes(bad, SEALING)
        with pytest.raises(FedcoreError, match="does not open"):
            kind.from_bytes(data, bytes(32))
        assert one.round.session not in data
