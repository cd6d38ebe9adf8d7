"""What does not go together with a LoRA method, in one line each: what a plan shows and a run refuses."""

from __future__ import annotations

import dataclasses
import difflib
from typing import Any

from fedcore.errors import RuleError
from fedcore.lora import METHODS
from fedcore.lora.method import Method


def make_method(name: str, parameters: dict[str, Any]) -> Method:
    """The method `name` with its parameters. Raises RuleError naming the method or parameter that is not known."""
    if name not in METHODS:
        close = difflib.get_close_matches(name, METHODS, n=1, cutoff=0.5)
        known = f"did you mean {close[0]!r}?" if close else f"expected one of {', '.join(METHODS)}"
        raise RuleError(f"method: got {name!r}, {known}")
    fields = [field.name for field in dataclasses.fields(METHODS[name])]  # type: ignore[arg-type]
    for parameter in parameters:
        if parameter not in fields:
            takes = ", ".join(fields) or "none"
            raise RuleError(f"{name}: parameter {parameter!r} is not known; it takes {takes}")
    return METHODS[name](**parameters)


def refusals(
    method: Method,
    *,
    mixed: bool = False,
    masks: bool = False,
    rule: str = "mean",
    before: bool = False,
    optimizer: str | None = None,
) -> list[str]:
    """Why a method cannot run so, one line each; none where it can.

    mixed      clients have several ranks, scales or sets of modules
    masks      the server sees the weighted sum of the messages alone
    rule       of [aggregation]; a method weighs clients by their shares, so only the mean goes with it
    before     whether pre-aggregations come before it
    optimizer  of the server
    """
    traits, found = method.traits, []
    taking = ", ".join(name for name, other in METHODS.items() if other.traits.mixed)
    linear = ", ".join(name for name, other in METHODS.items() if other.traits.linear)
    if mixed and not traits.mixed:
        found.append(f"{traits.name}: takes no mixed ranks, scales or modules; choose one of {taking}")
    if masks and not traits.linear:
        found.append(
            f"{traits.name}: needs each client's own factors, which masks hide; choose one that needs their sum alone: "
            f"{linear}"
        )
    elif masks and mixed and traits.mixed and method.sends() == ("a",):
        found.append(
            f"{traits.name}: a row of A is a mean over the clients whose rank reaches it, which masks hide; give all "
            "clients one rank, or choose ffa_lora or randomized_sketch"
        )
    if rule != "mean" or before:
        what = f"rule {rule!r}" if rule != "mean" else "a pre-aggregation"
        found.append(
            f"{traits.name}: a method weighs clients by their examples and {what} chooses otherwise; use one of the "
            'two: rules run on true updates with space = "delta"'
        )
    if optimizer not in (None, "none") and not traits.optimizer:
        moving = ", ".join(name for name, other in METHODS.items() if other.traits.optimizer)
        found.append(
            f"{traits.name}: got server optimizer {optimizer!r}, and the method says itself where the next round "
            f'starts; set optimizer = "none", or choose {moving}'
        )
    elif optimizer not in (None, "none") and mixed:
        found.append(
            f"{traits.name}: got server optimizer {optimizer!r} and mixed ranks, whose clients start from slices of a "
            'mean; set optimizer = "none", or give all clients one rank'
        )
    return found
