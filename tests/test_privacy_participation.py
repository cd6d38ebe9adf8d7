"""Who takes part in which round of correlated noise, and what its rounds take: the schema, methods, settings."""

from __future__ import annotations

import math

import numpy as np
import pytest
from correlated_runs import KEY, run_of, vectors

import fedcore as fc
from fedcore.errors import FormatError, PrivacyError
from fedcore.privacy import Correlated, Rounds
from fedcore.privacy.factorization import Factor


def test_a_client_that_takes_part_too_soon_or_too_often_is_refused_and_nothing_written(tmp_path):
    factor = Factor(9, 3, 2, 3)
    rounds = Rounds(tmp_path / "run", factor, 5, sealing_key=KEY)
    rounds.enter(1, "one", ["alice", "y"])
    rounds.enter(2, "two", ["z"])
    with pytest.raises(PrivacyError, match=r"client 'alice': took part in round 1, .* leave it out until round 4"):
        rounds.enter(3, "three", ["u", "alice"])
    with pytest.raises(PrivacyError, match="clients: one is named twice in round 3"):
        rounds.enter(3, "three", ["u", "u"])
    assert rounds.entered == 2
    rounds.enter(3, "three", [])
    fresh = Rounds(tmp_path / "run", factor, 5, sealing_key=KEY)
    fresh.enter(4, "four", ["alice"])
    for number in (5, 6):
        fresh.enter(number, f"{number}", [])
    with pytest.raises(PrivacyError, match="client 'alice': took part 2 times, which is all"):
        fresh.enter(7, "seven", ["alice"])
    assert "alice" not in (tmp_path / "run").read_text()


def test_a_rounds_noise_serves_one_set_of_inputs_and_clients(tmp_path):
    """Counters of two sums never overlap: a round has one of each, and rounds have no gap."""
    d, mechanism = 20, Correlated(1.0, 1.0, 1, rounds=2, separation=2)
    rounds, noise = run_of(mechanism, tmp_path, d)
    mechanism.release(vectors(1, d, 0), noise, rounds, 1, clients=["x"])
    for rows, names in ((vectors(1, d, 1), ["x"]), (vectors(1, d, 0), ["y"]), (vectors(2, d, 0), ["x", "y"])):
        with pytest.raises(PrivacyError, match=r"round 1: was entered with other inputs, .* go on with round 2"):
            mechanism.release(rows, noise, rounds, 1, clients=names)
    for number in (0, 3, -1):
        with pytest.raises(PrivacyError, match=rf"round {number}: 1 of 2 rounds were entered"):
            mechanism.release(vectors(1, d, 0), noise, rounds, number, clients=["z"])
    mechanism.release(vectors(1, d, 0), noise, rounds, 2, clients=["z"])
    with pytest.raises(PrivacyError, match=r"round 3: 2 of 2 rounds were entered"):
        mechanism.release(vectors(1, d, 0), noise, rounds, 3, clients=["u"])
    with pytest.raises(PrivacyError, match="clients: got 2 names of 1 updates"):
        mechanism.release(vectors(1, d, 0), noise, rounds, 2, clients=["u", "v"])


def test_rounds_of_another_plan_or_changed_files_are_refused(tmp_path):
    mechanism = Correlated(1.0, 1.0, 1, rounds=4, separation=2)
    rounds, noise = run_of(mechanism, tmp_path, 20)
    with pytest.raises(PrivacyError, match=r"separation: got 4, and the rounds at .* were started with 2"):
        Rounds(tmp_path / "run", Factor(4, 4, 2, 2), 20, sealing_key=KEY)
    with pytest.raises(PrivacyError, match=r"rounds: those at .* are for terms of 20 numbers"):
        mechanism.release(vectors(1, 30, 0), noise, rounds, 1, clients=["x"])
    head = rounds.head
    rounds.enter(1, "one", ["x"])
    rounds.require(head)
    text = (tmp_path / "run").read_text()
    (tmp_path / "run").write_text(text.replace('"inputs":"one"', '"inputs":"two"'))
    with pytest.raises(FormatError, match="line 2 was changed"):
        rounds.enter(2, "two", ["y"])
    with pytest.raises(PrivacyError, match="sealing_key: got 5 bytes, expected 32 random bytes"):
        Rounds(tmp_path / "other", mechanism.factor, 20, sealing_key=b"short")


def test_of_lora_updates_the_factor_that_travels_is_released(tmp_path):
    rng = np.random.default_rng(0)
    a = np.linalg.qr(rng.normal(size=(9, 2)))[0].T

    def adapter(scale):
        b = (scale * rng.normal(size=(6, 2))).astype(np.float32)
        tensors = {"m.lora_A.weight": a.astype(np.float32), "m.lora_B.weight": b}
        return fc.Update.from_tensors(tensors, scaling={"m": 2.0})

    reference, update = adapter(0.0), adapter(0.1)
    mechanism = Correlated(2.0, 1e-3, 1, rounds=4, separation=2)
    context = {"reference": reference, "method": fc.lora.FFALoRA()}
    size = mechanism.size(reference, method=context["method"])
    assert size == 12
    rounds, noise = run_of(mechanism, tmp_path, size)
    got = mechanism.release([update], noise, rounds, 1, clients=["x"], **context).mean
    b = "m.lora_B.weight"
    assert got.tensors[b] == pytest.approx(update.tensors[b], abs=0.05)
    assert got.tensors["m.lora_A.weight"] == pytest.approx(reference.tensors["m.lora_A.weight"], abs=0)
    with pytest.raises(PrivacyError, match="rolora: sends other factors from round to round"):
        mechanism.release([update], noise, rounds, 2, clients=["y"], reference=reference, method=fc.lora.RoLoRA())


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"clip": 0.0}, "clip: got 0.0"),
        ({"noise_multiplier": math.inf}, "noise_multiplier: got inf"),
        ({"rounds": 0}, "rounds: got 0"),
        ({"rounds": 2.5}, "rounds: got 2.5"),
        ({"expected_clients": 0}, "expected_clients: got 0"),
        ({"separation": 11}, "separation: got 11 of 10 rounds"),
        ({"participations": 0}, "participations: got 0"),
        ({"bands": 6}, "bands: got 6, expected at most the separation 5"),
    ],
)
def test_bad_settings_are_named(changed, named):
    settings = {"clip": 1.0, "noise_multiplier": 1.0, "expected_clients": 2, "rounds": 10, "separation": 5}
    with pytest.raises(PrivacyError) as caught:
        Correlated(**settings | changed)
    assert str(caught.value).startswith(named)
