"""What a client lets go of, and when: keys that are of no more use cannot be taken from it."""

from __future__ import annotations

import gc
import sys
import types

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from secagg.driver import BOTH, SEALING, Rig, complete, rig_of

import fedcore as fc
from fedcore.errors import PrivacyError, Replayed
from fedcore.privacy.secagg import state as state_file
from fedcore.privacy.secagg.client import Client

simulate_file = sys.modules["fedcore.privacy.secagg.simulate"]  # the package has a function of this name


def reached(one) -> bytes:
    """All bytes that an object leads to and private keys, but for those of classes, functions and modules."""
    seen, found, left = set(), [], [one]
    while left:
        each = left.pop()
        if id(each) in seen or isinstance(each, (type, types.FunctionType, types.ModuleType, types.MethodType)):
            continue
        seen.add(id(each))
        if isinstance(each, (bytes, bytearray)):
            found.append(bytes(each))
        elif isinstance(each, (X25519PrivateKey, Ed25519PrivateKey)):
            found.append(each.private_bytes_raw())
        left += gc.get_referents(each)
    return b"|".join(found)


def secrets_of(client) -> list[bytes]:
    keys = client._keys
    own = [bytes(client._secret), keys.share.private_bytes_raw(), client._signing.private_bytes_raw()]
    derived = [keys.seed, keys.mask_bytes, client.noise_key]
    return own + derived + [bytes(shares[at : at + 32]) for shares in client._held.values() for at in (0, 32)]


@BOTH
def test_after_its_last_answer_a_client_and_its_state_hold_no_secret(adversary):
    """They repeat that answer, which a restart may have to send again, and nothing else."""
    rig = rig_of(adversary).run("unmask")
    client, message, saved = rig.clients[0], rig.messages[0], []
    secrets, secret, held = secrets_of(client), client._secret, list(client._held.values())
    assert len(secrets) == 14
    before = reached(client)
    assert all(one in before for one in secrets[:3] + secrets[6:])
    client._save = lambda one: saved.append(one.to_bytes(SEALING))
    sent = client.unmask(message)
    assert not any(secret)
    assert not any(any(shares) for shares in held)
    given = {half for half in secrets[6:] if half in sent}  # to the server: what its answer is made of
    assert len(given) == 4
    restored = Client.from_bytes(saved[-1], SEALING, client.generation)
    fields = b"|".join(state_file.unseal(saved[-1], "client", SEALING).values())
    for one in (client, restored):
        assert one.unmask(message) == sent
        for found in (reached(one), fields):
            assert not any(each in found for each in set(secrets) - given)
        for call in (one.advertise, lambda one=one: one.mask(rig.messages[0], rig.vectors[0])):
            with pytest.raises(Replayed, match=r"another message|has answered 'unmask' and wiped its keys; it repeats"):
                call()
        with pytest.raises(Replayed, match="noise_key: this client has answered 'unmask' and wiped"):
            _ = one.noise_key
        with pytest.raises(Replayed, match="one a round is answered"):
            one.unmask(message + b"\0")
        assert one.faults == {}
    rig.run()
    assert (rig.server.result().sum == rig.vectors.sum(0)).all()


def test_what_was_agreed_on_to_seal_shares_goes_once_they_are_opened():
    """A share message that is repeated later is made anew, the same."""
    rig = rig_of().run("share")
    client, shared = rig.clients[0], rig.messages[0]
    sent = client.share(shared)
    agreed = list(client._seals._agreed.values())
    assert len(agreed) == 4
    rig.run("mask")
    chunks = list(client.mask(rig.messages[0], rig.vectors[0]))
    for one in (client, Client.from_bytes(client.to_bytes(SEALING), SEALING)):
        assert not any(each in reached(one) for each in agreed)
        assert one.share(shared) == sent
        assert list(one.mask(rig.messages[0], rig.vectors[0])) == chunks
        assert not any(each in reached(one) for each in agreed)


def test_shares_that_do_not_open_are_told_after_the_last_answer_too():
    rig = Rig(complete(4, 2)).run("mask")
    message = bytearray(rig.messages[0])
    message[-1] ^= 1
    list(rig.clients[0].mask(bytes(message), rig.vectors[0]))
    faults = dict(rig.clients[0].faults)
    assert list(faults) == [3]
    for name in (1, 2, 3):
        for data in rig.answers(name):
            rig.server.receive(name, data)
    for data in rig.clients[0].mask(bytes(message), rig.vectors[0]):
        rig.server.receive(0, data)
    rig.messages = dict(rig.server.advance())
    client = rig.clients[0]
    client.unmask(rig.messages[0])
    assert client.faults == faults
    assert Client.from_bytes(client.to_bytes(SEALING), SEALING).faults == faults


@pytest.mark.parametrize("until", ["advertise", "mask", "unmask", None])
def test_a_client_that_is_closed_holds_no_secret_and_says_nothing(until):
    rig = rig_of("semi_honest").run(until)
    client, message = rig.clients[0], rig.messages.get(0, b"")
    secret, held = client._secret, list(client._held.values())
    secrets = secrets_of(client) if until else []
    with client as same:
        assert same is client
    client.close()
    assert not any(secret)
    assert not any(any(shares) for shares in held)
    found = reached(client)
    assert not any(each in found for each in secrets)
    calls = {
        "advertise": client.advertise,
        "share": lambda: client.share(message),
        "mask": lambda: client.mask(message, rig.vectors[0]),
        "unmask": lambda: client.unmask(message),
        "noise_key": lambda: client.noise_key,
        "to_bytes": lambda: client.to_bytes(SEALING),
    }
    for name, call in calls.items():
        with pytest.raises(PrivacyError, match=f"{name}: this client was closed"):
            call()


def test_chunks_that_are_left_when_a_client_is_closed_do_not_come():
    rig = rig_of().run("mask")
    chunks = rig.clients[0].mask(rig.messages[0], rig.vectors[0])
    next(chunks)
    rig.clients[0].close()
    with pytest.raises(PrivacyError, match="mask: this client was closed"):
        next(chunks)


@pytest.mark.parametrize("fails", [False, True])
def test_a_simulated_round_closes_its_clients(monkeypatch, fails):
    made = []

    class Kept(Client):
        def __init__(self, *about):
            super().__init__(*about)
            made.append(self)

    monkeypatch.setattr(simulate_file, "Client", Kept)
    vectors = [[i, i] for i in range(3)]
    if fails:
        monkeypatch.setattr(simulate_file.Server, "advance", lambda server: None)
        with pytest.raises(AttributeError):
            fc.secagg.simulate(vectors)
    else:
        assert fc.secagg.simulate(vectors).sum.tolist() == [3, 3]
    assert len(made) == 3
    for one in made:
        with pytest.raises(PrivacyError, match="was closed"):
            one.advertise()


def test_a_state_that_was_read_is_wiped_from_the_buffer_it_was_put_together_in(monkeypatch):
    made = []

    class Kept(bytearray):
        def __new__(cls, *args):
            made.append(bytearray.__new__(cls, *args))
            return made[-1]

    monkeypatch.setattr(state_file, "bytearray", Kept, raising=False)
    client = rig_of().clients[0]
    state = client.to_bytes(SEALING)
    fields = state_file.unseal(state, "client", SEALING)
    assert fields["secret"] == client._secret
    assert [len(one) for one in made if one] == [sum(9 + len(name) + len(fields[name]) for name in fields)]
    assert not any(any(one) for one in made)


def test_the_secrets_that_shares_are_made_of_are_overwritten(monkeypatch):
    given, real = [], fc.ops.shamir_split

    def kept(secret, *about):
        given.append(secret)
        return real(secret, *about)

    monkeypatch.setattr(fc.ops, "shamir_split", kept)
    rig = rig_of().run("share")
    rig.clients[0].share(rig.messages[0])
    assert [secret.any() for secret in given] == [False]
