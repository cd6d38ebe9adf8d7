"""Why an arm's attack cannot run as the file says, one line each."""

from __future__ import annotations

from fedcore.federation.config import Config


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
    return found
