"""What every rule keeps to: f too large says the largest f, and weights move only a rule that was asked to use them.

A rule that is exported and not in the table fails a test here, so that none is added without these.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import fedcore as fc
from fedcore import rules
from fedcore.errors import LayoutError, RuleError
from fedcore.federation.rule_names import rule_classes
from fedcore.rules import Composed, Krum, PreAggregation

N = 15
#: class -> how it is made from f, and the largest f for 15 clients; None for a rule without f
ROBUST: dict[str, tuple[Any, int | None]] = {
    "ARC": (lambda f: rules.ARC(f), 7),
    "Bucketing": (lambda f: rules.Bucketing(2, seed=0).then(Krum(f)), None),
    "Bulyan": (lambda f: rules.Bulyan(f), 3),
    "CenteredClipping": (lambda f: rules.CenteredClipping(1.0), None),
    "FLTrust": (lambda f: rules.FLTrust(), None),
    "GeometricMedian": (lambda f: rules.GeometricMedian(), None),
    "Krum": (lambda f: Krum(f), 6),
    "MeanAroundMedian": (lambda f: rules.MeanAroundMedian(f), 7),
    "Median": (lambda f: rules.Median(), None),
    "MinimumDiameterAveraging": (lambda f: rules.MinimumDiameterAveraging(f), 7),
    "MoNNA": (lambda f: rules.MoNNA(f), 7),
    "MultiKrum": (lambda f: rules.MultiKrum(f), 6),
    "NearestNeighborMixing": (lambda f: rules.NearestNeighborMixing(f), 7),
    "SignMajority": (lambda f: rules.SignMajority(0.1), None),
    "SpectralFilter": (lambda f: rules.SpectralFilter(f), 7),
    "TrimmedMean": (lambda f: rules.TrimmedMean(f), 7),
}
#: rules that use weights: made so that they are asked to
WEIGHTED: dict[str, Any] = {
    "ARC": lambda: rules.ARC(2, weighted=True),
    "GeometricMedian": lambda: rules.GeometricMedian(weighted=True),
    "Mean": lambda: rules.Mean(),
    "MultiKrum": lambda: rules.MultiKrum(2, weighted=True),
    "NormClipping": lambda: rules.NormClipping(3.0),
}


def some_rows() -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """(rows, the server's row if a rule wants it)."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((N, 80)).astype(np.float32)
    return rows, {"server": rng.standard_normal(80).astype(np.float32)}


def test_every_exported_rule_is_in_a_table():
    names = {rule.__name__ for rule in rule_classes().values()}
    assert names == ROBUST.keys() | WEIGHTED.keys()


@pytest.mark.parametrize("name", [name for name, (_, largest) in ROBUST.items() if largest is not None])
def test_f_too_large_says_the_largest(name):
    make, largest = ROBUST[name]
    rows, references = some_rows()
    make(largest)(rows, **references)
    with pytest.raises(RuleError, match=rf"f={largest + 1} with n=15 clients.*the largest f for n=15 is {largest}$"):
        make(largest + 1)(rows, **references)
    for f in (-1, 1.5, True, "1"):
        with pytest.raises(RuleError, match=rf"got f={re.escape(repr(f))}, expected a whole number from 0 to 2\^53"):
            make(f)


@pytest.mark.parametrize("name", ROBUST)
def test_weights_that_clients_report_do_not_move_a_robust_rule(name):
    rule = ROBUST[name][0](2)
    rows, references = some_rows()
    lies = [1e30, float("nan"), -1.0, 0.0, *range(1, N - 3)]
    assert not rule.uses_weights
    assert rule(rows, lies, **references).tobytes() == rule(rows, **references).tobytes()


@pytest.mark.parametrize("name", ROBUST)
def test_plain_rows_have_a_decision_that_says_who_counts_and_why_others_do_not(name):
    rule = ROBUST[name][0](2)
    rows, references = some_rows()
    rows[3] += 1000
    found, decision = rule.explained(rows, **references)
    assert found.tobytes() == rule(rows, **references).tobytes()
    if not rule.linear:
        assert isinstance(decision, rules.OrderStatistic)
        return
    values = decision.values
    others = [references["server"] if use == "server" else np.zeros(80) for use in rule.uses]
    expected = values @ np.vstack([rows, *others]) / values.sum()
    assert np.allclose(found, expected, rtol=1e-5, atol=1e-5 * np.abs(values * 1000).max() / abs(values.sum()))
    silent = set(np.flatnonzero(values[:N] == 0))
    assert silent <= decision.reasons.keys() | decision.unused(N).keys()
    if name in ("Krum", "MultiKrum", "SpectralFilter", "Bulyan"):
        assert 3 in silent
        assert all(decision.reasons[row] for row in silent)


@pytest.mark.parametrize("name", WEIGHTED)
def test_weights_move_a_rule_that_was_asked_to_use_them(name):
    rule = WEIGHTED[name]()
    rows, references = some_rows()
    assert rule.uses_weights
    assert rule(rows, np.arange(1, N + 1), **references).tobytes() != rule(rows, **references).tobytes()


@pytest.mark.parametrize("name", [name for name in WEIGHTED if name not in ("Mean", "NormClipping")])
def test_a_rule_is_asked_to_use_weights_by_true_alone(name):
    for value in ("no", "False", 1, None):
        with pytest.raises(RuleError, match=rf"{name}: got weighted={value!r}, expected True or False"):
            replace(WEIGHTED[name](), weighted=value)
    assert not replace(WEIGHTED[name](), weighted=np.False_).uses_weights


@pytest.mark.parametrize("name", ROBUST)
def test_a_rule_says_what_it_is_and_equals_another_of_the_same_parameters(name):
    make = ROBUST[name][0]
    rule = make(1)
    assert rule == make(1)
    assert hash(rule) == hash(make(1))
    assert eval(repr(rule), vars(rules)) == rule
    documented = rule.first if isinstance(rule, Composed) else rule
    text = " ".join((type(documented).__doc__ or "").split())
    for part in ("Breakdown point", "Cost"):
        assert part in text, f"{name}: its docstring does not say: {part}"
    assert re.search(r"[Nn]eeds [^.;]+ [≥<] ", text), f"{name}: its docstring does not say what n it needs"
    assert re.search(r"\b(19|20)\d\d\b", text), f"{name}: its docstring names no source"


@pytest.mark.parametrize("name", [name for name in ROBUST if issubclass(getattr(rules, name), PreAggregation)])
def test_a_pre_aggregation_alone_is_the_mean_of_what_it_hands_on(name):
    rule = ROBUST[name][0](2)
    first = rule.first if isinstance(rule, Composed) else rule
    rows, _ = some_rows()
    found, expected = first(rows), first.then(rules.Mean())(rows)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def updates_of(rows: np.ndarray) -> list[fc.Update]:
    return [fc.Update.from_tensors({"w": row}, client_id=f"c{i:02d}") for i, row in enumerate(rows)]


@pytest.mark.parametrize("name", ROBUST)
def test_a_report_lists_who_counts_and_why_others_do_not(name):
    rows, references = some_rows()
    given = {key: updates_of(row[None])[0] for key, row in references.items()}
    found = fc.aggregate(updates_of(rows), ROBUST[name][0](2), "parameters", **given)
    counted, others = found.report["counted"], found.report["not_counted"]
    assert sorted([*counted, *others]) == [f"c{i:02d}" for i in range(N)]
    assert all(others.values())
    if found.coefficients:
        assert counted == [client for client, value in found.coefficients.items() if value]


#: what goes first: clips that leave so little of a far client that fp32 has none of it, of one row or of each mixture
FIRST = [
    None,
    rules.NormClipping(1e-18),
    rules.NormClipping(1e-10),
    rules.ARC(2),
    rules.NearestNeighborMixing(1),
    rules.Bucketing(2, seed=0),
    rules.NormClipping(1e-18).then(rules.NearestNeighborMixing(1)),
]


@pytest.mark.parametrize("first", FIRST, ids=repr)
@pytest.mark.parametrize("name", [*ROBUST, *WEIGHTED])
def test_every_client_is_in_one_list_of_the_report(first, name):
    rows, references = some_rows()
    rows[3] *= np.float32(1e30)
    rows[5] = 0
    rows[7] = rows[8]
    rows = np.vstack((rows, np.full_like(rows[:1], np.nan)))
    given = {key: updates_of(row[None])[0] for key, row in references.items()}
    # of Bucketing few rows are left, which bear no f
    following = ROBUST[name][0](int(name != "Bucketing")) if name in ROBUST else WEIGHTED[name]()
    rule = following if first is None else first.then(following)
    report = fc.aggregate(updates_of(rows), rule, "parameters", on_nonfinite="exclude", **given).report
    assert sorted([*report["counted"], *report["not_counted"], *report["excluded"]]) == [f"c{i:02d}" for i in range(16)]
    assert all(report["not_counted"].values())
    if "mix" in report:
        used = np.array(report["mix"])[:, :N].any(0)
        assert report["counted"] == [f"c{i:02d}" for i in np.flatnonzero(used)]


def test_a_coefficient_of_zero_has_a_reason():
    rows = np.zeros((5, 3), np.float32)
    rows[3], rows[4] = 1, -1
    report = fc.aggregate(updates_of(rows), rules.GeometricMedian(), "parameters").report
    everyone = {f"c{i:02d}" for i in range(5)}
    assert {"c03", "c04"} <= set(report["not_counted"]) == everyone - set(report["counted"])
    assert "the result lies on other rows alone" in report["not_counted"]["c03"]
    rows[4] = 3e38
    report = fc.aggregate(updates_of(rows), rules.NormClipping(1e-5), "parameters").report
    assert "rounds to 0 in fp32" in report["not_counted"]["c04"]


def test_what_is_no_rule_or_no_sequence_is_named():
    for rule in (rules.NormClipping(1.0), rules.ARC(1).then(rules.NormClipping(1.0))):
        for following in (3, Krum):
            with pytest.raises(RuleError, match=r"then: got .*, expected an instance of a rule such as Krum"):
                rule.then(following)
    for updates in (5, "folder", None):
        with pytest.raises(LayoutError, match=r"updates: got .*, expected a sequence of updates or paths"):
            fc.aggregate(updates, rules.Mean())


def test_too_few_mixed_rows_say_of_how_many_clients():
    with pytest.raises(RuleError, match=r"with n=3 clients.*Bucketing\(.*\) makes 3 mixed rows of 9 clients"):
        rules.Bucketing(3, seed=0).then(Krum(1))(some_rows()[0][:9])


def test_bounds_of_parameters():
    for step in (3e38, 1e-60):
        with pytest.raises(RuleError, match=re.escape(f"SignMajority: got step={step!r}, expected a number of fp32")):
            rules.SignMajority(step)
    for fraction in (np.float32(0.1), np.float64(0.1), 0):
        assert rules.TrimmedMean(fraction=fraction).dropped(20) == round(fraction * 20)
    assert rules.TrimmedMean(fraction=0.29).dropped(100) == 29


def test_every_public_name_is_there():
    assert all(getattr(fc, name) is not None for name in fc.__all__)
