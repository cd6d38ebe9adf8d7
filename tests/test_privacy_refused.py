"""What cannot be released is refused before anybody is charged for it, and nobody counts twice."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from correlated_runs import run_of
from private_releases import adapter, noise_for

import fedcore as fc
from fedcore.errors import DTypeError, PrivacyError, RangeError, ShapeError
from fedcore.gaussian_table import MOST
from fedcore.privacy import AdaptiveClip, Central, Correlated, Distributed
from fedcore.privacy.adaptive import drawn_shares
from fedcore.privacy.limits import LARGEST_CLIP, LEAST_CLIP

FFA = {"reference": adapter(0), "method": fc.lora.FFALoRA()}


def central(**changed) -> Central:
    return Central(**{"clip": 1.0, "noise_multiplier": 1.0, "expected_clients": 2} | changed)


def correlated(**changed) -> Correlated:
    usual = {"clip": 1.0, "noise_multiplier": 1.0, "expected_clients": 2, "rounds": 4, "separation": 2}
    return Correlated(**usual | changed)


def distributed(**changed) -> Distributed:
    usual = {"clip": 1.0, "noise_multiplier": 1.0, "clients": 4, "fewest": 4, "corrupt": 0, "dimension": 100}
    return Distributed(**usual | {"seed": bytes(32)} | changed)


# one client, one term


def test_a_client_that_sends_two_updates_is_refused_and_those_without_a_name_are_not():
    twice = [adapter(seed, client="mallory") for seed in (1, 2)]
    with pytest.raises(PrivacyError, match="client 'mallory': sent two updates, expected one"):
        central().inputs_digest(twice, **FFA, label="a round")
    assert central().inputs_digest([adapter(1), adapter(2)], **FFA, label="a round")


def test_the_clients_of_a_correlated_round_are_those_that_the_updates_name(tmp_path):
    """Else one who took part could come again at once, under the name of somebody who may."""
    mechanism = correlated()
    rounds, noise = run_of(mechanism, tmp_path, mechanism.size(FFA["reference"], method=FFA["method"]))
    updates = [adapter(1, client="a"), adapter(2, client="b")]
    for clients in (["a", "c"], ["b", "a"]):
        with pytest.raises(PrivacyError, match=r"clients: '.' stands where the update is of client '.'"):
            mechanism.release(updates, noise, rounds, 1, clients=clients, **FFA)
    assert rounds.entered == 0
    mechanism.release(updates, noise, rounds, 1, clients=["a", "b"], **FFA)


# what cannot be released


@pytest.mark.parametrize("make", [central, correlated, distributed])
@pytest.mark.parametrize(
    "clip", [1e200, 1e40, 2 * LARGEST_CLIP, LEAST_CLIP / 2, 0, -1.0, math.nan, math.inf, True, "1"]
)
def test_a_clip_that_no_sum_takes_is_refused(make, clip):
    with pytest.raises(PrivacyError, match=r"clip: got .*, expected a number above 0, from 2\*\*-60 to 2\*\*60"):
        make(clip=clip)


@pytest.mark.parametrize("make", [central, correlated, distributed])
@pytest.mark.parametrize("multiplier", [0.0, 1e-200, 1e200, math.nan, "1"])
def test_a_noise_multiplier_that_is_not_accounted_is_refused(make, multiplier):
    with pytest.raises(PrivacyError, match="noise_multiplier: got"):
        make(noise_multiplier=multiplier)


@pytest.mark.parametrize("clip", [LEAST_CLIP, LARGEST_CLIP])
def test_at_the_ends_of_the_range_a_release_is_finite(clip):
    rows = [np.full(40, sign * 3e38, np.float32) for sign in (1, 1, -1)]
    mechanism = central(clip=clip, noise_multiplier=1e4, expected_clients=1)
    found = mechanism.release(rows, noise_for(mechanism, rows), label="a round").mean
    assert np.isfinite(found).all()
    assert found.astype(float).std() / clip == pytest.approx(1e4, rel=0.5)


@pytest.mark.parametrize(
    ("mechanism", "rows", "error", "named"),
    [
        (central(), [np.zeros(10)], DTypeError, "float64"),
        (central(), [np.zeros(20, np.float32)[::2]], ShapeError, "row 0: its elements are not contiguous"),
        (central(), [np.zeros(4, np.float32), np.zeros(4, np.float16)], DTypeError, "row 1: got float16"),
        (central(adaptive=AdaptiveClip()), [np.zeros(10, np.float32)], PrivacyError, "count_noise: 0.1 on 1 counts"),
        (
            central(adaptive=AdaptiveClip(count_noise=1e9)),
            [np.zeros(10, np.float32)],
            PrivacyError,
            "count_noise: 1e\\+09 makes noise of 2e\\+09 steps, expected at most 1e\\+09",
        ),
        (
            central(noise_multiplier=1e6),
            [np.zeros(10_000, np.float32)],
            PrivacyError,
            "noise_multiplier: 1e\\+06 at clip 1 of 10000 numbers makes noise of .* steps",
        ),
    ],
    ids=["fp64", "not contiguous", "mixed", "counts cost more", "count noise", "noise"],
)
def test_what_release_would_refuse_has_no_digest_to_reserve_for(mechanism, rows, error, named):
    with pytest.raises(error, match=named):
        mechanism.inputs_digest(rows, label="a round")


def test_a_run_whose_noise_cannot_be_drawn_has_no_digest_to_reserve_for(tmp_path):
    mechanism = correlated(noise_multiplier=1e6)
    with pytest.raises(PrivacyError, match=r"noise_multiplier: 1e\+06 for 10000 numbers and 2 participations makes"):
        run_of(mechanism, tmp_path, 10_000)


def test_parts_whose_clips_are_too_small_for_the_noise_of_all_are_refused():
    clips = {"m.k": 1.0, "m.q": 2.0**-30}
    with pytest.raises(PrivacyError, match=r"at clip 9\.31323e-10 of 24 numbers makes noise of"):
        central(clip=clips, per_module=True).inputs_digest([], **FFA, label="a round")


def test_clips_that_adapt_stay_where_mechanisms_take_them():
    for rate, far in ((1e4, -(10**9)), (1e4, 10**9), (0.2, 0)):
        moved = AdaptiveClip(learning_rate=rate).moved({"a": 1.0, "b": 1e-9}, [far, 0], 10)
        central(clip=moved, per_module=True)
        assert moved["b"] / moved["a"] >= 2.0**-10
    assert AdaptiveClip(learning_rate=0.2).moved({"": 3.0}, [4], 10) == {"": 3.0 * math.exp(-0.2 * 0.2)}


@pytest.mark.parametrize(("modules", "size", "z"), [(32, 65_536, 8.0), (226, 524_288, 2.0), (1, 2_000_000, 2000.0)])
def test_clips_that_adapt_stay_where_their_noise_is_drawn(modules, size, z):
    """One module that no update touches, the others at their median; and one clip of all, which nothing holds back."""
    sizes = {f"m{i}": size for i in range(modules)}
    mechanism = central(
        noise_multiplier=z, per_module=True, adaptive=AdaptiveClip(count_noise=8000.0, learning_rate=1.0)
    )
    shares = drawn_shares(sizes, mechanism._multiplier(modules))
    for _ in range(20):
        mechanism._check_drawn(sizes)
        clips = mechanism._clips(sizes)
        mechanism = replace(mechanism, clip=mechanism.adaptive.moved(clips, [2] + [0] * (modules - 1), 2, shares))
    moved = mechanism._clips(sizes)
    assert moved["m0"] < clips["m0"] if modules == 1 else 2.0**-10 < moved["m0"] / moved["m1"] < 0.1
    mechanism._check_drawn(sizes)


def test_adaptive_clips_are_refused_at_the_first_where_later_ones_could_not_be_drawn():
    settings = {"noise_multiplier": 6000.0, "adaptive": AdaptiveClip(count_noise=1e6)}
    with pytest.raises(PrivacyError, match=r"noise_multiplier: 6000.* makes noise of 1\.2e\+09 .* no adaptive clips"):
        central(**settings)._check_drawn({"": 2_000_000})
    central(**settings | {"adaptive": None})._check_drawn({"": 2_000_000})


def test_tensors_have_the_digest_and_the_release_of_the_arrays_that_they_are():
    torch = pytest.importorskip("torch", reason="tensors need torch")
    mechanism, rows = central(), [0.1 * np.arange(10, dtype=np.float32), np.ones(10, np.float32)]
    tensors = [torch.from_numpy(row).requires_grad_() for row in rows]
    arrays = noise_for(mechanism, rows)
    assert noise_for(mechanism, tensors) == arrays
    assert np.array_equal(*(mechanism.release(each, arrays, label="a round").mean for each in (rows, tensors)))
    short = [tensor.to(torch.bfloat16) for tensor in tensors]
    assert noise_for(mechanism, short) != arrays
    assert np.isfinite(mechanism.release(short, noise_for(mechanism, short), label="a round").mean).all()


def halves(b: float = 0.0, **changed) -> fc.Update:
    """An fp16 adapter whose B holds `b` somewhere."""
    tensors = {name: tensor.astype(np.float16) for name, tensor in adapter(0).tensors.items()}
    tensors["m.q.lora_B.weight"][0, 0] = b
    return adapter(0).with_tensors(tensors | changed)


FITS = {"method": fc.lora.FFALoRA(), "label": "a round"}


def test_noise_that_a_tensor_may_not_hold_is_refused_before_its_charge():
    """A clip and 12 standard deviations of half a clip, beside what the tensor holds, are above 65504."""
    wide = central(clip=9400.0)
    for call in (wide.inputs_digest, lambda _, **given: wide.dimension(given["reference"], method=given["method"])):
        with pytest.raises(
            RangeError, match=r"tensor 'm\.k\.lora_B\.weight': holds up to [12].* moved by 6\.58e\+04.*16"
        ):
            call([], reference=halves(), **FITS)
    with pytest.raises(RangeError, match=r"tensor 'm\.q\.lora_B\.weight': holds up to 2\.2e\+04"):
        central(clip=6300.0).inputs_digest([], reference=halves(22000.0), **FITS)
    assert central(clip=6300.0).inputs_digest([], reference=halves(21000.0), **FITS)
    for fine in (adapter(0), halves(**{"m.q.lora_B.weight": adapter(0).tensors["m.q.lora_B.weight"]})):
        wide = central(clip=5000.0)
        assert wide.release([], noise_for(wide, [], reference=fine, method=FITS["method"]), reference=fine, **FITS)


def test_more_clients_than_expected_reach_further_and_a_module_as_far_as_its_clip():
    many = [adapter(0, client=str(i)).with_tensors(halves().tensors) for i in range(8)]
    with pytest.raises(RangeError, match=r"moved by 6\.6e\+04"):
        central(clip=6600.0).inputs_digest(many, reference=halves(), **FITS)
    assert central(clip=6600.0).inputs_digest(many[:2], reference=halves(), **FITS)
    parts = central(clip={"m.k": 1.0, "m.q": 20000.0}, per_module=True)
    with pytest.raises(
        RangeError, match=r"tensor 'm\.k\.lora_B\.weight': .* moved by 1\.2e\+05"
    ):  # its noise is shared
        parts.inputs_digest([], reference=halves(), **FITS)


def test_a_core_moves_a_tensor_by_what_stands_around_it():
    fixed, given = halves(), {"method": fc.lora.FedSB(), "label": "a round"}
    rows = np.linalg.norm(np.float64(fixed.tensors["m.k.lora_B.weight"]), axis=1).max()
    clip = 65000 / (7 * rows)
    assert central(clip=clip).inputs_digest([], reference=fixed, fixed=fixed, **given)
    with pytest.raises(RangeError, match=r"m\.k\.lora_B\.weight.* does not fit float16"):
        central(clip=1.02 * clip).inputs_digest([], reference=fixed, fixed=fixed, **given)


def test_a_reference_that_is_not_finite_is_refused_before_a_charge():
    with pytest.raises(RangeError, match=r"tensor 'm\.q\.lora_B\.weight': holds up to nan"):
        central().inputs_digest([], reference=halves(np.nan), **FITS)


def test_a_method_that_sends_both_factors_is_not_for_correlated_noise(tmp_path):
    mechanism = correlated()
    rounds, noise = run_of(mechanism, tmp_path, 100)
    with pytest.raises(PrivacyError, match="both factors travel"):
        mechanism.release([adapter(1)], noise, rounds, 1, clients=["a"], reference=adapter(0), method=fc.lora.FedIT())
    assert rounds.entered == 0


def test_correlated_noise_that_a_tensor_may_not_hold_is_refused_before_its_run_is_opened():
    wide, method = correlated(clip=9000.0), FITS["method"]
    farthest = 9000 + 12 * 9000 * wide.factor.noise_of_rounds.max() / 2
    with pytest.raises(RangeError, match=f"moved by {farthest:.4g}".replace("+", r"\+")):
        wide.size(halves(), method=method)
    assert wide.size(adapter(0), method=method) == sum(3 * rows for rows in (6, 8))


# noise of many steps


def test_distributed_noise_of_many_steps_takes_a_coarser_grid_by_itself():
    """Eight clients of 2e7 numbers at ε = 1 over 100 rounds; and noise that a fine grid would not hold."""
    wide = distributed(noise_multiplier=50.0, clients=8, fewest=8, dimension=20_000_000)
    assert 1e6 < wide.sigma < MOST
    fine, huge = distributed(), distributed(noise_multiplier=1e6)
    assert huge.step > fine.step
    assert huge.modulus <= 2**32
    assert huge.sigma >= 2**20  # and no coarser than it needs
    row = np.full(100, 0.1, np.float32)
    messages = sum(huge.encode(row, bytes([i]) * 32).astype(np.uint64) for i in range(4)) % huge.modulus
    error = huge.decode(messages, range(4)) - 4 * row
    assert error.std() == pytest.approx(1e6, rel=0.3)
    with pytest.raises(PrivacyError, match=r"grid: 1 makes a client's noise 0\.25 steps, expected 0\.5 to 1e\+09"):
        distributed(noise_multiplier=0.5, grid=1.0)


# noise belongs to the cores that are summed


def test_cores_are_taken_of_products_once_and_noise_is_keyed_by_them(monkeypatch):
    method, real, calls = fc.lora.FedSB(), np.linalg.pinv, []
    fixed = adapter(0)
    given = {"method": method, "reference": fixed, "fixed": fixed, "label": "a round"}
    first = central().inputs_digest([adapter(1)], **given)

    def other(matrix):
        calls.append(1)
        return real(matrix) * (1 + 2.0**-22 * len(calls))

    monkeypatch.setattr(np.linalg, "pinv", other)
    assert central().inputs_digest([adapter(1)], **given) != first
    calls.clear()
    terms = central()._terms([adapter(1)], method, fixed, fixed, 1)
    digest, modules = terms.digest([]), len(calls)
    assert modules == 2
    assert terms.digest([]) == digest
    assert np.array_equal(terms.rows(0, 1, list(terms.sizes))[0], terms.rows(0, 1, list(terms.sizes))[0])
    assert len(calls) == modules
