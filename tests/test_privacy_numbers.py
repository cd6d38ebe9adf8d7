"""Numbers of any kind and size: whole ones of NumPy are whole ones, and what is none is refused by name."""

from __future__ import annotations

import math

import numpy as np
import pytest
from correlated_runs import run_of, vectors
from private_budgets import KEY, A, B, budget

import fedcore as fc
from fedcore.errors import ConfigError, PrivacyError
from fedcore.federation.config_file import parse_config
from fedcore.privacy import AdaptiveClip, Central, Correlated, Distributed, Rounds
from fedcore.privacy.factorization import Factor
from fedcore.privacy.trade_off import trade_off

pytest.importorskip("dp_accounting", reason="budgets need dp-accounting, of the extra `train`")

OF_NUMPY = {
    "dimension": np.int64(10),
    "population": np.int64(500),
    "concentrated": np.bool_(False),
    "noise_multiplier": np.float32(2),
    "sampling_rate": np.float64(1),
    "epsilon": np.float32(8),
}


def test_numbers_of_numpy_open_the_same_budget_and_find_the_same_charge(tmp_path):
    noise = budget(tmp_path, population=500, epsilon=8).reserve(A)
    again = budget(tmp_path, **OF_NUMPY)
    assert again.reserve(A) == noise
    assert again.reserve(B).number == 3
    assert [type(charge.dimension) for charge in again.charges] == [int, int]
    assert [path.suffix for path in (tmp_path / "people.budget.keys").iterdir()] == [".sealed", ".sealed"]


def test_a_record_that_no_text_is_made_of_leaves_no_key(tmp_path, monkeypatch):
    from fedcore.privacy import budget as module

    run, real = budget(tmp_path), module.record_of
    monkeypatch.setattr(module, "record_of", lambda *given: real(*given) | {"stream": object()})
    with pytest.raises(TypeError):
        run.reserve(A)
    monkeypatch.undo()
    assert not (tmp_path / "people.budget.keys").exists()


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"run": b""}, "run: got b'', expected text"),
        ({"run": 3}, "run: got 3, expected text"),
        ({"unit": object()}, "unit: got <object"),
        ({"concentrated": "no"}, "concentrated: got 'no', expected True or False"),
        ({"noise_multiplier": None}, "noise_multiplier: got None"),
        ({"noise_multiplier": "2"}, "noise_multiplier: got '2'"),
        ({"noise_multiplier": 10**400}, "noise_multiplier: got an integer of 1329 bits, expected"),
        ({"sampling_rate": "1"}, "sampling_rate: got '1'"),
        ({"epsilon": 10**400}, "epsilon: got an integer of 1329 bits, expected"),
        ({"epsilon": 1e300}, "epsilon: got 1e+300, expected a number above 0, at most 1e+100"),
        ({"epsilon": math.inf}, "epsilon: got inf"),
        ({"spend": True}, "spend: got True"),
    ],
)
def test_what_is_no_number_or_text_is_refused_by_name_and_nothing_written(tmp_path, changed, named):
    with pytest.raises(PrivacyError) as caught:
        budget(tmp_path, **changed)
    assert str(caught.value).startswith(named)
    assert not list(tmp_path.iterdir())


def test_whole_numbers_of_numpy_make_the_mechanisms_that_whole_numbers_make(tmp_path):
    usual = {"clients": 10, "fewest": 8, "corrupt": 1, "dimension": 100}
    made = [
        Distributed(clip=1.0, noise_multiplier=1.0, seed=KEY, **given)
        for given in (usual, {name: np.int64(value) for name, value in usual.items()})
    ]
    row = np.ones(100, np.float32)
    assert made[0].inputs_digest(row) == made[1].inputs_digest(row)
    assert made[0].epsilon(1e-5, rounds=3) == made[1].epsilon(1e-5, rounds=np.int64(3))
    made = [Correlated(1.0, 1.0, kind(3), kind(8), kind(2), kind(2), kind(2)) for kind in (int, np.int64)]
    assert repr(made[0]) == repr(made[1])
    rounds = [
        Rounds(tmp_path / "r", one.factor, kind(10), sealing_key=KEY)
        for one, kind in zip(made, (int, np.int64), strict=True)
    ]
    assert made[0].inputs_digest(rounds[0]) == made[1].inputs_digest(rounds[1])
    Rounds(tmp_path / "s", Factor(*map(np.int64, (8, 2, 2, 2))), np.int64(10), sealing_key=KEY)
    plan = {"noise_multiplier": 1.0, "sampling_rate": 0.01, "delta": 1e-5}
    assert fc.privacy.epsilon(rounds=np.int64(3), **plan) == fc.privacy.epsilon(rounds=3, **plan)


@pytest.mark.parametrize("noise", [1e-200, 1e-310, 2.0**-19, 2e9, 1e300, 1e308, 10**400, math.nan])
def test_a_count_noise_that_is_not_accounted_is_refused_by_name(noise):
    with pytest.raises(PrivacyError, match=r"count_noise: got .*, expected a number from 3\.81e-06 to 1e\+09"):
        AdaptiveClip(count_noise=noise)


@pytest.mark.parametrize("quantile", [0, 1, -0.5, 1.5, math.nan, "half"])
def test_a_quantile_that_is_no_share_is_refused_by_name(quantile):
    with pytest.raises(PrivacyError, match=r"quantile: got .*, expected a share of the norms in \(0, 1\)"):
        AdaptiveClip(quantile=quantile)


def test_a_learning_rate_that_no_float_holds_is_refused_by_name():
    with pytest.raises(PrivacyError, match="learning_rate: got an integer of 1329 bits"):
        AdaptiveClip(learning_rate=10**400)


@pytest.mark.parametrize(
    ("lines", "named"),
    [
        ("epsilon = 8.0\nadaptive = { count_noise = 1e-200 }", "privacy.adaptive.count_noise: got 1e-200"),
        ("epsilon = 8.0\nadaptive = { count_noise = 1e300 }", "privacy.adaptive.count_noise: got 1e+300"),
        ("epsilon = 1e300", "privacy: epsilon: got 1e+300, expected at most 1e+100"),
    ],
)
def test_a_configuration_with_numbers_that_are_not_accounted_is_refused_by_key(lines, named):
    with pytest.raises(ConfigError) as caught:
        parse_config(f'[model]\nsource = "m"\n[[arms]]\nname = "a"\n[privacy]\ndelta = 1e-5\n{lines}\n', "f.toml")
    assert str(caught.value).startswith(f"f.toml: {named}")
    assert "\n" not in str(caught.value)


def test_no_noise_is_looked_for_an_epsilon_that_is_not_accounted():
    with pytest.raises(PrivacyError, match=r"epsilon: got 1e\+300, expected a number above 0, at most 1e\+100"):
        fc.privacy.noise_multiplier(epsilon=1e300, delta=1e-5)


@pytest.mark.parametrize("number", [3.0, "3", None, True])
def test_the_number_of_a_correlated_round_is_whole(tmp_path, number):
    mechanism = Correlated(1.0, 1.0, 2, rounds=4, separation=2)
    rounds, noise = run_of(mechanism, tmp_path, 10)
    for call in (
        lambda: mechanism.release(vectors(2, 10, 0), noise, rounds, number, clients=["a", "b"]),
        lambda: rounds.enter(number, "inputs", ["a", "b"]),
    ):
        with pytest.raises(PrivacyError, match=r"number: got .*, expected the number of a round, from 1 on"):
            call()
    assert rounds.entered == 0
    public = mechanism.release(vectors(2, 10, 0), noise, rounds, np.int64(1), clients=["a", "b"]).public
    assert type(public["round"]) is int


@pytest.mark.parametrize("noise", [None, bytes(32)])
def test_a_release_without_a_reserved_noise_is_refused_by_name(noise):
    rows = [np.ones(10, np.float32)]
    with pytest.raises(PrivacyError, match=r"noise: got .*, expected what Budget\.reserve gives"):
        Central(1.0, 2.0, 3).release(rows, noise, label="a round")


def test_numbers_of_numpy_are_kept_as_pythons_own():
    whole, real = np.int64, np.float32
    adaptive = AdaptiveClip(real(0.5), real(0.25), real(2))
    for made, again in [
        (Central(1.5, 2.0, 3), Central(real(1.5), real(2), whole(3))),
        (
            Central({"a": 1.5}, 2.0, 3, per_module=True, adaptive=AdaptiveClip(0.5, 0.25, 2.0)),
            Central({"a": real(1.5)}, real(2), whole(3), per_module=True, adaptive=adaptive),
        ),
        (Correlated(1.5, 2.0, 3, 8, 2), Correlated(real(1.5), real(2), whole(3), whole(8), whole(2))),
        (
            Distributed(1.0, 1.0, 10, 8, 1, 100, KEY, 0.5, 2.0**-8),
            Distributed(real(1), real(1), *map(whole, (10, 8, 1, 100)), KEY, real(0.5), real(2.0**-8)),
        ),
    ]:
        assert repr(again) == repr(made)
        assert again == made


def test_a_trade_off_takes_the_numbers_that_a_budget_takes():
    plan = {"rounds": 10, "clients": 10, "population": 1000, "dimension": 100}
    expected = trade_off(epsilon=8.0, delta=1e-5, **plan)
    of_numpy = {name: np.int64(value) for name, value in plan.items()}
    assert trade_off(epsilon=np.float64(8), delta=1e-5, **of_numpy) == expected
    for name, value, named in [
        ("clients", True, r"clients: got True, expected a whole number from 1 to 2\^53"),
        ("clients", 10**5000, r"clients: got an integer of 16610 bits, expected a whole number from 1 to 2\^53"),
        ("rounds", 2.0, r"rounds: got 2\.0, expected a whole number from 1 to 2\^53"),
    ]:
        with pytest.raises(PrivacyError, match=f"^{named}"):
            trade_off(**{"epsilon": 8.0, "delta": 1e-5, **plan, name: value})


def test_a_clip_without_end_is_refused_in_one_line():
    with pytest.raises(PrivacyError, match=r"^clip: got an integer of 16610 bits, expected a number above 0"):
        Central(10**5000, 2.0, 3)
    with pytest.raises(PrivacyError, match=r"^delta: got an integer of 16610 bits"):
        fc.privacy.epsilon(noise_multiplier=1.0, rounds=1, delta=10**5000)
