"""What a plan says about privacy: the trade-off against its own formulas, and refused combinations."""

from __future__ import annotations

import json
import math

import pytest

import fedcore as fc
from fedcore.cli import main
from fedcore.errors import PrivacyError
from fedcore.privacy.combination import refusals
from fedcore.privacy.trade_off import trade_off

pytest.importorskip("dp_accounting", reason="plans need dp-accounting, of the extra `train`")

PLAN = {"epsilon": 4.0, "delta": 1e-6, "rounds": 10, "clients": 50, "population": 50, "dimension": 10_000}


def test_the_trade_off_is_noise_over_clip_and_clients():
    got = trade_off(**PLAN, sampling="none")
    assert fc.privacy.epsilon(noise_multiplier=got.noise_multiplier, rounds=10, delta=1e-6) == pytest.approx(
        4, rel=1e-4
    )
    assert got.noise_per_number == got.noise_multiplier / 50
    assert got.relative_error == pytest.approx(got.noise_multiplier * 100 / 50)
    assert got.clients_needed == math.ceil(100 * got.noise_multiplier)
    # noise at home: replaced reports at twice the sensitivity, and the noise of all clients adds up
    assert got.local_multiplier == pytest.approx(2 * got.noise_multiplier, rel=2e-4)
    assert got.local_relative_error == pytest.approx(2 * math.sqrt(50) * got.relative_error, rel=2e-4)


def test_sampling_lowers_the_noise_and_is_taken_from_clients_and_population():
    sampled = trade_off(**PLAN | {"population": 1000})
    assert sampled.noise_multiplier < 0.5 * trade_off(**PLAN).noise_multiplier
    plan = {"noise_multiplier": sampled.noise_multiplier, "sampling_rate": 0.05, "rounds": 10, "delta": 1e-6}
    assert fc.privacy.epsilon(**plan) == pytest.approx(4, rel=1e-4)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"clients": 60}, "clients: got 60 a round of a population of 50"),
        ({"dimension": 0}, "dimension: got 0"),
        ({"epsilon": -1.0}, "epsilon: got -1.0"),
        ({"delta": 0.5}, "delta: got 0.5 for a population of 50"),
        ({"sampling": "seen"}, "sampling: got 'seen'"),
    ],
)
def test_bad_plans_are_named(changed, named):
    with pytest.raises(PrivacyError) as caught:
        trade_off(**PLAN | changed)
    assert str(caught.value).startswith(named)


def test_rules_that_look_at_the_data_and_noise_on_both_factors_are_refused():
    assert refusals() == refusals(method=fc.lora.FFALoRA()) == refusals(method=fc.lora.FedSB()) == []
    (krum,) = refusals(rule="krum")
    assert "'krum' chooses its coefficients from the clients' data" in krum
    (mixed,) = refusals(before=True)
    assert "a pre-aggregation" in mixed
    (delta,) = refusals(space="delta")
    assert "without bound" in delta
    (both,) = refusals(method=fc.lora.FedIT())
    assert "fedit: sends both factors" in both
    assert refusals(method=fc.lora.FedIT(), both_factors=True) == []
    (personal,) = refusals(method=fc.lora.FedSALoRA())
    assert "keep factors of their own" in personal


def test_the_command_prints_a_row_a_budget_and_refuses_both_factors(capsys):
    fleet = {"rounds": 10, "clients": 50, "population": 50, "dimension": 10000, "sampling": "none"}
    options = [text for name, value in fleet.items() for text in (f"--{name}", str(value))]
    assert main(["plan", "--epsilon", "2,8", "--json", *options]) == 0
    said = json.loads(capsys.readouterr().out)
    assert [row["epsilon"] for row in said["privacy"]] == [2, 8]
    assert said["privacy"][0]["noise_multiplier"] > 2 * said["privacy"][1]["noise_multiplier"]
    assert said["methods"]["ffa_lora"]["refused"] == []
    assert "both factors" in said["methods"]["fedit"]["refused"][0]
    assert main(["plan", "--epsilon", "8", "--method", "ffa_lora", *options]) == 0
    shown = capsys.readouterr().out
    assert f" {trade_off(epsilon=8.0, delta=1e-5, **fleet).clients_needed} " in shown
    assert "tells more about the noise" in shown
    assert main(["plan", "--epsilon", "8", "--method", "fedit", *options]) == 1
    assert "multiply in B · A" in capsys.readouterr().err
    assert main(["plan", "--epsilon", "8", *options]) == 0
    shown = capsys.readouterr().out
    assert "fedit, flora, fedex_lora" in shown.replace("\n", " ")
    assert shown.count("multiply in B · A") == 1
    assert main(["plan", "--epsilon", "eight"]) == 1
    assert "--epsilon: got 'eight'" in capsys.readouterr().err
    assert main(["plan", "--method", "ffa_lora", "--json"]) == 0
    assert "privacy" not in json.loads(capsys.readouterr().out)
