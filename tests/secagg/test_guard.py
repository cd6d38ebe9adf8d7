"""The leak guard, a client's policy, and methods that sums cannot serve."""

from __future__ import annotations

import pytest

import fedcore as fc
from fedcore.errors import (
    ConfigError,
    MissingError,
    PrivacyError,
)


def test_the_leak_guard_says_when_a_sum_protects_nobody():
    assert fc.secagg.leaks(10, hidden_size=256, tokens=[32] * 10) == []
    assert "256" in fc.secagg.leaks(7, hidden_size=256, tokens=[32] * 7)[0]
    assert "one client's vector" in fc.secagg.leaks(1)[0]
    assert "one client's vector" in fc.secagg.leaks(4, corrupt=3)[0]
    assert ["group 1" in text for text in fc.secagg.leaks(5, groups=[4, 1])] == [True]


def test_a_client_refuses_rounds_outside_its_policy(tmp_path):
    path = tmp_path / "policy.toml"
    path.write_text(
        'smallest_cohort = 8\nlargest_epsilon = 4.0\nadversary = "malicious"\nmethods = ["FedIT"]\ncorrupt = 0.1\n'
        f'model = "{"a" * 64}"\n'
    )
    policy = fc.secagg.Policy.load(path)
    p = fc.secagg.Parameters.choose(20, length=1, bound=1, adversary="malicious")
    bold = fc.secagg.Parameters.choose(20, length=1, bound=1, corrupt=0.05, adversary="malicious")
    good = {"parameters": p, "epsilon": 3.0, "model": "a" * 64, "method": "FedIT"}
    policy.check(fc.secagg.Offer(**good))
    few = fc.secagg.Parameters.choose(5, length=1, bound=1, adversary="malicious")
    kind = fc.secagg.Parameters.choose(20, length=1, bound=1)
    for change, why in (
        ({"parameters": None}, "in the clear"),
        ({"parameters": few}, "smallest_cohort"),
        ({"parameters": kind}, "trusts its server"),
        ({"parameters": bold}, "corrupt = 0.1, but the round allows for 1 of 20 members"),
        ({"epsilon": 4.1}, "largest_epsilon"),
        ({"epsilon": float("nan")}, "largest_epsilon"),
        ({"model": "b" * 64}, "model"),
        ({"method": "FLoRA"}, "methods"),
    ):
        with pytest.raises(PrivacyError, match=why):
            policy.check(fc.secagg.Offer(**(good | change)))
    open_ones = fc.secagg.Policy(secure=False)
    open_ones.check(fc.secagg.Offer(None))
    with pytest.raises(PrivacyError, match="smallest_cohort = 7, but the round sends vectors in the clear"):
        fc.secagg.Policy(secure=False, smallest_cohort=7).check(fc.secagg.Offer(None))
    for text, why in (
        ("cohort = 3", "unknown key 'cohort'"),
        ("smallest_cohort = 1", "smallest_cohort"),
        ("a", "policy"),
    ):
        path.write_text(text)
        with pytest.raises(ConfigError, match=why):
            fc.secagg.Policy.load(path)
    with pytest.raises(MissingError):
        fc.secagg.Policy.load(tmp_path / "none.toml")


def test_methods_that_need_more_than_sums_are_refused_by_name():
    fc.secagg.require_linear(fc.lora.FedIT())
    with pytest.raises(PrivacyError, match="FLoRA: its server needs each client's update"):
        fc.secagg.require_linear(fc.lora.FLoRA())
