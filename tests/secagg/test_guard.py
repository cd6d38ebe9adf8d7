"""The leak guard, a client's policy, and methods that sums cannot serve."""

from __future__ import annotations

import pytest

import fedcore as fc
from fedcore.errors import (
    ConfigError,
    MissingError,
    PrivacyError,
    ShapeError,
)


def test_the_leak_guard_says_when_a_sum_protects_nobody():
    assert fc.secagg.leaks(10, hidden_size=256, tokens=[32] * 10) == []
    assert "256" in fc.secagg.leaks(7, hidden_size=256, tokens=[32] * 7)[0]
    assert "one client's vector" in fc.secagg.leaks(1)[0]
    assert "one client's vector" in fc.secagg.leaks(4, corrupt=3)[0]
    assert ["group 1" in text for text in fc.secagg.leaks(5, groups=[4, 1])] == [True]


def test_tokens_of_corrupt_clients_hide_nobodys():
    """They take their own vectors off the sum: those with the most tokens may be the corrupt ones."""
    about = {"hidden_size": 256, "corrupt": 12}
    for tokens in ([32] * 16, 32 * 16):
        (found,) = fc.secagg.leaks(16, tokens=tokens, **about)
        assert found.startswith("the cohort without the 12 that may be corrupt trained on 128 tokens, fewer than the ")
    assert fc.secagg.leaks(16, tokens=[64] * 16, **about) == fc.secagg.leaks(16, tokens=64 * 16, **about) == []
    assert fc.secagg.leaks(3, hidden_size=256, tokens=[255, 1, 9000], corrupt=1) == []
    (found,) = fc.secagg.leaks(3, hidden_size=257, tokens=[255, 1, 9000], corrupt=1)
    assert "trained on 256 tokens" in found


def test_each_group_needs_tokens_of_its_own():
    """All that are corrupt may be in any one of them."""
    about = {"hidden_size": 256, "groups": [4] * 4}
    for tokens in ([32] * 16, 32 * 16):
        found = fc.secagg.leaks(16, tokens=tokens, **about)
        assert [text.split(" tokens")[0] for text in found] == [f"group {i} trained on 128" for i in range(4)]
    tokens = [64] * 12 + [63, 64, 64, 64]
    assert ["group 3" in text for text in fc.secagg.leaks(16, tokens=tokens, **about)] == [True]
    assert fc.secagg.leaks(16, tokens=64 * 16, **about) == []
    found = fc.secagg.leaks(16, tokens=[100] * 16, corrupt=2, **about)
    assert [text.split(" tokens")[0] for text in found] == [
        f"group {i} without the 2 that may be corrupt trained on 200" for i in range(4)
    ]


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ({"corrupt": -5}, PrivacyError, "corrupt: got -5"),
        ({"corrupt": 0.5}, PrivacyError, "corrupt: got 0.5"),
        ({"included": -1}, PrivacyError, "included: got -1"),
        ({"hidden_size": 0, "tokens": 5}, PrivacyError, "hidden_size: got 0"),
        ({"tokens": float("nan")}, PrivacyError, "tokens: got nan"),
        ({"tokens": -5}, PrivacyError, "tokens: got -5"),
        ({"tokens": [-5, 300, 1]}, PrivacyError, r"tokens\[0\]: got -5"),
        ({"tokens": [1, 2, None]}, PrivacyError, r"tokens\[2\]: got None"),
        ({"tokens": [32] * 4}, ShapeError, "tokens: got 4 counts, expected one for each of the 3 clients in the sum"),
        ({"groups": [2, 2]}, ShapeError, "groups: got 4 members in all, expected the 3 clients in the sum"),
        ({"groups": [4, -1]}, PrivacyError, r"groups\[1\]: got -1"),
        ({"groups": 3}, PrivacyError, "groups: got 3"),
    ],
)
def test_the_leak_guard_judges_no_numbers_that_are_none(given, error, said):
    with pytest.raises(error, match=f"^{said}"):
        fc.secagg.leaks(**{"included": 3, "hidden_size": 256} | given)


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
