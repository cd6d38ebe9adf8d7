"""Whole rounds: exact sums at the limits, weights, distributed noise, groups, several adapters, bytes on the wire."""

from __future__ import annotations

import numpy as np
import pytest
from secagg.driver import BOUND, CONTEXT, SEALING, Rig, complete, key_of, sparse

import fedcore as fc
from fedcore.errors import (
    BackendError,
    ConfigError,
    DTypeError,
    MissingError,
    NonFiniteError,
    PrivacyError,
    RangeError,
    Replayed,
    ShapeError,
    Void,
    WeightError,
)
from fedcore.privacy.secagg import wire
from fedcore.privacy.secagg.folding import IN_FLIGHT
from fedcore.privacy.secagg.keys import TAG_BYTES
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


def test_a_vector_of_a_million_takes_the_bits_of_its_modulus_and_a_thousandth():
    p = fc.secagg.Parameters.choose(1000, length=1 << 20, bound=32767)
    assert p.modulus_bits == 26
    sent = sum(wire.HEADER.size + 4 + TAG_BYTES + wire.chunk_bytes(p, i) for i in range(wire.chunks(p)))
    assert sent < p.length * 26 / 8 * 1.001
    small = complete(2, 1, length=wire.CHUNK + 100)
    rig = Rig(small).run("mask")
    assert [len(data) for data in rig.answers(0)] == [
        wire.HEADER.size + 4 + TAG_BYTES + wire.chunk_bytes(small, i) for i in range(2)
    ]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_weighted_means_are_those_of_the_quantised_updates(dtype):
    quantizer = fc.secagg.Quantizer(bound=1 << 20, largest=2.0, largest_weight=50)
    rng = np.random.default_rng(4)
    updates, weights = rng.uniform(-1, 1, (6, wire.CHUNK + 40)).astype(dtype), [1, 50, 7, 3.5, 20, 11]
    given = [quantizer.weighted(x, w) for x, w in zip(updates, weights, strict=True)]
    found = fc.secagg.simulate(given)
    exact = [
        [round(w / 50 * (1 << 20) / 2.0 * float(x)) for x in update[-3:]]
        for update, w in zip(updates, weights, strict=True)
    ]
    assert np.abs(found.sum[-4:-1] - np.sum(exact, axis=0)).max() <= 6 * (dtype == np.float32)
    mean, total = quantizer.mean(found.sum)
    assert abs(total - sum(weights)) < 1e-3
    assert np.abs(mean - np.average(updates.astype(np.float64), axis=0, weights=weights)).max() < 6 * 2.0**-20


def test_updates_beyond_the_largest_are_clamped_and_bad_ones_refused():
    quantizer = fc.secagg.Quantizer(bound=100, largest=1.0)
    found = fc.secagg.simulate([quantizer.weighted(np.array([9.0, -9.0, 0.5])) for _ in range(3)])
    assert found.sum.tolist() == [300, -300, 150, 300]
    rig = Rig(complete(3, 1, length=3, bound=100)).run("mask")
    client, message = rig.clients[0], rig.messages[0]
    for vector, error in (
        (np.array([1, 2]), ShapeError),
        (np.array([1.0, 2.0, 3.0]), DTypeError),
        (np.array([1, 2, 101]), RangeError),
        (fc.secagg.Quantizer(101, 1.0).weighted(np.zeros(2)), RangeError),
    ):
        with pytest.raises(error):
            client.mask(message, vector)
    for bad in (np.nan, np.inf):
        with pytest.raises(NonFiniteError, match="number 1 of the vector"):
            client.mask(message, quantizer.weighted(np.array([1.0, bad])))
    assert len(list(client.mask(message, quantizer.weighted(np.array([1.0, 0.5]))))) == 1  # no key was used
    for weight in (0, -1, 1.5, float("nan")):
        with pytest.raises(WeightError):
            quantizer.weighted(np.zeros(2), weight)
    with pytest.raises(WeightError, match="a client lied"):
        quantizer.mean(np.array([5, 0]))


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


def test_group_sums_let_a_median_outvote_a_liar():
    rng = np.random.default_rng(6)
    vectors = rng.integers(40, 61, (30, 20))
    vectors[7] = 100_000
    found = fc.secagg.simulate(list(vectors), {"mask": [2]}, groups=5)
    assert found.sum.shape == (5, 20)
    assert sorted(found.survivors) == [i for i in range(30) if i != 2]
    for members, row in zip(found.groups, found.sum, strict=True):
        assert (row == vectors[members].sum(0)).all()
    means = (found.sum / [[len(members)] for members in found.groups]).astype(np.float32)
    assert np.abs(fc.rules.Median()(means) - 50).max() < 10.1
    assert np.abs(means.mean(0) - 50).max() > 1000
    assert fc.secagg.tolerated(30, 5, 2) == (6, True)
    assert fc.secagg.tolerated(30, 5, 3) == (6, False)
    with pytest.raises(PrivacyError, match="group of one"):
        fc.secagg.simulate(list(vectors), groups=20)


def test_the_server_takes_no_more_vectors_at_once_than_it_has_room_for():
    rig = Rig(complete(IN_FLIGHT + 1, 3, length=wire.CHUNK + 1)).run("mask")
    chunks = {name: rig.answers(name) for name in rig.ids}
    for name in rig.ids[:-1]:
        rig.server.receive(name, chunks[name][0])
    with pytest.raises(RangeError, match="send it again when one is whole"):
        rig.server.receive(IN_FLIGHT, chunks[IN_FLIGHT][0])
    rig.server.drop(0)
    rig.server.receive(IN_FLIGHT, chunks[IN_FLIGHT][0])
    for name in rig.ids[1:]:
        for data in chunks[name][1:]:
            rig.server.receive(name, data)
    rig.messages = rig.server.advance()
    rig.run()
    assert (rig.server.result().sum == rig.vectors[1:].sum(0)).all()


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


def test_the_leak_guard_says_when_a_sum_protects_nobody():
    assert fc.secagg.leaks(10, hidden_size=256, tokens=[32] * 10) == []
    assert "256" in fc.secagg.leaks(7, hidden_size=256, tokens=[32] * 7)[0]
    assert "one client's vector" in fc.secagg.leaks(1)[0]
    assert "one client's vector" in fc.secagg.leaks(4, corrupt=3)[0]
    assert ["group 1" in text for text in fc.secagg.leaks(5, groups=[4, 1])] == [True]


def test_a_client_refuses_rounds_outside_its_policy(tmp_path):
    path = tmp_path / "policy.toml"
    path.write_text(
        'smallest_cohort = 8\nlargest_epsilon = 4.0\nadversary = "malicious"\nmethods = ["FedIT"]\ncorrupt = 0.1\n'
        f'model = "{"a" * 64}"\n'
    )
    policy = fc.secagg.Policy.load(path)
    p = fc.secagg.Parameters.choose(20, length=1, bound=1, adversary="malicious")
    bold = fc.secagg.Parameters.choose(20, length=1, bound=1, corrupt=0.05, adversary="malicious")
    good = {"parameters": p, "epsilon": 3.0, "model": "a" * 64, "method": "FedIT"}
    policy.check(fc.secagg.Offer(**good))
    few = fc.secagg.Parameters.choose(5, length=1, bound=1, adversary="malicious")
    kind = fc.secagg.Parameters.choose(20, length=1, bound=1)
    for change, why in (
        ({"parameters": None}, "in the clear"),
        ({"parameters": few}, "smallest_cohort"),
        ({"parameters": kind}, "trusts its server"),
        ({"parameters": bold}, "corrupt = 0.1, but the round allows for 1 of 20 members"),
        ({"epsilon": 4.1}, "largest_epsilon"),
        ({"epsilon": float("nan")}, "largest_epsilon"),
        ({"model": "b" * 64}, "model"),
        ({"method": "FLoRA"}, "methods"),
    ):
        with pytest.raises(PrivacyError, match=why):
            policy.check(fc.secagg.Offer(**(good | change)))
    for text, why in (
        ("cohort = 3", "unknown key 'cohort'"),
        ("smallest_cohort = 1", "smallest_cohort"),
        ("a", "policy"),
    ):
        path.write_text(text)
        with pytest.raises(ConfigError, match=why):
            fc.secagg.Policy.load(path)
    with pytest.raises(MissingError):
        fc.secagg.Policy.load(tmp_path / "none.toml")


def test_methods_that_need_more_than_sums_are_refused_by_name():
    fc.secagg.require_linear(fc.lora.FedIT())
    with pytest.raises(PrivacyError, match="FLoRA: its server needs each client's update"):
        fc.secagg.require_linear(fc.lora.FLoRA())


def test_several_adapters_go_in_one_vector():
    layout = fc.secagg.Parts({"a": (2, 3), "b": (4,)})
    rng = np.random.default_rng(8)
    adapters = [{name: rng.integers(-9, 10, shape) for name, shape in layout.shapes.items()} for _ in range(3)]
    found = layout.split(fc.secagg.simulate([layout.join(one) for one in adapters]).sum)
    for name in layout.shapes:
        assert (found[name] == sum(one[name] for one in adapters)).all()
    for bad in ({"a": np.zeros((2, 3))}, {"a": np.zeros((3, 2)), "b": np.zeros(4)}):
        with pytest.raises(ShapeError):
            layout.join(bad)
    with pytest.raises(ShapeError):
        layout.split(np.zeros(9))


def test_sessions_of_members_differ_in_every_mask():
    """What goes over the wire is uniform: no coordinate of one round says anything of the same one in another."""
    seen = []
    for _ in range(2):
        rig = Rig(complete(2, 1, length=4000))
        rig.run("mask")
        (data,) = rig.answers(0)
        seen.append(np.frombuffer(data[wire.HEADER.size + 4 : -TAG_BYTES], np.uint8))
    assert (seen[0] == seen[1]).mean() < 0.01
    counts = np.bincount(seen[0], minlength=256)
    expected = len(seen[0]) / 256
    assert ((counts - expected) ** 2 / expected).sum() < 400  # χ² with 255 degrees


@pytest.mark.parametrize("bits", [17, 26, 33])
def test_the_residues_of_a_message_are_uniform_at_every_width(bits):
    bound = ((1 << bits) // 2 - 1) // 2
    p = complete(2, 1, length=20_000, bound=bound)
    assert p.modulus_bits == bits
    rig = Rig(p).run("mask")
    rig.vectors[0] = bound
    (data,) = rig.answers(0)
    found = np.zeros(p.length, np.uint32 if bits <= 32 else np.uint64)
    fc.ops.unpack_add(np.frombuffer(data[wire.HEADER.size + 4 : -TAG_BYTES], np.uint8), bits, found)
    for shift in (0, bits - 8):
        counts = np.bincount((found >> np.uint8(shift)).astype(np.int64) & 255, minlength=256)
        assert ((counts - p.length / 256) ** 2 / (p.length / 256)).sum() < 400  # χ² with 255 degrees


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


def test_keys_are_overwritten_when_a_vector_is_left_half_way(monkeypatch):
    rig = Rig(complete(3, 1, length=wire.CHUNK + 1)).run("mask")
    kept, make = [], rig.clients[0]._mask_keys

    def keeping(partners):
        kept.append(make(partners))
        return kept[-1]

    monkeypatch.setattr(rig.clients[0], "_mask_keys", keeping)
    chunks = rig.clients[0].mask(rig.messages[0], rig.vectors[0])
    next(chunks)
    assert kept[0][0].any()
    chunks.close()
    assert not kept[0][0].any()


def test_no_round_is_joined_twice():
    rig = Rig(complete(3, 1))
    about = (rig.p, 0, key_of(1), rig.roster, b"another session", 7, CONTEXT)
    fc.secagg.Client(*about, after=6)
    with pytest.raises(Replayed, match="got 7, but this client took part in round 7"):
        fc.secagg.Client(*about, after=7)
