"""Distributed differential privacy: integers in their bound, noise for the fewest honest, sums that decode."""

from __future__ import annotations

import math
import os
from dataclasses import replace

import numpy as np
import pytest

import fedcore as fc
import fedcore.privacy
from fedcore.errors import DTypeError, PrivacyError, ShapeError
from fedcore.privacy.accountant import Charge, spent
from fedcore.privacy.discrete_sums import distributed_epsilon

SEED = bytes(range(32))
KEYS = [bytes([i]) * 32 for i in range(64)]


def mechanism(dimension: int = 1000, **settings) -> fc.privacy.Distributed:
    usual = {"clip": 1.0, "noise_multiplier": 1.0, "clients": 10, "fewest": 8, "corrupt": 2, "seed": SEED}
    return fc.privacy.Distributed(dimension=dimension, **(usual | settings))


def updates_of(n: int, d: int, norm: float = 1.0) -> list[np.ndarray]:
    rng = np.random.default_rng(d)
    rows = rng.normal(size=(n, d))
    return list((norm * rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32))


def summed(one, updates, keys=KEYS) -> np.ndarray:
    """The messages added modulo the modulus, as masks would let a server see them."""
    messages = [one.encode(update, key) for update, key in zip(updates, keys, strict=False)]
    assert all(message.dtype == np.uint32 and message.max() < one.modulus for message in messages)
    return np.sum(messages, axis=0, dtype=np.uint64) % one.modulus


@pytest.mark.parametrize("d", [1, 2, 3, 1000, 1024, 70_000])
def test_a_sum_decodes_with_the_noise_that_was_asked_for(d):
    """The noise of ten clients is that of eight less two, √(10/6) more than z C: seen in the error."""
    one = mechanism(d, noise_multiplier=0.3)
    updates = updates_of(10, d, 0.5)
    error = one.decode(summed(one, updates), range(10)) - np.sum(updates, axis=0)
    deviation = 0.3 * math.sqrt(10 / 6)
    assert error.shape == (d,)
    assert abs(error.mean()) < 6 * deviation / math.sqrt(d)
    assert d < 1000 or abs(error.std() / deviation - 1) < 5 / math.sqrt(2 * d)


def test_updates_above_the_clip_are_clipped_and_direction_is_kept():
    one = mechanism(3000, noise_multiplier=0.01, clients=2, fewest=2, corrupt=0)
    big = updates_of(2, 3000, 1e6)
    got = one.decode(summed(one, big), ["a", "b"])
    expected = np.sum([row / np.linalg.norm(row) for row in big], axis=0)
    assert np.linalg.norm(got - expected) < 0.011 * math.sqrt(3000) * 1.1


@pytest.mark.parametrize("d", [1, 64, 1000])
def test_a_rotated_update_is_never_longer_than_the_clip(d):
    for key in KEYS[:40]:
        one = mechanism(d, seed=key)
        rotated = one._rotated(updates_of(1, d, 2.0)[0]).astype(np.float64)
        assert (1 - 1e-5) * one.clip < np.linalg.norm(rotated) * one.step <= one.clip


def adversaries(one) -> list[np.ndarray]:
    d = one.dimension
    spike = np.zeros(d, np.float32)
    spike[d // 2] = 3e38
    return [
        np.full(d, one.step / 2, np.float32),
        np.full(d, 3e38, np.float32),
        np.full(d, 1e-45, np.float32),
        spike,
        np.nextafter(np.float32(1), np.float32(2)) * updates_of(1, d)[0],
        one._signs[:d] * np.float32(one.clip),  # rotates to one large number a block
    ]


@pytest.mark.parametrize("d", [1, 5, 1000, 4096])
@pytest.mark.parametrize("settings", [{}, {"beta": 0.999}, {"grid": 2.0**-4}, {"clip": 3e-5}])
def test_integers_never_pass_the_bound(d, settings):
    one = mechanism(d, **settings)
    for update in adversaries(one):
        for key in KEYS[:3]:
            assert sum(int(q) ** 2 for q in one._rounded(update, key).tolist()) <= one.bound
    assert math.sqrt(one.bound) <= one.clip / one.step + math.sqrt(one.padded)


def test_the_bound_is_the_papers():
    """Theorem 1 of Kairouz, Liu and Steinke with c = 16, D = 4096: c² + D/4 + √(2 ln 1/β) (c + √D/2), and (c + √D)²."""
    assert mechanism(4096, grid=2.0**-4, beta=math.exp(-2)).bound == 256 + 1024 + 2 * (16 + 32)
    assert mechanism(4096, grid=2.0**-4, beta=math.exp(-8)).bound == 256 + 1024 + 4 * (16 + 32)
    assert mechanism(4, grid=2.0**-4, beta=math.exp(-8)).bound == (16 + 2) ** 2


def test_grids_so_fine_that_squares_pass_64_bits_are_refused():
    one = {"clients": 1, "fewest": 1, "corrupt": 0, "noise_multiplier": 0.02}
    with pytest.raises(PrivacyError) as caught:
        mechanism(65536, grid=2.0**-32, **one)
    assert str(caught.value) == (
        "grid: 2.32831e-10 makes integers whose squares may add up to 1.84e+19, expected less than 2**63; take a "
        "coarser grid"
    )
    fine, spike = mechanism(65536, grid=2.0**-31, **one), np.zeros(65536, np.float32)
    spike[0] = 1
    for update in (spike, fine._signs):
        rounded = fine._rounded(update, KEYS[0])
        assert 2**61 < sum(int(q) ** 2 for q in rounded.tolist()) <= fine.bound


def test_roundings_above_the_bound_are_thrown_away():
    """At β near 1 plain rounding passes the bound now and then; what is sent never does, and differs then."""
    one = mechanism(256, beta=0.999, grid=2.0**-5)
    update = updates_of(1, 256)[0]
    again = 0
    for key in KEYS:
        rotated = one._rotated(update).astype(np.float64)
        words = fc.ops.keystream(4 * one.padded, key, bytes(12), 0).view("<u4")
        first = np.floor(rotated) + (words / 2.0**32 < rotated - np.floor(rotated))
        again += (first**2).sum() > one.bound
        sent = one._rounded(update, key)
        assert (sent**2).sum() <= one.bound
        assert np.array_equal(sent, first) == ((first**2).sum() <= one.bound)
        assert (np.abs(sent - rotated) < 1).all()
    assert 0 < again < len(KEYS)


def test_integers_above_the_bound_are_never_sent(monkeypatch):
    monkeypatch.setattr(fc.privacy.Distributed, "bound", 5)
    with pytest.raises(PrivacyError, match="no rounding had a norm within"):
        mechanism(100).encode(updates_of(1, 100)[0], KEYS[0])


def test_rounding_has_no_bias():
    one = mechanism(64, grid=2.0**-3)
    update = updates_of(1, 64, 0.5)[0]
    rotated = one._rotated(update)
    mean = np.mean([one._rounded(update, i.to_bytes(32, "little")) for i in range(1000)], axis=0)
    assert np.abs(mean - rotated).max() < 5 * 0.5 / math.sqrt(1000)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_update_that_is_not_finite_counts_as_zeros(value):
    one = mechanism(300)
    update = updates_of(1, 300)[0]
    update[299] = value
    assert not one._rounded(update, KEYS[0]).any()
    found = one.encode(update, KEYS[0]).astype(np.int64)
    centred = np.where(found >= one.modulus // 2, found - one.modulus, found)
    assert abs(centred.std() / one.sigma - 1) < 0.2


def test_another_rounds_seed_draws_other_noise_under_one_key():
    """Zeros are zeros however they are turned, so that the messages differ by their noise alone."""
    one, zeros = mechanism(300), np.zeros(300, np.float32)
    other = replace(one, seed=bytes(32))
    assert one.inputs_digest(zeros) != other.inputs_digest(zeros)
    sent = [each.encode(zeros, KEYS[0]).astype(np.int64) for each in (one, one, other)]
    assert np.array_equal(sent[0], sent[1])
    assert (sent[0] != sent[2]).mean() > 0.9


def test_noise_is_bound_to_the_update_and_repeats_with_it():
    one = mechanism(500)
    first, second = updates_of(2, 500)
    key = os.urandom(32)
    assert np.array_equal(one.encode(first, key), one.encode(first.copy(), key))
    charge = one.charge()
    noise = fc.privacy.Noise(
        key, one.inputs_digest(first), charge.noise_multiplier, charge.dimension, 1, 1.0, concentrated=True
    )
    assert np.array_equal(one.encode(first, noise), one.encode(first, key))
    cheaper = {"noise_multiplier": 1.1 * charge.noise_multiplier, "dimension": 1, "sampling_rate": 0.5}
    for name, value in (cheaper | {"concentrated": False, "inputs_digest": "0" * 64}).items():
        with pytest.raises(PrivacyError, match=r"noise: (charged|was reserved)"):
            one.encode(first, replace(noise, **{name: value}))
    # one noise on two updates would show their difference: it would have no more than the roundings' deviation
    moved = (one.encode(first, key).astype(np.int64) - one.encode(second, key)) % one.modulus
    moved = np.where(moved >= one.modulus // 2, moved - one.modulus, moved)
    expected = one._rotated(first) - one._rotated(second)
    assert (moved - expected).std() > one.sigma
    other = mechanism(500, seed=bytes(32))
    assert not np.array_equal(one.encode(first, key), other.encode(first, key))


@pytest.mark.parametrize("backend", ["reference", "c"])
def test_the_same_message_on_every_backend(backend):
    one = mechanism(3000)
    update = updates_of(1, 3000)[0]
    expected = one.encode(update, KEYS[0])
    with fc.use_backend(backend):
        assert np.array_equal(mechanism(3000).encode(update, KEYS[0]), expected)


def test_all_clients_at_the_clip_in_one_direction_do_not_wrap():
    """The worst that honest updates do: the whole signal in one number before the rotation."""
    one = mechanism(4096, clients=50, fewest=50, corrupt=0, noise_multiplier=0.1)
    spike = np.zeros(4096, np.float32)
    spike[17] = 1.0
    got = one.decode(summed(one, [spike] * 50), range(50))
    assert abs(got[17] - 50) < 6 * 0.1
    settings = {"fewest": 3, "corrupt": 0, "noise_multiplier": 1.0}
    assert all(mechanism(4096, clients=n, **settings).wrap_chance <= 2.0**-40 for n in range(3, 300))
    assert one._wrap(one.modulus // 2, one.step) > 2.0**-40
    assert mechanism(4096, clients=50, fewest=50, corrupt=0, noise_multiplier=8.0).modulus > one.modulus


def test_roundings_that_all_go_one_way_do_not_wrap():
    """1000 clients on a grid as coarse as the clip: the roundings are larger than all else in the sum."""
    one = mechanism(1 << 16, clients=1000, fewest=1000, corrupt=0, noise_multiplier=20.0, grid=1.0)
    assert one.modulus / 2 > 1000


def test_epsilon_is_that_of_the_fewest_honest_clients():
    pytest.importorskip("dp_accounting", reason="accounting needs dp-accounting; fedcore[train] brings it")
    one = mechanism(1000)
    found = one.epsilon(1e-5, rounds=3)
    assert found == distributed_epsilon(
        sigma=one.sigma, clients=6, norm=math.sqrt(one.bound), dimension=1024, rounds=3, delta=1e-5
    )
    assert one.sigma * math.sqrt(6) * one.step == pytest.approx(1.0)
    # the grid costs little: a central Gaussian by the same accountant, at the same z, from a change of exactly C
    ideal = distributed_epsilon(sigma=1e5, clients=1, norm=1e5, dimension=1024, rounds=3, delta=1e-5)
    assert ideal < found < 1.02 * ideal
    assert mechanism(1000, corrupt=7).epsilon(1e-5, rounds=3) == pytest.approx(found, rel=1e-3)


def test_sums_of_too_few_or_too_many_are_void():
    one = mechanism(100)
    total = summed(one, updates_of(10, 100))
    with pytest.raises(PrivacyError, match=r"included: got 7 clients, expected at least 8, .* the round is void"):
        one.decode(total, range(7))
    with pytest.raises(PrivacyError, match="included: got 11 clients, expected at most 10"):
        one.decode(total, range(11))
    with pytest.raises(PrivacyError, match="included: a client is named twice"):
        one.decode(total, [1] * 8)
    with pytest.raises(ShapeError, match=r"sum: got uint64 of shape \(127,\), expected \(128,\) integers"):
        one.decode(total[:127], range(8))
    with pytest.raises(ShapeError, match="sum: got float64"):
        one.decode(total.astype(np.float64), range(8))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"clip": 0.0}, "clip: got 0.0"),
        ({"noise_multiplier": math.nan}, "noise_multiplier: got nan"),
        ({"clients": 0}, "clients: got 0"),
        ({"dimension": 0}, "dimension: got 0"),
        ({"corrupt": -1}, "corrupt: got -1"),
        ({"corrupt": 8}, "fewest: got 8 of 10 clients with 8 corrupt"),
        ({"fewest": 11}, "fewest: got 11 of 10"),
        ({"seed": b"short"}, "seed: expected 32 public bytes"),
        ({"beta": 1.0}, "beta: got 1.0"),
        ({"grid": 0.3}, "grid: got 0.3, expected a power of two"),
        ({"grid": 2.0}, "grid: 2 makes a client's noise .* take a finer grid"),
        ({"grid": 2.0**-30}, "grid: .* take a coarser grid"),
    ],
)
def test_bad_parameters_are_named(settings, words):
    with pytest.raises(PrivacyError, match=words):
        mechanism(**settings)


def test_bad_updates_are_named():
    one = mechanism(100)
    with pytest.raises(ShapeError, match="update: got 99 numbers, expected 100"):
        one.encode(np.zeros(99, np.float32), KEYS[0])
    with pytest.raises(DTypeError, match="float64"):
        one.encode(np.zeros(100), KEYS[0])
    with pytest.raises(PrivacyError, match="noise: got 5 bytes, expected 32 secret random bytes"):
        one.encode(np.zeros(100, np.float32), b"short")


@pytest.mark.parametrize("neighbours", ["add_remove", "replace_one"])
def test_a_budget_of_its_charges_says_what_the_mechanism_says(neighbours):
    pytest.importorskip("dp_accounting", reason="accounting needs dp-accounting; fedcore[train] brings it")
    made = mechanism(100)
    charges = [made.charge(neighbours)] * 3
    assert spent(charges, 1e-5, "none", neighbours) == pytest.approx(made.epsilon(1e-5, 3, neighbours), rel=1e-9)
    # beside a Gaussian release all is accounted as concentrated: never less than each alone
    both = spent([*charges, Charge(2.0)], 1e-5, "none", neighbours)
    assert both > max(spent(charges, 1e-5, "none", neighbours), spent([Charge(2.0)], 1e-5, "none", neighbours))
    with pytest.raises(PrivacyError, match="who adds up messages sees who sent"):
        Charge(1.0, 0.5, concentrated=True)
