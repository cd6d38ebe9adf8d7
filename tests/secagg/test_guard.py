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
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())  # as some editors begin a file
    assert fc.secagg.Policy.load(path) == policy
    p = fc.secagg.Parameters.choose(20, length=1, bound=1, adversary="malicious")
    bold = fc.secagg.Parameters.choose(20, length=1, bound=1, corrupt=0.05, adversary="malicious")
    good = {"parameters": p, "epsilon": 3.0, "delta": 1e-5, "model": "a" * 64, "method": "FedIT"}
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
        ({"delta": 1.1e-5}, "no largest_delta, so that 1e-05 holds, but the round's ε holds at δ = 1.1e-05"),
        ({"delta": -1e-9}, "delta: got -1e-09, expected a number from 0 to 1"),
        ({"delta": None}, "delta: got None, expected a number from 0 to 1"),
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
        ("largest_epsilon = 1\nlargest_delta = 1", "largest_delta: got 1, expected"),
        ("largest_delta = 1e-6", "largest_delta: got 1e-06 without largest_epsilon"),
        ("a", "policy"),
    ):
        path.write_text(text)
        with pytest.raises(ConfigError, match=why):
            fc.secagg.Policy.load(path)
    with pytest.raises(MissingError):
        fc.secagg.Policy.load(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"secure": True}, "secure = true"),
        ({"smallest_cohort": 3}, "smallest_cohort = 3"),
        ({"adversary": "malicious"}, "adversary = 'malicious'"),
        ({"corrupt": 0.01}, "corrupt = 0.01"),
    ],
)
def test_what_masks_alone_keep_refuses_rounds_in_the_clear(asked, said):
    noisy = fc.secagg.Offer(None, 1.0, 1e-6)
    with pytest.raises(PrivacyError, match=f"^policy: {said}, but the round sends vectors in the clear"):
        fc.secagg.Policy(**({"secure": False, "largest_epsilon": 8} | asked)).check(noisy)


def test_epsilon_is_capped_at_a_delta_and_a_trusted_server_may_be_who_adds_the_noise():
    policy = fc.secagg.Policy(secure=False, largest_epsilon=8)
    policy.check(fc.secagg.Offer(None, 8.0, 1e-5))
    for delta, cap in ((1e-4, 1e-5), (0.9, 1e-5), (1.0, 1e-5), (2e-3, 1e-3)):
        asked = fc.secagg.Policy(secure=False, largest_epsilon=8, largest_delta=None if cap == 1e-5 else cap)
        with pytest.raises(PrivacyError, match=f"largest_delta.* {cap}.*, but the round's ε holds at δ = {delta}"):
            asked.check(fc.secagg.Offer(None, 8.0, delta))
    with pytest.raises(PrivacyError, match=r"δ = 1\.0"):  # who says none promises nothing
        policy.check(fc.secagg.Offer(None, 8.0))
    with pytest.raises(PrivacyError, match="leads to inf: in the clear, without noise or under a part of a sum's"):
        policy.check(fc.secagg.Offer(None))
    fc.secagg.Policy(secure=False).check(fc.secagg.Offer(None, 8.0, 0.9))


def test_a_policys_corrupt_part_holds_of_the_whole_cohort_in_each_of_its_groups():
    """What `group_parameters` allows for, and no less: a group is smaller than the chance of its members."""
    about = {"length": 1, "bound": 1, "adversary": "malicious"}
    policy = fc.secagg.Policy(smallest_cohort=5, adversary="malicious", corrupt=0.1)
    for members, groups, corrupt, dropout in ((1003, 7, 0.1, 0.1), (1000, 4, 0.1, 0.1), (1000, 1, 0.1, 0.1)):
        for p in fc.secagg.group_parameters(members, groups, corrupt=corrupt, dropout=dropout, **about).values():
            policy.check(fc.secagg.Offer(p, members=members))
    small = fc.secagg.Parameters.choose(20, groups=10, corrupt=0.1, dropout=0.1, **about)
    few = [(small, 200)]
    for members, groups in ((100, 5), (300, 10), (400, 10)):
        made = fc.secagg.group_parameters(members, groups, corrupt=0.02, dropout=0.03, **about)
        few += [(p, members) for p in made.values()]
    for p, members in few:
        liars = members // 10
        said = f"allows for {p.corrupt} of {p.clients} members, and chance puts more of {liars} into one of {p.groups}"
        with pytest.raises(PrivacyError, match=f"corrupt = 0.1, but the round {said} groups; refused"):
            policy.check(fc.secagg.Offer(p, members=members))
        with pytest.raises(PrivacyError, match=f"not say how many members all {p.groups} groups have"):
            policy.check(fc.secagg.Offer(p))
        fc.secagg.Policy(smallest_cohort=2, adversary="malicious").check(fc.secagg.Offer(p))
        for wrong in (20, 11 * p.clients * p.groups, "200", True):
            with pytest.raises(PrivacyError, match="members: got"):
                fc.secagg.Offer(p, members=wrong)
    with pytest.raises(PrivacyError, match=r"corrupt = 0\.1, but the round allows for 0 of 20 members; refused"):
        policy.check(fc.secagg.Offer(fc.secagg.Parameters.choose(20, corrupt=0, **about)))


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
