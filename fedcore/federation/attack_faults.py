"""Why an arm's attack cannot run as the file says, one line each."""

from __future__ import annotations

from fedcore.errors import ConfigError, RuleError
from fedcore.federation.config import Aggregation, Config
from fedcore.federation.rule_names import make_chain


def attack_faults(config: Config, index: int, clients: int | None) -> list[str]:
    """What is wrong with the attack of arm `index`, or does not go with it; none without one.

    clients: how many there are; None where only the texts will tell.
    """
    arm, found = config.arms[index], []
    if arm.attack is None:
        return []
    settings, key, attack = config.aggregation_of(arm), f"arms[{index}].attack", arm.attack.made()
    if config.adapter.mixed:
        found.append(
            f"{key}: got one with adapter.ranks = {list(config.adapter.each_rank)}, and attacks are crafted from "
            "adapters of one rank; give all clients one rank"
        )
    if not attack.finite and settings.on_nonfinite == "raise":
        found.append(
            f'{key}.kind: got "{arm.attack.kind}" with aggregation.on_nonfinite = "raise", which stops the run at the '
            "first message; "
            + ('set on_nonfinite = "exclude"' if settings.method is None else "methods count every client: use a rule")
        )
    if clients is not None and arm.attack.clients >= clients:
        found.append(
            f"{key}.clients: got {arm.attack.clients} of {clients} clients, expected at most {clients - 1}; leave one "
            "that is honest"
        )
    elif clients is not None:
        try:
            attack.check(clients, arm.attack.clients)
        except ConfigError as error:
            found.append(f"{key}: {error}")
        open_rule = settings.method is None and config.secure_of(arm) is None
        if not attack.finite and settings.on_nonfinite == "exclude" and open_rule:
            found += _left_over(settings, key, clients, arm.attack.clients)
    return found


def _left_over(settings: Aggregation, key: str, clients: int, attackers: int) -> list[str]:
    """Why the rule does not run on those that are left when all attackers are excluded."""
    try:
        rule = make_chain(settings.rule, settings.parameters, settings.before)
        rule.check(clients)
    except RuleError:
        return []  # said already
    try:
        rule.check(clients - attackers)
    except RuleError as error:
        return [f"{key}: {error} (after excluding {attackers} of {clients} clients for what they send)"]
    return []
