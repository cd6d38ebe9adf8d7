"""Parameters given as NumPy's numbers: rules keep Python's own, so that nothing overflows and reports are JSON."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from typing import Any

import numpy as np
import pytest

import fedcore as fc
from fedcore import rules
from fedcore.attacks import ALIE, IPM, Gaussian, Mimic, SignFlip
from fedcore.errors import BudgetError, ConfigError, RuleError
from fedcore.federation.rule_names import rule_classes
from fedcore.federation.server_optimizer import FedAdagrad, FedAdam, FedAvgM, FedYogi
from fedcore.numbers import shown
from fedcore.rules import Rule
from fedcore.rules.budget import parse_memory

#: every rule that takes parameters, with Python's numbers
RULES: list[Rule] = [
    rules.ARC(2, weighted=True),
    rules.Bucketing(2, seed=3, round=1),
    rules.Bulyan(1),
    rules.GeometricMedian(weighted=True, smoothing=0.5, steps=2),
    rules.CenteredClipping(1.5, 2),
    rules.Krum(2),
    rules.MeanAroundMedian(2),
    rules.MinimumDiameterAveraging(2, 1000),
    rules.MoNNA(2, pivot=1),
    rules.MultiKrum(2, 3, weighted=True),
    rules.NearestNeighborMixing(2),
    rules.NormClipping(1.5),
    rules.SignMajority(0.5),
    rules.SpectralFilter(2),
    rules.TrimmedMean(2),
    rules.TrimmedMean(fraction=0.25),
]
COUNTS = [np.int8, np.uint8, np.int64, np.uint64, lambda value: np.array(value)]
REALS = [np.float16, np.float32, np.float64, np.float32, np.longdouble]


def remade(rule: Any, count: Any, real: Any) -> Any:
    """The same from NumPy's numbers: small counts fit every type, and all fractions are exact."""

    def as_numpy(value: Any) -> Any:
        if isinstance(value, bool):
            return np.bool_(value)
        if isinstance(value, int):
            return count(value) if value < 128 else np.int16(value)
        return real(value) if isinstance(value, float) else value

    return type(rule)(**{field.name: as_numpy(getattr(rule, field.name)) for field in fields(rule)})


def test_every_rule_with_parameters_is_here():
    bare = {"FLTrust", "Mean", "Median"}
    assert {type(rule).__name__ for rule in RULES} | bare == {c.__name__ for c in rule_classes().values()}


@pytest.mark.parametrize("rule", RULES, ids=repr)
@pytest.mark.parametrize(("count", "real"), list(zip(COUNTS, REALS, strict=True)))
def test_a_rule_from_numpys_numbers_is_the_rule(rule, count, real):
    made = remade(rule, count, real)
    assert made == rule
    assert repr(made) == repr(rule)
    assert hash(made) == hash(rule)
    for field in fields(rule):  # type: ignore[arg-type]
        assert type(getattr(made, field.name)) is type(getattr(rule, field.name))


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_its_report_is_json(rule):
    rng = np.random.default_rng(0)
    updates = [fc.Update.from_tensors({"w": rng.standard_normal(9).astype("f4")}, client_id=f"k{i}") for i in range(9)]
    expected = fc.aggregate(updates, rule, space="parameters")
    found = fc.aggregate(updates, remade(rule, np.int64, np.float32), space="parameters")
    assert json.loads(json.dumps(found.report))["rule"] == repr(rule)
    assert found.update.digest() == expected.update.digest()


def test_small_integers_do_not_overflow():
    rows = np.random.default_rng(0).standard_normal((300, 20)).astype(np.float32)
    rows[:8] *= 1000
    for rule, f, n in [(rules.ARC, 8, 50), (rules.Krum, 100, 300), (rules.TrimmedMean, 100, 300)]:
        assert np.array_equal(rule(np.uint8(f))(rows[:n]), rule(f)(rows[:n]))


NO_COUNTS = [np.bool_(True), np.float64(2), np.array([2]), 2.0, None, np.int8(-1), "2", -(10**5000)]


@pytest.mark.parametrize("value", NO_COUNTS, ids=shown)
def test_no_count(value):
    got = re.escape(shown(value))
    with pytest.raises(RuleError, match=rf"^Krum: got f={got}, expected a whole number from 0 to 2\^53$"):
        rules.Krum(value)


@pytest.mark.parametrize("value", [True, False])
def test_a_flag_of_a_tensor_is_no_count(value):
    torch = pytest.importorskip("torch")
    with pytest.raises(RuleError, match=r"^Krum: got f=tensor\(\w+\), expected a whole number from 0 to 2\^53$"):
        rules.Krum(torch.tensor(value))
    assert rules.Krum(torch.tensor(2)) == rules.Krum(2)


def test_a_number_without_end_is_refused_by_name_in_one_line():
    for make, error, text in [
        (lambda v: rules.NormClipping(v), RuleError, "NormClipping: got max_norm=an integer of 16610 bits, expected"),
        (lambda v: rules.MultiKrum(1, -v), RuleError, "MultiKrum: got m=a negative integer of 16610 bits, expected"),
        (lambda v: rules.Krum(v), RuleError, "Krum: got f=an integer of 16610 bits, expected a whole number from 0 to"),
        (lambda v: rules.TrimmedMean(fraction=v), RuleError, "TrimmedMean: got fraction=an integer of 16610 bits"),
        (lambda v: FedAvgM(learning_rate=v), ConfigError, "FedAvgM: got learning_rate=an integer of 16610 bits"),
        (lambda v: IPM(v), ConfigError, "IPM: got epsilon=an integer of 16610 bits"),
        (lambda v: Mimic(-v), ConfigError, "Mimic: got row=a negative integer of 16610 bits"),
    ]:
        with pytest.raises(error, match=f"^{text}"):
            make(10**5000)


def test_true_is_no_budget_of_memory():
    torch = pytest.importorskip("torch")
    for value in (True, np.True_, torch.tensor(True), 1.5, -(10**5000)):
        with pytest.raises(BudgetError, match=r"^memory: got .*, expected bytes or a size such as"):
            parse_memory(value)
    assert parse_memory(np.int64(7)) == 7


@pytest.mark.parametrize("value", [np.bool_(True), np.float32("nan"), np.int8(0), 10**400, "1", None, np.array(1.0)])
def test_no_positive_number(value):
    with pytest.raises(RuleError, match=r"^NormClipping: got max_norm=.*, expected a finite number above 0$"):
        rules.NormClipping(value)


OTHERS = [
    *(FedAvgM(0.5, 0.25), FedAdagrad(0.5, 0.25, 2.0), FedAdam(0.5, 0.25, 2.0, 0.75), FedYogi(0.5, 0.25, 2.0, 0.75)),
    *(ALIE(-1.5), IPM(0.5), Gaussian(2.0), Mimic(3), SignFlip(4.0)),
]


@pytest.mark.parametrize("made", OTHERS, ids=repr)
@pytest.mark.parametrize("real", REALS)
def test_server_optimisers_and_attacks_keep_pythons_numbers(made, real):
    again = remade(made, np.uint8, real)
    assert repr(again) == repr(made)
    for field in fields(again):
        assert type(getattr(again, field.name)) is type(getattr(made, field.name))


@pytest.mark.parametrize("value", [np.bool_(True), np.float32("inf"), np.int8(0), 10**400, "1"])
def test_no_number_of_theirs(value):
    with pytest.raises(ConfigError, match=r"^FedAvgM: got learning_rate=.*, expected a finite number above 0$"):
        FedAvgM(learning_rate=value)
    with pytest.raises(ConfigError, match=r"^IPM: got epsilon=.*, expected a finite number above 0$"):
        IPM(value)
