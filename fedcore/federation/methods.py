"""LoRA methods in a configuration: which one an arm has, and what it does not go together with."""

from __future__ import annotations

from fedcore.errors import RuleError
from fedcore.federation.config import Arm, Config
from fedcore.lora import Method
from fedcore.lora.combination import make_method, refusals


def method_of(config: Config, arm: Arm) -> Method | None:
    """The arm's method, or None where it has a rule. Raises RuleError naming what is not known."""
    settings = config.aggregation_of(arm)
    return None if settings.method is None else make_method(settings.method, settings.parameters)


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
    name, frozen = method.traits.name, any(set(factors) != {"a", "b"} for factors in method.cycle)
    found = refusals(method, rule=settings.rule, before=bool(settings.before), optimizer=optimizer)
    if "core" in method.trains():
        found.append(f"{name}: a run has no factors to train a core between; use fedcore.clients.core.train_core")
    if config.message.format is not None:
        found.append(
            f'{name}: got message.format = "{config.message.format}", and frozen factors must stay as they were'
        )
    if frozen and arm.attack:
        found.append(f"{name}: got an attack, which moves factors that are frozen; attack a method that trains both")
    if settings.on_nonfinite != "raise":
        found.append(
            f'{name}: got on_nonfinite = "{settings.on_nonfinite}", expected "raise": methods count every client'
        )
    return found
