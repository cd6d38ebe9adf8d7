"""What rules and methods share on the command line: how a parameter is spelled, weights of no use or missing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from fedcore.errors import RuleError, WeightError

if TYPE_CHECKING:
    from fedcore.updates import Update


def as_option(parameter: str) -> str:
    """How `fedcore aggregate` spells a parameter of a rule or method."""
    return "--f" if parameter == "f" else f"--set {parameter}"


def as_stage_option(stage: str, parameter: str) -> str:
    """How `fedcore aggregate` spells a parameter of a pre-aggregation."""
    return f"--before {stage}:{parameter}=…"


def refuse_beside(chosen: str, given: Mapping[str, object]) -> None:
    """Raise RuleError naming the first option that is of no use to what was `chosen`; None where it was not given."""
    for option, value in given.items():
        if value is not None:
            raise RuleError(f"--{option}: got {value} {chosen}")


def check_weighed(numbers: bool, weighted: bool, chosen: str) -> None:
    """Raise WeightError for a number for each adapter where the rule or method that was `chosen` looks at none."""
    if numbers and not weighted:
        raise WeightError(f"--weights: got numbers with {chosen}, which ignores them; leave --weights out")


def check_counted(updates: Iterable[Update]) -> None:
    """Raise WeightError where some adapters say how many examples they saw and others do not: 1 is no count."""
    given = list(updates)
    silent = [update.client_id for update in given if not update.counted]
    said = [update for update in given if update.counted]
    if silent and said:
        raise WeightError(
            f"--weights counts: {silent[0]} does not say on how many examples it was trained, {said[0].client_id} says "
            f"{said[0].num_examples}; pass --weights with a number for each, or --weights equal"
        )
