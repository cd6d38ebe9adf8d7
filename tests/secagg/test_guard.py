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
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())  # as some editors begin a file
    assert fc.secagg.Policy.load(path) == policy
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
        ({"epsilon": float("nan")}, "epsilon: got nan, expected a number from 0 on"),
        ({"epsilon": -1.0}, "epsilon: got -1.0, expected a number from 0 on"),
        ({"epsilon": True}, "epsilon: got True, expected a number from 0 on"),
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


def test_a_policy_that_sparse_graphs_do_not_keep_names_what_would():
    """A round goes on while neighbourhoods keep their threshold: few honest clients are certain then."""
    about = {"length": 1, "bound": 1}
    p, policy = fc.secagg.Parameters.choose(1000, **about), fc.secagg.Policy(smallest_cohort=10)
    with pytest.raises(PrivacyError, match=r"only 2 honest .* in the sum \(800 with least_included=900\); refused$"):
        policy.check(fc.secagg.Offer(p))
    assert (
        "With least_included=900 it would hold at least 800, and a round would be void if more than 100" in p.explain()
    )
    kept = fc.secagg.Parameters.choose(1000, **about, least_included=900)
    policy.check(fc.secagg.Offer(kept))
    malicious = fc.secagg.Parameters.choose(300, **about, adversary="malicious")
    for one in (kept, malicious, fc.secagg.Parameters.choose(20, **about)):
        assert "it would hold" not in one.explain()


def test_methods_that_need_more_than_sums_are_refused_by_name():
    fc.secagg.require_linear(fc.lora.FedIT())
    with pytest.raises(PrivacyError, match="FLoRA: its server needs each client's update"):
        fc.secagg.require_linear(fc.lora.FLoRA())
