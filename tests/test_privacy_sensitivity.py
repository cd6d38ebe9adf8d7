"""Adversarial clients against whole releases with the real kernels: none moves the sum by more than the clip.

Two releases with and without the client share a key here, which `Budget` never lets happen: their difference is what
the client alone does, in whole steps of the grid.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

import fedcore as fc
from fedcore.errors import PrivacyError
from fedcore.ops.clip_round import clip_grid
from fedcore.privacy import AdaptiveClip, Central, Noise

KEY, D = bytes(range(32)), 300


def released(mechanism: Central, updates, **context):
    digest = mechanism.inputs_digest(updates, label="a round", **context)
    noise = Noise(KEY, digest, mechanism.noise_multiplier, 10**6, 1, 0.0)
    return mechanism.release(updates, noise, label="a round", **context)


def steps(values: np.ndarray, step: float) -> list[int]:
    """Whole steps, exact: fp32 holds them all."""
    found = np.asarray(values, np.float64) / step
    assert (found == np.rint(found)).all()
    return [int(x) for x in found]


def adversaries(clip: float) -> dict[str, np.ndarray]:
    grid, rng = clip_grid(clip, D), np.random.default_rng(1)
    spike, direction = np.zeros(D, np.float32), rng.normal(size=D)
    spike[7] = 3.4e38
    at_clip = (clip * direction / np.linalg.norm(direction)).astype(np.float32)
    return {
        "half a grid step": np.full(D, 0.5 * grid, np.float32),
        "a little above half": np.full(D, np.nextafter(np.float32(0.5 * grid), np.float32(1)), np.float32),
        "half steps at the clip": np.full(D, (round(clip / math.sqrt(D) / grid) - 0.5) * grid, np.float32),
        "one huge coordinate": spike,
        "all huge": np.full(D, -3.4e38, np.float32),
        "smallest": np.full(D, 1e-45, np.float32),
        "at the clip": at_clip,
        "a hair above": np.nextafter(at_clip, np.float32(np.inf) * np.sign(at_clip)),
        "a million times the clip": np.float32(1e6) * at_clip,
    }


@pytest.mark.parametrize("clip", [1.0, 0.7, 1e-5])
@pytest.mark.parametrize("name", adversaries(1.0))
def test_no_vector_moves_the_sum_by_more_than_the_clip(name, clip):
    others = [np.random.default_rng(0).normal(size=D).astype(np.float32) * np.float32(clip)]
    mechanism, grid = Central(clip, 0.5, 1), clip_grid(clip, D)
    there, absent = (
        steps(released(mechanism, [*others, *more]).mean, grid) for more in ([adversaries(clip)[name]], [])
    )
    moved = sum((a - b) ** 2 for a, b in zip(there, absent, strict=True))
    most, over = (clip / grid).as_integer_ratio()
    assert moved * over**2 <= most**2
    if name in ("all huge", "a million times the clip"):
        assert moved >= 0.98 * (clip / grid) ** 2  # the bound is one that clients reach


@pytest.mark.parametrize("kind", ["nan", "inf", "one inf", "zero"])
def test_clients_that_are_not_finite_or_empty_do_not_show(kind):
    row = np.full(D, {"nan": np.nan, "inf": -np.inf}.get(kind, 0), np.float32)
    if kind == "one inf":
        row[3] = np.inf
    mechanism = Central(1.0, 1.0, 2, adaptive=None)
    others = [np.ones(D, np.float32)]
    there, absent = released(mechanism, [*others, row]), released(mechanism, others)
    assert np.array_equal(there.mean, absent.mean)
    assert {k: v for k, v in there.public.items() if k not in ("inputs",)} == {
        k: v for k, v in absent.public.items() if k not in ("inputs",)
    }
    assert there.private["not_finite"] == int(kind != "zero")


@pytest.mark.parametrize("per_module", [False, True])
def test_the_gauge_attack_is_worth_one_clip(per_module):
    """(t B, A / t) with t = 1e6 has the same Δ; the B that is released moves by the clip at most, A not at all."""
    shapes, rng = {"m.k": (16, 9), "m.q": (20, 12)}, np.random.default_rng(0)

    def adapter(scale: float, gauge: float = 1.0) -> fc.Update:
        tensors = {}
        for module, (d_out, d_in) in shapes.items():
            a = np.linalg.qr(np.random.default_rng(7).normal(size=(d_in, 3)))[0].T
            tensors[f"{module}.lora_A.weight"] = (a / gauge).astype(np.float32)
            tensors[f"{module}.lora_B.weight"] = (gauge * scale * rng.normal(size=(d_out, 3))).astype(np.float32)
        return fc.Update.from_tensors(tensors, scaling=dict.fromkeys(shapes, 2.0))

    reference, attack = adapter(0.0), adapter(1.0, gauge=1e6)
    mechanism = Central(1.0, 0.25, 1, per_module=per_module)
    context = {"reference": reference, "method": fc.lora.FFALoRA()}
    there, absent = (released(mechanism, updates, **context).mean for updates in ([attack], []))
    moved = 0.0
    for module in shapes:
        a, b = f"{module}.lora_A.weight", f"{module}.lora_B.weight"
        assert np.array_equal(there.tensors[a], reference.tensors[a])
        moved += float(((there.tensors[b].astype(np.float64) - absent.tensors[b]) ** 2).sum())
    assert 0.97 < math.sqrt(moved) <= 1
    with pytest.raises(PrivacyError, match="without bound"):
        mechanism.inputs_digest([attack], reference=reference, label="a round")


def test_one_client_moves_each_adaptive_count_by_half():
    """Counts are of 2b - 1 in whole numbers: with a client more, within its clip or not, they move by one."""
    rows = [np.full(D, 1e-3, np.float32), np.full(D, 1e9, np.float32)]
    mechanism = Central(1.0, 1.0, 10, adaptive=AdaptiveClip(count_noise=3.0))
    rate = mechanism.adaptive.learning_rate
    logs = [math.log(released(mechanism, rows[:1] * 3 + more).next.clip) for more in ([], rows[:1], rows[1:])]
    assert logs[1] - logs[0] == pytest.approx(-rate * 0.5 / 10)
    assert logs[2] - logs[0] == pytest.approx(rate * 0.5 / 10)
