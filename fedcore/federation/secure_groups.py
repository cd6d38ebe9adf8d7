"""Sums over groups for a rule to choose from: how many it takes, and what to set where masks do not admit them."""

from __future__ import annotations

from fedcore.errors import PrivacyError, RuleError
from fedcore.federation.config import Aggregation
from fedcore.federation.config_secure import Secure
from fedcore.federation.rule_names import make_chain, named_rule
from fedcore.federation.secure_sum import parameters_of
from fedcore.rules import Rule

#: groups that are looked at where nobody knows the clients yet
MANY = 1000


def fewest_groups(aggregation: Aggregation, most: int) -> int | None:
    """How many sums the rule takes at least, None for more than `most`; raises RuleError where there is no such rule.

    Two for one that takes each for itself, as a clip does. One that compares takes three: of two it can tell neither
    from the other, and of one it gives that one, which is the mean.
    """
    rule = make_chain(aggregation.rule, aggregation.parameters, aggregation.before)
    parts = [aggregation.rule, *(stage["rule"] for stage in aggregation.before)]
    least = 2 if all(named_rule(part).streams for part in parts) else 3
    return next((groups for groups in range(least, most + 1) if takes(rule, groups)), None)


def takes(rule: Rule, rows: int) -> bool:
    """Whether the rule runs on so many rows."""
    try:
        rule.check(rows)
    except RuleError:
        return False
    return True


def admitted(settings: Secure, clients: int) -> bool:
    """Whether masks over so many clients keep what [secure] asks for."""
    try:
        parameters_of(settings, clients, 1)
    except PrivacyError:
        return False
    return clients >= 2 * (settings.groups or 1)


def instead(settings: Secure, aggregation: Aggregation, clients: int | None) -> str:
    """What to set so that masks go with this arm: groups for its rule, where so many clients form them, or the mean."""
    ways = []
    if "server" not in make_chain(aggregation.rule, aggregation.parameters, aggregation.before).uses:
        fewest = fewest_groups(aggregation, MANY if clients is None else clients // 2)
        grouped = settings.model_copy(update={"groups": fewest})
        if fewest is None:
            pass
        elif clients is None:
            ways.append(f"set secure.groups = {fewest} or more, as the clients allow, to have sums to choose from")
        elif admitted(grouped, clients):
            ways.append(f"set secure.groups = {fewest} to have sums over groups to choose from")
        elif admitted(grouped.model_copy(update={"dropout": 0.0}), clients):
            ways.append(f"set secure.groups = {fewest} and secure.dropout = 0 to have sums over groups to choose from")
    mean = 'rule = "mean"' if aggregation.rule != "mean" else ""
    mean += f'{" and " if mean else ""}space = "parameters"' if aggregation.space != "parameters" else ""
    without = [key for key, has in (("before", aggregation.before), ("secure.groups", settings.groups)) if has]
    if without:
        mean += f" without {' and '.join(without)}" if mean else f"leave out {' and '.join(without)}"
    return ", or ".join([*ways, mean if ways or mean.startswith("leave") else f"set {mean}"])
