"""What a client masks and what goes over the wire: weights, adapters, sizes, uniform residues, keys overwritten."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
from secagg.driver import Rig, complete, rig_of

import fedcore as fc
from fedcore.errors import (
    DTypeError,
    Forged,
    NonFiniteError,
    RangeError,
    ShapeError,
    WeightError,
)
from fedcore.privacy.secagg import client, masking, unmasking, wire
from fedcore.privacy.secagg.keys import KEY_BYTES, TAG_BYTES


def kept(monkeypatch, where, name):
    """What every call of a function gave, as it is now."""
    found, make = [], getattr(where, name)

    def keeping(*arguments):
        found.append(made := make(*arguments))
        return made

    monkeypatch.setattr(where, name, keeping)
    return found


@pytest.fixture
def mask_keys(monkeypatch):
    """(keys, signs) of every vector that is masked."""
    return kept(monkeypatch, client, "mask_keys")


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
        [round(round(w / 50 * (1 << 20)) / 2.0 * float(x)) for x in update[-3:]]
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
    private = fc.secagg.Quantizer(1000, 1.0, 1000.0).weighted(np.zeros(2), 537.0)
    for p, expected in ((rig.p, "the parameters' bound of 100"), (replace(rig.p, bound=0), "no bound")):
        with pytest.raises(RangeError, match=expected) as caught:
            fc.secagg.checked(private, p)
        assert "537" not in str(caught.value)
    for bad in (np.nan, np.inf):
        with pytest.raises(NonFiniteError, match="number 1 of the vector"):
            client.mask(message, quantizer.weighted(np.array([1.0, bad])))
    assert len(list(client.mask(message, quantizer.weighted(np.array([1.0, 0.5]))))) == 1  # no key was used
    for weight in (0, -1, 1.5, float("nan")):
        with pytest.raises(WeightError):
            quantizer.weighted(np.zeros(2), weight)
    with pytest.raises(WeightError, match="a client lied"):
        quantizer.mean(np.array([5, 0]))


def test_a_small_weight_changes_neither_what_is_clamped_nor_the_mean():
    quantizer = fc.secagg.Quantizer(bound=127, largest=1.0, largest_weight=1000.0)
    x = np.array([5.0, -0.5, 1.0], np.float32)
    given = [quantizer.weighted(x, weight) for weight in (4.0, 90.0, 1000.0)]
    assert [one.tail for one in given] == [1, 11, 127]
    mean, weight = quantizer.mean(fc.secagg.simulate(given).sum)
    assert mean[[0, 2]].tolist() == [1.0, 1.0]
    assert abs(mean[1] + 0.5) <= 0.5 * 3 / (1 + 11 + 127)
    assert weight == pytest.approx(1094, rel=0.01)
    with pytest.raises(WeightError, match=r"got 3.9 of at most 1000.0, which bound 127 rounds to 0; take a larger"):
        quantizer.weighted(x, 3.9)


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


def test_a_fingerprint_is_of_all_that_goes_out_however_it_is_cut(monkeypatch):
    packed, key = np.arange(1000, dtype=np.uint8), bytes(range(32))
    whole = masking.fingerprint(packed, key)
    monkeypatch.setattr(masking, "_AT_ONCE", 96)
    assert masking.fingerprint(packed, key) == whole
    for place in (0, 95, 96, 999):
        other = packed.copy()
        other[place] ^= 1
        assert masking.fingerprint(other, key) != whole


def test_keys_are_overwritten_before_anything_is_sent(mask_keys):
    rig = rig_of().run("mask")

    def full(_):
        assert len(mask_keys) == 1
        assert not mask_keys[-1][0].any()
        raise OSError("no space left")

    rig.clients[0]._save = full
    with pytest.raises(OSError, match="no space"):
        rig.clients[0].mask(rig.messages[0], rig.vectors[0])


def test_keys_are_overwritten_where_a_vector_cannot_be_masked(mask_keys):
    rig = Rig(complete(3, 1, length=3, bound=100)).run("mask")
    vector = fc.secagg.Quantizer(bound=100, largest=1.0).weighted(np.array([1.0, np.nan]))
    with pytest.raises(NonFiniteError, match="number 1 of the vector") as held:  # whoever has the error has its frames
        rig.clients[0].mask(rig.messages[0], vector)
    assert [keys.any() for keys, _ in mask_keys] == [False], held


@pytest.mark.parametrize("fails", [False, True])
def test_a_server_overwrites_the_keys_that_it_found_again(monkeypatch, fails):
    given = kept(monkeypatch, unmasking, "mask_keys")
    rig = rig_of().run("mask").run("unmask", gone=(4,)).run()
    if fails:
        monkeypatch.setattr(fc.ops, "unmask_sum", lambda keys: None)
    with pytest.raises(TypeError) if fails else nullcontext():
        rig.server.result()
    assert [keys.any() for keys, _ in given] == [False]


@pytest.mark.parametrize("fails", [False, True])
def test_shares_are_overwritten_once_they_are_sealed_or_cannot_be(monkeypatch, fails):
    shares = kept(monkeypatch, fc.ops, "shamir_split")
    rig = rig_of("semi_honest").run("share")
    message = bytearray(rig.messages[0])
    if fails:  # for the last neighbour
        message[-wire.ADVERTISED : KEY_BYTES - wire.ADVERTISED] = bytes(KEY_BYTES)
    with pytest.raises(Forged, match="low order") if fails else nullcontext():
        rig.clients[0].share(message)
    assert [array.any() for array in shares] == [False]


@pytest.mark.parametrize(("quantizer", "weight"), [((1000, 1e-310), 1.0), ((1000.0, 1.0), 1.0)])
def test_what_can_never_be_masked_is_refused_before_a_client_has_it(quantizer, weight):
    """Later it would be after the keys of the round count as used."""
    with pytest.raises(RangeError):
        fc.secagg.Quantizer(*quantizer).weighted(np.ones(3, np.float32), weight)


def test_what_a_client_masks_shows_nothing_of_itself():
    """Logs and tracebacks print values."""
    weighted = fc.secagg.Quantizer(1000, 0.5).weighted(np.full(2, 0.25, np.float32), 0.75)
    whole = fc.secagg.checked(np.array([123, 456, 789]), complete(3, 2, length=3))
    assert (weighted.tail, weighted.scale) == (750, 1500)
    assert (repr(weighted), repr(whole)) == ("Weighted()", "Integers()")


def test_parties_of_a_round_and_what_holds_their_keys_print_no_secret():
    rig = rig_of().run("unmask")
    one = rig.clients[1]
    draw = fc.secagg.GroupDraw(rig.roster, 1, 2, b"session", 7)
    secrets = [one._secret, one._keys.seed, one._keys.mask_bytes, one.noise_key, draw._value, *one._held.values()]
    secrets = [bytes(secret) for secret in secrets]
    assert len(secrets) > 5
    said = repr((one, one._keys, one._seals, one._tags, one.round, one._peers, rig.server, draw))
    one.unmask(rig.messages[1])
    said += repr((one, one._keys))
    for secret in secrets:
        assert repr(secret)[2:-1] not in said
