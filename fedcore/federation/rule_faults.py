"""Why an arm cannot run its rule as the file says, one line each."""

from __future__ import annotations

from fedcore.errors import RuleError
from fedcore.federation.config import Config
from fedcore.federation.rule_names import make_chain


def rule_faults(config: Config, index: int, clients: int | None) -> list[str]:
    """What is wrong with the rule of arm `index`, or does not go with it.

    clients: how many there are; None where only the texts will tell.
    """
    arm, found = config.arms[index], []
    settings, secure = config.aggregation_of(arm), config.secure_of(arm)
    rows = clients if secure is None else secure.groups
    own = any(getattr(arm, key) is not None for key in ("rule", "parameters", "before"))
    place = f"arms[{index}]" if own else "aggregation"
    try:
        rule = make_chain(settings.rule, settings.parameters, settings.before)
        if rows is not None:
            rule.check(rows)
    except RuleError as error:
        found.append(f"{place}: {error}")
    else:
        # under masks there is no place for it at all, which secure_faults says
        if "server" in rule.uses and config.server.data is None and secure is None:
            found.append(f'server.data: missing; {rule!r} compares with an update of the server: data = "texts.jsonl"')
        for stage in ({"rule": settings.rule} | settings.parameters, *settings.before):
            if stage["rule"] == "bucketing" and "round" in stage:
                found.append(
                    f"{place}: bucketing: parameter 'round': got {stage['round']}, and each round of a run has buckets "
                    "of its own; leave it out"
                )
    if config.optimizer_of(arm) is not None and settings.space == "delta":
        key, used = ("server", config.server) if arm.server is None else (f"arms[{index}].server", arm.server)
        found.append(
            f'{key}.optimizer: got "{used.optimizer}" with space = "delta" (arm {arm.name!r}), expected space = '
            '"parameters": factors of a truncated delta have another gauge each round, so their momentum means nothing'
        )
    if config.adapter.mixed and settings.space == "parameters":
        found.append(
            f'adapter.ranks: got {list(config.adapter.each_rank)} with space = "parameters" (arm {arm.name!r}), '
            'which adds up factors of one rank; set space = "delta"'
        )
    return found
