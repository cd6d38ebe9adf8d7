"""What floating point tells of inputs: nothing of what is released here, all of it where noise is added as floats.

The attack is Mironov's (CCS 2012, "On Significance of the Least Significant Bits for Differential Privacy"): x + z is a
number that both x and z are fine enough for, so an output that is finer than x + z could be shows that x was not there.
"""

from __future__ import annotations

import numpy as np
import pytest

from fedcore.ops.clip_round import clip_grid
from fedcore.privacy import Central, Correlated, Distributed, Noise, Rounds

D, RUNS = 4096, 12
#: the client that is there or not: ‖x‖ is the clip
CLIENT = np.full(D, 2.0**-6, np.float32)


def key_of(run: int) -> bytes:
    return run.to_bytes(32, "little")


def says_present(outputs: np.ndarray) -> bool:
    """Whether outputs much smaller than the client's numbers are multiples of what those numbers resolve."""
    small = outputs[(np.abs(outputs) < CLIENT[0] / 4) & (outputs != 0)].astype(np.float64)
    steps = small / (np.spacing(CLIENT[0]) / 2)
    return bool(np.mean(steps == np.rint(steps)) > 0.9)


def naive(rows: list[np.ndarray], run: int) -> np.ndarray:
    """A float sum with float Gaussian noise, as it is commonly done."""
    noise = np.random.default_rng(run).standard_normal(D, np.float32)
    return sum(rows, np.zeros(D, np.float32)) + noise


def central(rows: list[np.ndarray], run: int, expected: int = 1) -> np.ndarray:
    mechanism = Central(1.0, 1.0, expected)
    rows = rows or [np.zeros(D, np.float32)]
    noise = Noise(key_of(run), mechanism.inputs_digest(rows, label="a round"), 1.0, D, 1, 0.0)
    return mechanism.release(rows, noise, label="a round").mean


def advantage(release) -> float:
    """|P(says present | present) - P(says present | absent)| over runs."""
    there = [says_present(release([CLIENT], run)) for run in range(RUNS)]
    absent = [says_present(release([], run + RUNS)) for run in range(RUNS)]
    return abs(np.mean(there) - np.mean(absent))


def same_low_bits(first: np.ndarray, second: np.ndarray, bits: int) -> bool:
    """Two samples of integers: whether their low bits are alike, by χ² within five standard deviations."""
    counts = np.array([np.bincount(part & ((1 << bits) - 1), minlength=1 << bits) for part in (first, second)])
    expected = counts.sum(0) * counts.sum(1, keepdims=True) / counts.sum()
    kept = expected.min(0) > 5
    chi = ((counts - expected)[:, kept] ** 2 / expected[:, kept]).sum()
    return chi < kept.sum() + 5 * np.sqrt(2 * kept.sum())


def test_the_attack_wins_against_float_noise_and_learns_nothing_here():
    assert advantage(naive) == 1.0
    assert advantage(central) == 0.0


@pytest.mark.parametrize("expected", [1, 3, 50])
def test_outputs_of_any_inputs_are_on_the_same_grid(expected):
    """Whole steps over the denominator, rounded once, whatever the inputs: what one can give, its neighbour can."""
    odd = np.random.default_rng(0).normal(size=D).astype(np.float32)
    adversarial = [
        np.nextafter(CLIENT, np.float32(1)),
        odd * np.float32(1e-20),
        odd * np.float32(1e20),
        odd / np.float32(3),
    ]
    step, seen = clip_grid(1.0, D), []
    for run, rows in enumerate(([], [CLIENT], adversarial, adversarial[:2])):
        outputs = central(rows, run, expected)
        steps = np.rint(outputs.astype(np.float64) * expected / step).astype(np.int64)
        assert ((steps * step / expected).astype(np.float32) == outputs).all()
        seen.append(steps)
    assert all(same_low_bits(steps, seen[0], 3) for steps in seen)
    # the parity is no one's: an even client does not make even sums
    assert all(abs(np.mean(steps & 1) - 0.5) < 5 * 0.5 / np.sqrt(D) for steps in seen)


def test_low_bits_of_the_floats_themselves_are_alike():
    there, absent = (np.concatenate([central(rows, run) for run in range(RUNS)]) for rows in ([CLIENT], []))
    for shift in (0, 4, 8, 12):
        assert same_low_bits(there.view(np.uint32) >> np.uint32(shift), absent.view(np.uint32) >> np.uint32(shift), 4)


def test_messages_of_distributed_noise_have_uniform_low_bits_for_any_update():
    one = Distributed(1.0, 1.0, clients=4, fewest=4, corrupt=0, dimension=D, seed=bytes(32))
    messages = [one.encode(row, key_of(i)).astype(np.int64) for i, row in enumerate((0 * CLIENT, CLIENT, 1e9 * CLIENT))]
    for message in messages:
        assert ((message >= 0) & (message < one.modulus)).all()
        assert same_low_bits(message, messages[0], 3)
        assert abs(np.mean(message & 1) - 0.5) < 5 * 0.5 / np.sqrt(D)
    # what is decoded is a function of whole numbers alone: equal sums, equal floats
    total = np.sum(messages, axis=0) % one.modulus
    shifted = (total + 3 * one.modulus).astype(np.int64)
    assert np.array_equal(one.decode(total, range(4)), one.decode(shifted, range(4)))


def test_rounds_of_correlated_noise_tell_nothing_together_either(tmp_path):
    """Low bits of two rounds side by side: noise that returns must not return on a lattice that shows the input."""
    mechanism, step, found = Correlated(1.0, 1.0, 1, rounds=4, separation=2), clip_grid(1.0, D), []
    assert mechanism.factor.bands == 2
    for world, row in enumerate((0 * CLIENT, CLIENT)):
        rounds = Rounds(tmp_path / str(world), mechanism.factor, D, sealing_key=bytes(32))
        noise = Noise(key_of(world), mechanism.inputs_digest(rounds), 1.0, mechanism.dimension(D), 1, 0.0)
        steps = []
        for t in (1, 2):
            mean = mechanism.release([row if t == 1 else 0 * row], noise, rounds, t, clients=[f"{t}"]).mean
            steps.append(np.rint(mean.astype(np.float64) / step).astype(np.int64))
            assert ((steps[-1] * step).astype(np.float32) == mean).all()
        found.append((steps[0] & 3) | (steps[1] & 3) << 2)
    assert same_low_bits(*found, 4)
    for joint in found:
        assert abs(np.bincount(joint, minlength=16) - D / 16).max() < 5 * np.sqrt(D / 16)
