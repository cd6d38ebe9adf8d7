"""LoRA methods in a configuration: which one an arm has, and what it does not go together with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fedcore.errors import RuleError
from fedcore.federation.config import Arm, Config
from fedcore.federation.parameters import check_types, in_file
from fedcore.lora import METHODS, Method, RandomizedSketch
from fedcore.lora.combination import make_method, refusals


def named_method(name: str, parameters: dict[str, Any], spelled: Callable[[str], str] = in_file) -> Method:
    """The method `name`; `spelled` is how the caller's user writes a parameter.

    Raises RuleError naming the method or parameter that is not known, or not of its type.
    """
    if name in METHODS:
        check_types(name, METHODS[name], parameters, spelled)
    return make_method(name, parameters)


def method_of(config: Config, arm: Arm) -> Method | None:
    """The arm's method, or None where it has a rule. Raises RuleError naming what is not known."""
    settings = config.aggregation_of(arm)
    return None if settings.method is None else named_method(settings.method, settings.parameters)


def method_faults(config: Config, index: int) -> list[str]:
    """Why an arm cannot run its method, one line each."""
    arm = config.arms[index]
    settings = config.aggregation_of(arm)
    try:
        method = method_of(config, arm)
    except RuleError as error:
        return [str(error)]
    if method is None:
        return []
    optimizer = (config.server if arm.server is None else arm.server).optimizer
    name, rounds = method.traits.name, range(1, len(method.cycle) + 1)
    whole = all(set(factors) == {"a", "b"} for n in rounds for factors in (method.trains(n), method.sends(n)))
    found = refusals(
        method, rule=settings.rule, before=bool(settings.before), optimizer=optimizer, mixed=config.adapter.mixed
    )
    if config.message.format is not None and config.secure_of(arm) is None and isinstance(method, RandomizedSketch):
        found.append(
            f'{name}: got message.format = "{config.message.format}", and sketches travel, which no format is for; '
            "leave it out"
        )
    if arm.attack and not whole:
        found.append(
            f"{name}: got an attack, which moves factors that are frozen or stay local; attack a method that trains "
            "and sends both"
        )
    if settings.space != "delta":
        found.append(f'{name}: got space = "{settings.space}", and a method says itself what it adds up; leave it out')
    if settings.center != "reference":
        found.append(f'{name}: got center = "{settings.center}", which moves rules alone; leave it out')
    if settings.on_nonfinite != "raise":
        found.append(
            f'{name}: got on_nonfinite = "{settings.on_nonfinite}", expected "raise": methods count every client'
        )
    return found
