"""Why an arm of a private run cannot run as the file says, one line each."""

from __future__ import annotations

from fedcore.errors import PrivacyError, RuleError
from fedcore.federation.config import Config
from fedcore.federation.methods import method_of
from fedcore.federation.privacy_mechanisms import corrupt_among
from fedcore.privacy.accountant import EXPOSED, check_delta
from fedcore.privacy.combination import not_summed, refusals


def privacy_faults(config: Config, index: int, clients: int | None) -> list[str]:
    """What [privacy] does not go together with in arm `index`; none without [privacy].

    clients: how many there are; None where only the texts will tell.
    """
    arm = config.arms[index]
    settings = config.privacy_of(arm)
    if settings is None:
        return []
    aggregation = config.aggregation_of(arm)
    try:
        method = method_of(config, arm)
    except RuleError:
        return []  # said already
    before = bool(aggregation.before)
    found = refusals(
        rule=aggregation.rule,
        before=before,
        method=method,
        space=aggregation.space,
        both_factors=settings.both_factors,
    )
    if method is not None and settings.mode == "correlated":
        found += not_summed(method)
        if config.optimizer_of(arm) is not None:
            found.append(
                'server.optimizer: got one with privacy.mode = "correlated", whose noises take each other back in sums '
                'of rounds, and steps of an optimizer are none; set optimizer = "none", or mode = "central"'
            )
    if method is None and not found:
        found.append(
            "aggregation.method: missing; a run trains LoRA adapters, and a clip must know which factor travels: set "
            'method = "ffa_lora", "fedsvd", "rolora" or "fedsb"'
        )
    if aggregation.weights != "equal":
        found.append(
            f'aggregation.weights: got "{aggregation.weights}" with [privacy], expected "equal": with unequal ones a '
            "client moves the mean by more than its clip; leave it out"
        )
    if config.model.pretrain is not None and config.model.pretrain.label is None:
        found.append(
            "model.pretrain.label: missing with [privacy]: without one the base is made of the clients' own texts, "
            "which no noise covers; give the label of texts that are public"
        )
    if config.adapter.mixed:
        found.append(
            f"adapter.ranks: got {list(config.adapter.each_rank)} with [privacy], expected one rank: a sum has one "
            "bound"
        )
    if arm.attack is not None:
        found.append(
            f"arms[{index}].attack: got one with [privacy]: attacks are crafted from the messages of a round's honest "
            "clients, and who those are is private; leave one of the two out"
        )
    if config.message.format is not None and config.secure_of(arm) is None:
        found.append(
            f'message.format: got "{config.message.format}" with [privacy], whose messages go as they are clipped or '
            "noised; leave it out"
        )
    private = sum(config.privacy_of(one) is not None for one in config.arms)
    if settings.mode == "distributed" and (exposed := config.run.rounds * private * EXPOSED) >= settings.delta:
        found.append(
            f"privacy.delta: got {settings.delta:g}, expected more than {exposed:.2g}, the chance that masks fail in "
            f"one of {config.run.rounds * private} rounds (2^-40 in each)"
        )
    if settings.separation is not None and settings.separation > config.run.rounds:
        found.append(
            f"privacy.separation: got {settings.separation} of {config.run.rounds} rounds, expected at most all, with "
            "which every client is in one round"
        )
    return found + ([] if clients is None else _client_faults(config, clients))


def _client_faults(config: Config, clients: int) -> list[str]:
    """What so many clients are too few for."""
    settings, found = config.privacy, []
    assert settings is not None
    try:
        check_delta(settings.delta, clients)
    except PrivacyError as error:
        found.append(f"privacy.{error}")
    for name in ("clients_per_round", "fewest_clients", "separation"):
        value = getattr(settings, name)
        if value is not None and value > clients:
            found.append(f"privacy.{name}: got {value} of {clients} clients, expected at most that")
    fewest = settings.fewest_clients or clients
    if settings.corrupt_clients >= fewest:
        found.append(
            f"privacy.corrupt_clients: got {settings.corrupt_clients} of at least {fewest} clients in a sum, expected "
            "fewer: only honest clients' noise counts"
        )
    elif settings.mode == "distributed" and corrupt_among(settings, clients) >= fewest:
        found.append(
            f"privacy.fewest_clients: got {fewest} of {clients} clients, expected at least 2: whoever is in a sum "
            "knows its own noise, and only that of others hides them from it"
        )
    return found
