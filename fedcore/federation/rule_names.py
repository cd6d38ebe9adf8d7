"""Rules by name, for files and command lines: each rule class of fedcore.rules under its name in snake case."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from fedcore.errors import RuleError
from fedcore.federation.parameters import check_types, in_file


def rule_classes() -> dict[str, type]:
    """name -> class, such as 'multi_krum' -> MultiKrum: every rule that fedcore.rules exports, compositions aside.

    A capital begins a word where a small letter follows it, so that names that are spelled in capitals stay whole:
    'arc', 'fltrust', 'monna'.
    """
    from fedcore import rules

    exported = [value for value in map(rules.__dict__.get, rules.__all__) if inspect.isclass(value)]
    rule_types = [c for c in exported if issubclass(c, rules.Rule) and c is not rules.Composed]
    found = [c for c in rule_types if dataclasses.is_dataclass(c)]
    return {re.sub(r"(?<=[a-z0-9])(?=[A-Z][a-z])", "_", c.__name__).lower(): c for c in found}


def named_rule(name: str) -> type[Any]:
    """The class of the rule `name`. Raises RuleError where there is none."""
    classes = rule_classes()
    if name not in classes:
        raise RuleError(f"rule: got {name!r}, {_suggest(name, list(classes))}")
    return classes[name]


def make_rule(name: str, parameters: dict[str, Any], spelled: Callable[[str], str]) -> Any:
    """The rule `name` with its parameters; `spelled` is how the caller's user writes a parameter.

    Raises RuleError naming the rule or parameter that is unknown, missing or of another type.
    """
    kind = named_rule(name)
    fields = {field.name: field for field in dataclasses.fields(kind) if field.init}
    for parameter in parameters:
        if parameter not in fields:
            takes = ", ".join(spelled(field).removeprefix("parameter ") for field in fields) or "none"
            close = difflib.get_close_matches(parameter, list(fields), n=1, cutoff=0.5)
            known = f"did you mean {close[0]!r}?" if close else f"it takes {takes}"
            raise RuleError(f"{name}: {spelled(parameter)} is not known; {known}")
    for parameter, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and parameter not in parameters:
            raise RuleError(f"{name}: {spelled(parameter)} is missing; give a value for it")
    check_types(name, kind, parameters, spelled)
    return kind(**parameters)


def make_chain(
    name: str,
    parameters: dict[str, Any],
    before: Sequence[Mapping[str, Any]] = (),
    spelled: Callable[[str], str] = in_file,
    spelled_before: Callable[[str, str], str] = lambda stage, parameter: in_file(parameter),
) -> Any:
    """The rule `name` after the pre-aggregations `before`: first.then(second).then(rule).

    before: {"rule": name, **its parameters} in the order that rows pass them; `spelled_before` is how the caller's user
    writes a parameter of the stage of that name. Raises RuleError as `make_rule` does, and
    where one of `before` hands no rows on.
    """
    rule = make_rule(name, parameters, spelled)
    for stage in reversed(before):
        if not isinstance(stage.get("rule"), str):
            raise RuleError(f'before: got {dict(stage)}, expected the name of a pre-aggregation as rule = "..."')
        given = {k: v for k, v in stage.items() if k != "rule"}
        rule = make_rule(stage["rule"], given, partial(spelled_before, stage["rule"])).then(rule)
    return rule


def _suggest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"expected one of {', '.join(known)}"
