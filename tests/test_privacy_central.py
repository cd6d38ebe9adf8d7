"""Central releases: what the noise is calibrated to, for what inputs, and small cohorts and bad input."""

from __future__ import annotations

import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from oracles import clipping
from private_releases import KEY, Sampler, adapter, noise_for, released, vectors

import fedcore as fc
from fedcore.errors import LayoutError, PrivacyError, ShapeError
from fedcore.privacy import AdaptiveClip, Central, Noise
from fedcore.privacy.statistic import statistic_of


def test_the_sum_is_clipped_noised_and_divided_by_the_expected_cohort_never_the_actual(sampler):
    rows, mechanism = vectors(3), Central(clip=2.0, noise_multiplier=1.5, expected_clients=5)
    got = released(mechanism, rows)
    grid = clipping.clip_grid(2.0, 50)
    clipped = sum(np.rint(x.astype(np.float64) * min(1, 2 / np.linalg.norm(x)) / grid) for x in rows)
    expected = (clipped + Sampler()(50, 0, KEY, "sum ")) * grid / 5
    assert np.abs(got.mean - expected).max() <= 1.01 * 3 * grid / 5
    assert got.mean.dtype == np.float32
    assert sampler.calls == [(50, 1.5 * 2.0 / grid, KEY, "sum ")]
    assert got.public["noise_of_mean"] == pytest.approx(1.5 * 2.0 / 5)
    assert got.public["expected_clients"] == 5
    assert "clients" not in got.public
    assert got.private["clients"] == 3


def test_noise_is_a_discrete_gaussian_of_a_little_more_than_its_deviation(monkeypatch):
    asked = []
    kernel = SimpleNamespace(
        discrete_gaussian=lambda size, sigma, key, *_: asked.append((size, sigma, key)) or np.arange(size)
    )
    monkeypatch.setitem(sys.modules, "fedcore.ops.discrete_gaussian", kernel)
    assert fc.privacy.noise.draw(4, 30.0, KEY, "one").tolist() == [0, 1, 2, 3]
    fc.privacy.noise.draw(4, 40.0, KEY, "two")
    assert [call[:2] for call in asked] == [(4, math.sqrt(904)), (4, math.sqrt(1604))]
    assert len({KEY, asked[0][2], asked[1][2]}) == 3  # no two parts of a release share a key
    assert len(asked[0][2]) == 32


def test_smoothing_makes_a_discrete_gaussian_of_a_continuous_one():
    """The law that accounting rests on: N(0, v) made whole by a discrete Gaussian of s = 2 is one of variance v + 4."""
    deviation, s = 3.0, fc.privacy.noise.SMOOTHING
    x = np.linspace(-40, 40, 16001)
    density = np.exp(-(x**2) / (2 * deviation**2)) / (deviation * math.sqrt(2 * math.pi)) * 80 / 16000
    k = np.arange(-60, 61)
    weights = np.exp(-((k[:, None] - x) ** 2) / (2 * s * s))
    made = (weights / weights.sum(0)) @ density
    sigma = fc.privacy.noise.steps(deviation)
    known = np.exp(-(k**2) / (2 * sigma**2))
    assert np.abs(made - known / known.sum()).sum() < 1e-13


@pytest.mark.parametrize(
    "row",
    [
        np.full(50, 1e9, np.float32),
        np.eye(1, 50, 3, dtype=np.float32)[0] * 3e38,
        np.full(50, 0.5 * clipping.clip_grid(1.0, 50), np.float32),
        np.full(50, 1 / math.sqrt(50) + 1e-7, np.float32),
        np.full(50, np.nan, np.float32),
        np.r_[np.full(49, np.inf), 1].astype(np.float32),
        np.zeros(50, np.float32),
    ],
    ids=["large", "one huge coordinate", "half a grid step", "at the clip", "nan", "inf", "zero"],
)
def test_no_client_moves_the_sum_by_more_than_the_clip(silent, row):
    mechanism, rows = Central(clip=1.0, noise_multiplier=1.0, expected_clients=1), vectors(4, size=0.01)
    moved = released(mechanism, [*rows, row]).mean.astype(np.float64) - released(mechanism, rows).mean
    assert np.linalg.norm(moved) <= 1 + 1e-6
    if not np.isfinite(row).all():
        assert not moved.any()  # it counts as zero, so that its presence does not show


def test_the_order_of_clients_changes_nothing(sampler):
    rows, mechanism = vectors(20), Central(clip=2.0, noise_multiplier=1.0, expected_clients=20)
    first, turned = released(mechanism, rows), released(mechanism, rows[::-1])
    assert first.public == turned.public
    assert np.array_equal(first.mean, turned.mean)


def test_noise_belongs_to_one_set_of_inputs_and_settings(sampler):
    rows, mechanism = vectors(3), Central(clip=2.0, noise_multiplier=1.0, expected_clients=3)
    noise = noise_for(mechanism, rows)
    others = {
        "inputs": (mechanism, rows[:2]),
        "one number": (mechanism, [*rows[:2], rows[2] + np.eye(1, 50, dtype=np.float32)[0]]),
        "clip": (Central(clip=1.0, noise_multiplier=1.0, expected_clients=3), rows),
        "denominator": (Central(clip=2.0, noise_multiplier=1.0, expected_clients=4), rows),
        "adaptive": (
            Central(clip=2.0, noise_multiplier=1.0, expected_clients=3, adaptive=AdaptiveClip(count_noise=1.0)),
            rows,
        ),
    }
    for other, inputs in others.values():
        with pytest.raises(PrivacyError, match="reserved for other inputs or other settings"):
            other.release(inputs, noise, label="a round")
    digest = mechanism.inputs_digest(rows, label="a round")
    with pytest.raises(PrivacyError, match=r"charged at noise multiplier 2, .* has 1"):
        mechanism.release(rows, Noise(KEY, digest, 2.0, 100, 2, 1.0), label="a round")
    with pytest.raises(PrivacyError, match=r"charged for 49 samples, and this release draws 50.*dimension=50"):
        mechanism.release(rows, Noise(KEY, digest, 1.0, 49, 2, 1.0), label="a round")
    with pytest.raises(
        PrivacyError, match="noise: charged for stream 'aes256ctr', and this release draws from 'chacha"
    ):
        mechanism.release(rows, Noise(KEY, digest, 1.0, 50, 2, 1.0, stream="aes256ctr"), label="a round")
    assert sampler.calls == []


def test_a_round_with_nobody_is_noise_over_the_same_denominator(sampler):
    reference = adapter(0)
    mechanism = Central(clip=1.0, noise_multiplier=1.0, expected_clients=4)
    got = released(mechanism, [], reference=reference, method=fc.lora.FFALoRA())
    assert got.private["clients"] == 0
    assert not np.array_equal(got.mean.tensors["m.k.lora_B.weight"], reference.tensors["m.k.lora_B.weight"])
    with pytest.raises(ShapeError, match="got none and no reference"):
        mechanism.inputs_digest([], label="a round")


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"clip": 0}, "clip: got 0"),
        ({"clip": math.nan}, "clip: got nan"),
        ({"clip": {"m": 1.0}}, "clip: got one for each module, and per_module is False"),
        ({"clip": {"m": -1.0}, "per_module": True}, "clip of module 'm': got -1.0"),
        ({"noise_multiplier": 0.0}, "noise_multiplier: got 0.0"),
        ({"expected_clients": 0}, "expected_clients: got 0"),
        ({"expected_clients": 2.5}, "expected_clients: got 2.5"),
    ],
)
def test_bad_settings_are_named(changed, named):
    with pytest.raises(PrivacyError) as caught:
        Central(**({"clip": 1.0, "noise_multiplier": 1.0, "expected_clients": 2} | changed))
    assert str(caught.value).startswith(named)


def test_updates_that_do_not_fit_are_named(sampler):
    mechanism = Central(clip=1.0, noise_multiplier=1.0, expected_clients=2)
    with pytest.raises(ShapeError, match=r"updates\[1\]: got shape \(49,\), expected \(50,\)"):
        mechanism.inputs_digest([np.zeros(50, np.float32), np.zeros(49, np.float32)], label="a round")
    with pytest.raises(LayoutError, match=r"client 'c': tensor .* has shape"):
        mechanism.inputs_digest(
            [adapter(1, rank=2, client="c")], reference=adapter(0), method=fc.lora.FFALoRA(), label="a round"
        )
    with pytest.raises(PrivacyError, match="per_module: got flat vectors"):
        Central(1.0, 1.0, 2, per_module=True).inputs_digest(vectors(2), label="a round")
    assert statistic_of(adapter(0), fc.lora.FedSALoRA()).segments == {"m.k": 27, "m.q": 36}
