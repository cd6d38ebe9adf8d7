"""Central releases: what is clipped, what the noise is calibrated to, and what is refused because it is not private.

The sampler is injected here, and the clip is the oracle's, so that sums can be followed exactly.
"""

from __future__ import annotations

import hashlib
import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from oracles import clipping

import fedcore as fc
from fedcore.errors import LayoutError, PrivacyError, ShapeError
from fedcore.privacy import AdaptiveClip, Central, Noise, central
from fedcore.privacy.statistic import error_of_delta, statistic_of

KEY = bytes(range(32))


class Sampler:
    """Stands for the kernels: noise that is a function of key and counter, or none; remembers what was asked for."""

    def __init__(self, on=True):
        self.on, self.calls = on, []

    def __call__(self, size, deviation, key, part, counter=0, stream=None):
        self.calls.append((size, deviation, key, part))
        words = [hashlib.sha256(b"%s %d %s" % (key, i, part.encode())).digest()[:4] for i in range(size)]
        return self.on * np.array([int.from_bytes(word, "big") % 2001 - 1000 for word in words], np.int64)


@pytest.fixture
def sampler(monkeypatch):
    found = Sampler()
    monkeypatch.setattr(central, "draw", found)
    monkeypatch.setitem(sys.modules, "fedcore.ops.clip_noise_accumulate", clipping)
    monkeypatch.setitem(sys.modules, "fedcore.ops.clip_round", clipping)
    return found


@pytest.fixture
def silent(sampler):
    sampler.on = False
    return sampler


def noise_for(mechanism, updates, label="a round", **context):
    digest = mechanism.inputs_digest(updates, label=label, **context)
    return Noise(KEY, digest, mechanism.noise_multiplier, 10**6, 2, 1.5)


def released(mechanism, updates, label="a round", **context):
    return mechanism.release(updates, noise_for(mechanism, updates, label, **context), label=label, **context)


def vectors(n, d=50, seed=0, size=1.0):
    return [size * x.astype(np.float32) for x in np.random.default_rng(seed).normal(size=(n, d))]


MODULES = {"m.k": (6, 9), "m.q": (8, 12)}


def adapter(seed, rank=3, b_scale=1.0, client="", dense=False):
    rng = np.random.default_rng(seed)
    tensors = {}
    for module, (d_out, d_in) in MODULES.items():
        a = np.linalg.qr(np.random.default_rng(7).normal(size=(d_in, rank)))[0].T
        tensors[f"{module}.lora_A.weight"] = np.ascontiguousarray(a, np.float32)
        tensors[f"{module}.lora_B.weight"] = (b_scale * rng.normal(size=(d_out, rank))).astype(np.float32)
    if dense:
        tensors["m.head.weight"] = rng.normal(size=(2, 5)).astype(np.float32)
    return fc.Update.from_tensors(tensors, client_id=client, scaling=dict.fromkeys(MODULES, 2.0))


# the mechanism


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
        "adaptive": (Central(clip=2.0, noise_multiplier=1.0, expected_clients=3, adaptive=AdaptiveClip()), rows),
    }
    for other, inputs in others.values():
        with pytest.raises(PrivacyError, match="reserved for other inputs or settings"):
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


# what of an update is released


@pytest.mark.parametrize("method", [fc.lora.FFALoRA(), fc.lora.FedSVD(), fc.lora.RoLoRA()])
def test_b_alone_is_clipped_and_moved_where_a_is_frozen(silent, method):
    """With orthonormal A the clip is of the update: ‖B‖ = ‖Δ‖/s. A of a client is not read at all."""
    reference, clients = adapter(0), [adapter(k, client=f"c{k}") for k in (1, 2)]
    for update in clients:
        for module in MODULES:
            b = update.tensors[f"{module}.lora_B.weight"].astype(np.float64)
            delta = 2.0 * b @ update.tensors[f"{module}.lora_A.weight"]
            assert np.linalg.norm(delta) == pytest.approx(2.0 * np.linalg.norm(b), rel=1e-6)
    mechanism = Central(clip=1e3, noise_multiplier=1.0, expected_clients=2)
    got = released(mechanism, clients, method=method, reference=reference)
    for module in MODULES:
        b = np.mean([u.tensors[f"{module}.lora_B.weight"].astype(np.float64) for u in clients], axis=0)
        assert got.mean.tensors[f"{module}.lora_B.weight"] == pytest.approx(b, abs=1.01 * clipping.clip_grid(1e3, 42))
        a = f"{module}.lora_A.weight"
        assert np.array_equal(got.mean.tensors[a], reference.tensors[a])
    assert got.public["output"] == got.mean.digest()
    norm = math.sqrt(sum(((clients[0].tensors[n] - reference.tensors[n]) ** 2).sum() for n in reference.tensors))
    assert got.private["norms"][""][0] == pytest.approx(norm, rel=1e-5)


def test_the_gauge_attack_is_clipped_in_the_space_of_what_is_noised(silent):
    """(tB, A/t) leaves Δ as it was; the B that is summed is t times as long, and is clipped for that."""
    reference, honest = adapter(0, b_scale=0.0), adapter(1, client="honest")
    tensors = dict(honest.tensors)
    for module in MODULES:
        tensors[f"{module}.lora_B.weight"] = tensors[f"{module}.lora_B.weight"] * np.float32(1e6)
        tensors[f"{module}.lora_A.weight"] = tensors[f"{module}.lora_A.weight"] / np.float32(1e6)
    attack = fc.Update.from_tensors(tensors, client_id="gauge", scaling=dict.fromkeys(MODULES, 2.0))
    mechanism = Central(clip=1.0, noise_multiplier=1.0, expected_clients=1)
    got = released(mechanism, [attack], method=fc.lora.FFALoRA(), reference=reference).mean
    moved = math.sqrt(
        sum(
            (got.tensors[n] - reference.tensors[n]).astype(np.float64).ravel()
            @ (got.tensors[n] - reference.tensors[n]).astype(np.float64).ravel()
            for n in got.tensors
        )
    )
    assert 0.97 < moved <= 1 + 1e-6


def test_the_core_of_fedsb_and_vectors_of_full_updates_are_their_own_statistic(silent):
    method, rank = fc.lora.FedSB(), 3
    fixed = method.fixed(adapter(3))
    rng = np.random.default_rng(5)

    def with_core(scale, client=""):
        cores = {module: scale * rng.normal(size=(rank, rank)) for module in MODULES}
        tensors = dict(fixed.tensors)
        for module, core in cores.items():
            tensors[f"{module}.lora_B.weight"] = (tensors[f"{module}.lora_B.weight"] @ core).astype(np.float32)
        return cores, fc.Update.from_tensors(tensors, client_id=client, scaling=fixed.scaling)

    before, reference = with_core(1.0)
    cores, update = with_core(1.0, "c")
    mechanism = Central(clip=20.0, noise_multiplier=1.0, expected_clients=1)
    context = {"method": method, "reference": reference, "fixed": fixed}
    got = released(mechanism, [update], **context)
    norm = math.sqrt(sum(((cores[m] - before[m]) ** 2).sum() for m in MODULES))
    assert got.private["norms"][""] == [pytest.approx(norm, rel=1e-5)]
    for name, tensor in update.tensors.items():
        assert got.mean.tensors[name] == pytest.approx(tensor, abs=0.1)
    assert mechanism.dimension(reference, method=method, fixed=fixed) == 2 * rank * rank
    with pytest.raises(PrivacyError, match="fixed: expected"):
        released(mechanism, [update], method=method, reference=reference)
    prompts = [fc.Update.from_tensors({"prompt": x.reshape(5, 10)}, client_id=f"{k}") for k, x in enumerate(vectors(2))]
    start = fc.Update.from_tensors({"prompt": np.ones((5, 10), np.float32)})
    moved = released(mechanism, prompts, reference=start).mean.tensors["prompt"]
    changes = [u.tensors["prompt"] - 1 for u in prompts]
    assert moved == pytest.approx(1 + np.sum(changes, axis=0), abs=2.1 * clipping.clip_grid(20.0, 50))


def test_what_is_not_private_is_refused_with_its_reason(sampler):
    reference, clients = adapter(0), [adapter(1)]
    mechanism = Central(clip=1.0, noise_multiplier=1.0, expected_clients=2)
    with pytest.raises(PrivacyError, match=r"t B, A / t.*without bound"):
        mechanism.inputs_digest(clients, reference=reference, label="a round")
    with pytest.raises(PrivacyError, match="fedit: both factors travel, and noise on both multiplies"):
        mechanism.inputs_digest(clients, reference=reference, method=fc.lora.FedIT(), label="a round")
    with pytest.raises(PrivacyError, match="reference: missing"):
        mechanism.inputs_digest(clients, method=fc.lora.FFALoRA(), label="a round")
    with pytest.raises(PrivacyError, match="weights: got unequal ones"):
        mechanism.release(vectors(2), noise_for(mechanism, vectors(2)), weights=[1, 2], label="a round")
    tilted = dict(reference.tensors) | {"m.k.lora_A.weight": 2 * reference.tensors["m.k.lora_A.weight"]}
    tilted = fc.Update.from_tensors(tilted, scaling=reference.scaling)
    with pytest.raises(PrivacyError, match=r"ffa_lora: module 'm.k': the rows of A are not orthonormal"):
        mechanism.inputs_digest(clients, reference=tilted, method=fc.lora.FFALoRA(), label="a round")
    straight = fc.privacy.orthonormal(tilted)
    for module in MODULES:
        a, b, a0, b0 = (u.tensors[f"{module}.lora_{f}.weight"] for u in (straight, tilted) for f in "AB")
        assert b.astype(np.float64) @ a == pytest.approx(b0.astype(np.float64) @ a0, abs=1e-5)
    assert mechanism.inputs_digest(clients, reference=straight, method=fc.lora.FFALoRA(), label="a round")


def test_both_factors_on_request_are_clipped_jointly_and_their_cost_is_public(silent):
    reference, clients = adapter(0), [adapter(1)]
    mechanism = Central(clip=0.5, noise_multiplier=1.0, expected_clients=1, both_factors=True)
    got = released(mechanism, clients, reference=reference, method=fc.lora.FedIT())
    moved = [(got.mean.tensors[n] - reference.tensors[n]).astype(np.float64).ravel() for n in reference.tensors]
    assert np.linalg.norm(np.concatenate(moved)) <= 0.5 + 1e-6
    cost = got.public["error_of_delta"]
    assert cost["a and b"] > cost["b"] > 0


def test_the_error_of_delta_is_what_noise_on_factors_does():
    """Against noise drawn here; the facts' 4.98 and 2.49 relative errors are of this kind."""
    reference, rng, tau = adapter(0), np.random.default_rng(1), 0.3
    for factors in (("b",), ("a",), ("a", "b")):
        squares = []
        for _ in range(400):
            total = 0.0
            for module in MODULES:
                a, b = (reference.tensors[f"{module}.lora_{f}.weight"].astype(np.float64) for f in "AB")
                noisy_a = a + tau * rng.normal(size=a.shape) * ("a" in factors)
                noisy_b = b + tau * rng.normal(size=b.shape) * ("b" in factors)
                total += ((2.0 * (noisy_b @ noisy_a - b @ a)) ** 2).sum()
            squares.append(total)
        assert error_of_delta(reference, factors, tau) == pytest.approx(math.sqrt(np.mean(squares)), rel=0.05)


# clips


def test_clips_a_module_add_up_in_squares_and_noise_covers_the_whole(silent):
    reference, clients = adapter(0, dense=True), [adapter(k, client=f"c{k}", dense=True, b_scale=50) for k in (1, 2)]
    mechanism = Central(clip=3.0, noise_multiplier=2.0, expected_clients=1, per_module=True)
    context = {"reference": reference, "method": fc.lora.FFALoRA()}
    got = released(mechanism, clients[:1], **context)
    assert got.public["clip"] == pytest.approx(dict.fromkeys(["m.k", "m.q", "m.head.weight"], 3 / math.sqrt(3)))
    for module in MODULES:
        name = f"{module}.lora_B.weight"
        moved = (got.mean.tensors[name] - reference.tensors[name]).astype(np.float64)
        assert 0.97 * math.sqrt(3) < np.linalg.norm(moved) <= math.sqrt(3) + 1e-5
    sizes = [18, 24, 10]
    grids = [clipping.clip_grid(math.sqrt(3), size) for size in sizes]
    assert [call[0] for call in silent.calls] == sizes
    assert [call[1] for call in silent.calls] == pytest.approx([2.0 * 3.0 / grid for grid in grids])
    assert len({call[3] for call in silent.calls}) == 3  # no two parts share their noise
    uneven = Central({"m.k": 1.0, "m.q": 2.0, "m.head.weight": 2.0}, 2.0, 1, per_module=True)
    assert released(uneven, clients, **context).public["noise_of_mean"] == pytest.approx(2.0 * 3.0)
    with pytest.raises(PrivacyError, match=r"clip: module 'm.head.weight' has no clip"):
        released(Central({"m.k": 1.0, "m.q": 2.0}, 2.0, 1, per_module=True), clients, **context)


def test_adaptive_clips_follow_the_quantile_at_a_share_of_the_noise(sampler):
    settings = AdaptiveClip(quantile=0.5, learning_rate=0.2, count_noise=4.0)
    mechanism = Central(clip=10.0, noise_multiplier=1.0, expected_clients=10, adaptive=settings)
    rows = vectors(10)  # norms near 7: all within the clip
    got = released(mechanism, rows)
    z = (1.0 - 1 / 64) ** -0.5
    grid = clipping.clip_grid(10.0, 50)
    assert sampler.calls == [(50, pytest.approx(z * 10 / grid), KEY, "sum "), (1, 8.0, KEY, "counts")]
    share = (10 + int(Sampler()(1, 0, KEY, "counts")[0])) / 2 / 10 + 0.5
    assert got.next.clip == pytest.approx(10.0 * math.exp(-0.2 * (share - 0.5)))
    assert got.next.noise_multiplier == 1.0
    # with the counts' cost put back the whole is what was charged
    assert 1 / z**2 + 1 / (2 * 4.0) ** 2 == pytest.approx(1.0)
    with pytest.raises(PrivacyError, match=r"count_noise: 0.5 on 1 counts .* expected above 0.5"):
        released(Central(10.0, 1.0, 10, adaptive=AdaptiveClip()), rows)


def test_adaptive_clips_converge_to_the_median_norm(silent):
    rows = [x * np.float32(0.2 + 0.1 * k) for k, x in enumerate(vectors(9))]
    median = float(np.median([np.linalg.norm(x) for x in rows]))
    mechanism = Central(clip=50.0, noise_multiplier=0.5, expected_clients=9, adaptive=AdaptiveClip(count_noise=9.0))
    for _ in range(60):
        mechanism = released(mechanism, rows).next
    assert mechanism.clip == pytest.approx(median, rel=0.15)


def test_each_module_has_a_count_of_its_own(silent):
    reference, clients = adapter(0), [adapter(1)]
    mechanism = Central(
        clip=1.0, noise_multiplier=1.0, expected_clients=1, per_module=True, adaptive=AdaptiveClip(count_noise=2.0)
    )
    got = released(mechanism, clients, reference=reference, method=fc.lora.FFALoRA())
    assert [call[0] for call in silent.calls] == [18, 24, 2]
    z = (1.0 - 2 / 16) ** -0.5
    assert silent.calls[0][1] == pytest.approx(z / clipping.clip_grid(math.sqrt(0.5), 18))
    assert set(got.next.clip) == set(MODULES)
    assert mechanism.dimension(reference, method=fc.lora.FFALoRA()) == 44


# small cohorts and bad input


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
