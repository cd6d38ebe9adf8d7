"""Whole rounds: exact sums at the limits, dropouts, distributed noise, a server that comes back."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from secagg.driver import BOUND, CONTEXT, SEALING, Rig, complete, key_of, sparse

import fedcore as fc
from fedcore.errors import (
    BackendError,
    PrivacyError,
    RangeError,
    Replayed,
    Void,
)
from fedcore.privacy.secagg import wire
from fedcore.privacy.secagg.client import Client
from fedcore.privacy.secagg.folding import IN_FLIGHT
from fedcore.privacy.secagg.server import Server


@pytest.mark.parametrize("bits", [9, 17, 26, 32, 33, 63, 64])
@pytest.mark.parametrize("n", [2, 5])
def test_the_largest_vectors_of_the_most_clients_sum_exactly(bits, n):
    bound = ((1 << bits) // n - 1) // 2
    p = complete(n, max(1, n // 2), length=9, bound=bound)
    assert p.modulus_bits == bits
    for sign in (1, -1):
        vectors = [np.full(9, sign * bound, np.int64) for _ in range(n)]
        found = fc.secagg.simulate(vectors, parameters=p).sum
        assert found.dtype == np.int64
        assert [int(x) for x in found] == [sign * n * bound] * 9


@pytest.mark.parametrize("adversary", ["semi_honest", "malicious"])
@pytest.mark.parametrize("stage", fc.secagg.STAGES)
def test_a_dropout_in_any_stage_leaves_the_sum_of_the_others(adversary, stage):
    p = sparse(adversary)
    vectors = np.random.default_rng(3).integers(-BOUND, BOUND + 1, (12, 5))
    found = fc.secagg.simulate(list(vectors), {stage: [4]}, p)
    assert found.survivors == [i for i in range(12) if i != 4 or stage in ("acknowledge", "unmask")]
    assert (found.sum == vectors[found.survivors].sum(0)).all()


def test_masks_of_aes_cancel_as_well():
    try:
        fc.ops.keystream(1, bytes(32), bytes(12), 0, stream="aes256ctr")
    except BackendError:
        pytest.skip("the processor has no AES instructions, without which aes256ctr is refused")
    p = fc.secagg.Parameters.choose(4, length=100, bound=9, dropout=0.25, stream="aes256ctr")
    vectors = np.random.default_rng(9).integers(-9, 10, (4, 100))
    found = fc.secagg.simulate(list(vectors), {"mask": [0]}, p)
    assert (found.sum == vectors[1:].sum(0)).all()


def test_a_stream_that_does_not_run_here_is_refused_before_anything_is_sent(monkeypatch):
    about = complete(3, 2, stream="aes256ctr"), Rig(complete(3, 2)).roster, b"session", 8, CONTEXT
    monkeypatch.setenv("FEDCORE_BACKEND", "reference")
    with pytest.raises(BackendError, match="aes256ctr"):
        Client(about[0], 0, key_of(1), *about[1:])
    with pytest.raises(BackendError, match="aes256ctr"):
        Server(*about)


def test_simulate_takes_names_and_says_what_was_sent():
    vectors = {name: np.full(1000, i, np.int64) for i, name in enumerate("edcba")}
    found = fc.secagg.simulate(vectors, {"share": ["a"], "unmask": ["b"]})
    assert found.survivors == ["b", "c", "d", "e"]
    assert (found.sum == 0 + 1 + 2 + 3).all()
    assert found.bytes_up > 4 * 1000 * 5 / 8
    assert found.bytes_down > 0
    with pytest.raises(Void):
        fc.secagg.simulate(vectors, {"mask": ["a", "b", "c", "d"]})
    for bad in ({"masks": ["a"]}, {"mask": ["z"]}):
        with pytest.raises(PrivacyError, match="dropouts"):
            fc.secagg.simulate(vectors, bad)


@pytest.mark.parametrize(
    ("dropouts", "why"),
    [
        (["mask"], "dropouts: got list, expected a mapping of stages"),
        ("mask", "dropouts: got str, expected a mapping of stages"),
        (7, "dropouts: got int, expected a mapping of stages"),
        ([], "dropouts: got list, expected a mapping of stages"),
        ({"mask": 3}, "dropouts: mask: got int, expected a collection of identifiers"),
        ({"mask": "ab"}, "dropouts: mask: got str, expected a collection of identifiers"),
        ({"mask": b"ab"}, "dropouts: mask: got bytes, expected a collection of identifiers"),
        ({"mask": iter("ab")}, "dropouts: mask: got str_.*iterator, expected a collection of identifiers"),
        ({"mask": [["a"]]}, r"dropouts: \['a'\] has no vector"),
        ({"mask": ["abc"]}, "dropouts: 'abc' has no vector"),
        ({("mask",): ["a"]}, r"dropouts: got stage \('mask',\)"),
    ],
)
def test_dropouts_are_stages_with_identifiers(dropouts, why):
    """A text would be its letters, which may all be names."""
    vectors = {name: [1] for name in ("a", "b", "ab", "c", "d", "e")}
    with pytest.raises(PrivacyError, match=why):
        fc.secagg.simulate(vectors, dropouts)
    for none in (None, {}, {"mask": ()}):
        assert len(fc.secagg.simulate(vectors, none).survivors) == 6
    assert fc.secagg.simulate(vectors, {"mask": {"ab"}}).survivors == list("abcde")


@pytest.mark.parametrize("adversary", ["semi_honest", "malicious"])
def test_distributed_noise_under_masks_is_the_sum_of_the_messages(adversary):
    """encode → mask → sum → decode, with a dropout: the same numbers as the messages added in the open."""
    one = fc.privacy.Distributed(1.0, 0.3, clients=10, fewest=8, corrupt=1, dimension=300, seed=bytes(32))
    p = fc.secagg.Parameters.for_distributed(one, adversary=adversary)
    updates = np.random.default_rng(5).normal(size=(10, 300)).astype(np.float32)
    rig = Rig(p)
    messages = {i: one.encode(updates[i], rig.clients[i].noise_key) for i in range(10)}
    found = fc.secagg.simulate(messages, {"mask": [3]}, p)
    plain = sum(messages[i].astype(np.uint64) for i in found.survivors) % one.modulus
    assert found.survivors == [i for i in range(10) if i != 3]
    assert (found.sum == plain).all()
    assert (one.decode(found.sum, found.survivors) == one.decode(plain, found.survivors)).all()
    clipped = [x / max(1, np.linalg.norm(x)) for x in updates[found.survivors]]
    assert np.linalg.norm(one.decode(found.sum, found.survivors) - np.sum(clipped, 0)) < 0.3 * 300**0.5 * 2


def test_the_server_takes_no_more_vectors_at_once_than_it_has_room_for():
    rig = Rig(complete(IN_FLIGHT + 1, 3, length=wire.CHUNK + 1)).run("mask")
    chunks = {name: rig.answers(name) for name in rig.ids}
    for name in rig.ids[:-1]:
        rig.server.receive(name, chunks[name][0])
    with pytest.raises(RangeError, match="send it again when one is whole"):
        rig.server.receive(IN_FLIGHT, chunks[IN_FLIGHT][0])
    assert rig.server.arriving() == rig.ids[:-1]
    rig.server.drop(rig.server.arriving()[0])
    rig.server.receive(IN_FLIGHT, chunks[IN_FLIGHT][0])
    assert rig.server.arriving() == rig.ids[1:]
    for name in rig.ids[1:]:
        for data in chunks[name][1:]:
            rig.server.receive(name, data)
    rig.messages = rig.server.advance()
    rig.run()
    assert (rig.server.result().sum == rig.vectors[1:].sum(0)).all()


def test_who_is_silent_for_the_longest_is_named_first():
    rig = Rig(complete(3, 2, length=2 * wire.CHUNK + 1)).run("mask")
    chunks = {name: rig.answers(name) for name in rig.ids}
    assert rig.server.arriving() == []
    for name, number in ((0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (1, 2)):
        rig.server.receive(name, chunks[name][number])
    assert rig.server.arriving() == [2, 0]
    assert rig.server.missing() == [0, 2]


@pytest.mark.parametrize("adversary", ["semi_honest", "malicious"])
def test_a_server_that_was_killed_within_a_vector_takes_it_again(adversary):
    rig = Rig(complete(3, 2, adversary, length=wire.CHUNK + 1)).run("mask")
    for data in rig.answers(0)[:-1]:
        rig.server.receive(0, data)
    for data in rig.answers(1):
        rig.server.receive(1, data)
    rig.server = Server.from_bytes(rig.server.to_bytes(SEALING), SEALING)
    assert rig.server.missing() == [0, 2]
    for name in (0, 2):
        for data in rig.answers(name):
            rig.server.receive(name, data)
    rig.messages = rig.server.advance()
    rig.run()
    assert (rig.server.result().sum == rig.vectors.sum(0)).all()


@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_vectors_of_a_hundred_clients_sum_exactly(sign):
    bound = ((1 << 26) // 100 - 1) // 2
    p = fc.secagg.Parameters.choose(100, length=3, bound=bound)
    assert (p.modulus_bits, p.complete) == (26, False)
    found = fc.secagg.simulate([np.full(3, sign * bound)] * 100, parameters=p)
    assert found.sum.tolist() == [sign * 100 * bound] * 3


@pytest.mark.parametrize("adversary", ["semi_honest", "malicious"])
def test_a_neighbourhood_left_with_one_share_too_few_is_void(adversary):
    """Of client 0's five holders four are needed: without one the sum comes, without two it does not."""
    rig = Rig(complete(6, 4, adversary)).run("unmask")
    for name in rig.ids[:4]:
        rig.server.receive(name, rig.answers(name)[0])
    state = rig.server.to_bytes(SEALING)
    with pytest.raises(Void, match="3 holders of the shares of 0 are left, expected at least 4"):
        rig.server.advance()
    rig.server = Server.from_bytes(state, SEALING)
    rig.server.receive(4, rig.answers(4)[0])
    rig.server.advance()
    assert (rig.server.result().sum == rig.vectors.sum(0)).all()


def test_no_share_is_asked_for_where_too_few_acknowledge_for_a_sum():
    """What a client gave for a sum that cannot come would be given for nothing: nobody is sent a request."""
    rig = Rig(complete(6, 4, "malicious")).run("acknowledge")
    for name in rig.ids[:4]:
        rig.server.receive(name, rig.answers(name)[0])
    with pytest.raises(Void, match="acknowledge: 0 holders of the shares of 0 are left, expected at least 4"):
        rig.server.advance()
    assert rig.server.stage == "acknowledge"
    for name in rig.ids[4:]:
        rig.server.receive(name, rig.answers(name)[0])
    rig.messages = dict(rig.server.advance())
    assert (rig.run().server.result().sum == rig.vectors.sum(0)).all()


def test_no_round_is_joined_twice():
    rig = Rig(complete(3, 1))
    about = (rig.p, 0, key_of(1), rig.roster, b"another session", 7, CONTEXT)
    fc.secagg.Client(*about, after=6)
    with pytest.raises(Replayed, match="got 7, but this client took part in round 7"):
        fc.secagg.Client(*about, after=7)


@pytest.mark.parametrize("adversary", ["semi_honest", "malicious"])
def test_a_stage_that_was_ended_too_early_goes_on_as_if_it_had_not_been(adversary):
    """Nothing was sent yet: a server waits for more, and answers what it would have."""
    rig = Rig(replace(sparse(adversary), least_included=12))
    for stage in rig.p.stages:
        said = dict(rig.server.answers())
        for late in (False, True):
            for name in rig.ids[9:] if late else rig.ids[:9]:
                for data in rig.answers(name):
                    rig.server.receive(name, data)
            if not late and stage in ("advertise", "share", "mask"):
                with pytest.raises(Void, match=f"{stage}: "):
                    rig.server.advance()
                assert dict(rig.server.answers()) == said
        rig.messages = dict(rig.server.advance())
    assert (rig.server.result().sum == rig.vectors.sum(0)).all()
