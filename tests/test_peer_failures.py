"""Failures found in other frameworks are absent here; and the inputs do bring them out of the formulas that fail."""

from __future__ import annotations

import pytest
from failures import CASES, Case
from failures.finding import guarded

by_name = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


@by_name
def test_fedcore_does_not_fail(case: Case):
    said, wrong = guarded(case.here)
    assert not wrong, f"{case.peer}, {case.what}: {said}"


@by_name
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_the_formula_fails_on_these_inputs(case: Case):
    said, wrong = case.there()
    assert wrong, f"{case.peer}, {case.what}: {said}"


def test_names_tell_cases_apart():
    assert len({case.name for case in CASES}) == len(CASES)
