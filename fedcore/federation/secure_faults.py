"""Why an arm cannot run under masks as the file says, one line each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedcore.errors import PrivacyError, RuleError, WeightError
from fedcore.federation.config import Aggregation, Config
from fedcore.federation.config_secure import Secure
from fedcore.federation.methods import method_of
from fedcore.federation.rule_names import make_chain
from fedcore.federation.secure_groups import MANY, admitted, fewest_groups, instead, takes
from fedcore.federation.secure_sum import parameters_of, quantizer_of, weight_of, with_honest
from fedcore.lora import RandomizedSketch
from fedcore.lora.combination import refusals


def secure_faults(config: Config, index: int, clients: int | None, examples: Sequence[int]) -> list[str]:
    """What [secure] does not go together with in arm `index`; none without [secure].

    clients: how many there are; None where only the texts will tell. examples: of each, once the texts are read.
    """
    arm = config.arms[index]
    settings = config.secure_of(arm)
    if settings is None:
        return []
    try:
        method = method_of(config, arm)
    except RuleError:
        return []  # said already
    found = []
    if method is not None:
        found += refusals(method, masks=True)
        if settings.groups is not None:
            found.append("secure.groups: go with a rule, and a method adds up all clients; leave out one of the two")
        if isinstance(method, RandomizedSketch) and method.passes == 2:
            found.append("randomized_sketch: a round makes one trip, and passes = 2 needs two; set passes = 1")
    else:
        found += _rule_faults(config, index, clients)
    if config.adapter.mixed:
        found.append(
            f"adapter.ranks: got {list(config.adapter.each_rank)} with [secure], expected one rank: clients at another "
            "start from factors that the server would have to cut out of a sum"
        )
    if arm.attack is not None:
        found.append(f"arms[{index}].attack: got one with [secure], and attacks look at what masks hide; leave it out")
    if config.message.format is not None:
        found.append(
            f'message.format: got "{config.message.format}" with [secure], where integers travel: set secure.bits'
        )
    if (privacy := config.privacy_of(arm)) is not None and privacy.mode != "distributed":
        found.append(
            f'privacy.mode: got "{privacy.mode}" with [secure], expected "distributed": under masks nobody but '
            "the clients can clip and add noise"
        )
    return (
        found
        + ([] if clients is None else _size_faults(config, index, clients))
        + _weight_faults(config, index, examples)
    )


def _rule_faults(config: Config, index: int, clients: int | None) -> list[str]:
    """What a rule under masks needs: a mean of parameters, or groups."""
    arm = config.arms[index]
    settings, aggregation = config.secure_of(arm), config.aggregation_of(arm)
    assert settings is not None
    try:
        rule = make_chain(aggregation.rule, aggregation.parameters, aggregation.before)
    except RuleError:
        return []  # said already
    chooses, found = _chooses(config, index), []
    if "center" in rule.uses and aggregation.center != "reference":
        found.append(
            f'aggregation.center: got "{aggregation.center}" with [secure], where a rule over sums starts at the '
            "global adapter; leave it out"
        )
    if settings.groups is None and (aggregation.rule != "mean" or aggregation.before):
        why = "needs each client's own update, which masks hide"
    elif settings.groups is None and aggregation.space != "parameters":
        return [
            'aggregation.space: got "delta" with [secure]: Δ of a mean is no sum of what clients send; set space = '
            '"parameters", or a method such as "ffa_lora"'
        ]
    elif settings.groups is None:
        return []
    elif "server" in rule.uses:
        why = "compares with an update of the server, for which [secure] has no place"
    elif takes(rule, settings.groups) and (fewest := fewest_groups(aggregation, MANY) or 0) > settings.groups:
        chooses = f"secure.groups: got {settings.groups} with {chooses}"
        why = f"expected at least {fewest} sums to choose from"
        return [*found, f"{chooses}, {why}; {instead(settings, aggregation, clients)}"]
    else:
        return found
    return [*found, f"{chooses}: {why}; {instead(settings, aggregation, clients)}"]


def _chooses(config: Config, index: int) -> str:
    """What of an arm is more than a mean, as errors name it: the rule, or what comes before a mean."""
    arm, aggregation = config.arms[index], config.aggregation_of(config.arms[index])
    if aggregation.rule != "mean" or not aggregation.before:
        return aggregation.rule
    own = any(getattr(arm, key) is not None for key in ("rule", "before"))
    return f"{f'arms[{index}]' if own else 'aggregation'}.before ({', '.join(s['rule'] for s in aggregation.before)})"


def _size_faults(config: Config, index: int, clients: int) -> list[str]:
    """What so many clients are too few for."""
    settings, aggregation = config.secure_of(config.arms[index]), config.aggregation_of(config.arms[index])
    assert settings is not None
    if clients < 2:
        return [f"secure: got {clients} client, expected at least two: the sum of one's changes is its own"]
    if settings.groups is not None and aggregation.method is None:
        return _group_faults(settings, aggregation, clients)
    try:
        parameters_of(settings, clients, 1)
        if (privacy := config.privacy_of(config.arms[index])) is not None and privacy.mode == "distributed":
            with_honest(privacy, [settings], clients)
    except PrivacyError as error:
        return [f"secure: {error}"]
    return []


def _group_faults(settings: Secure, aggregation: Aggregation, clients: int) -> list[str]:
    """The same of groups, whose number a rule bounds from below."""
    assert settings.groups is not None
    try:
        fewest = fewest_groups(aggregation, max(settings.groups, clients // 2))
        alone = "server" in make_chain(aggregation.rule, aggregation.parameters, aggregation.before).uses
    except RuleError:
        return []  # said already
    if alone or fewest is None or settings.groups < fewest:
        return []  # said already
    if clients < 2 * settings.groups:
        if clients >= 2 * fewest:
            bound, other = f", expected at most {clients // 2}", ""
        else:
            bound, other = "", f"; {instead(settings, aggregation, clients)}"
        return [
            f"secure.groups: got {settings.groups} for {clients} clients{bound}: one of a group of one is not hidden "
            f"by its sum{other}"
        ]
    try:
        parameters_of(settings, clients, 1)
    except PrivacyError as error:
        why, _, remedy = str(error).partition("; ")
        if not admitted(settings.model_copy(update={"groups": fewest}), clients):  # so fewer do not help
            remedy = remedy.removeprefix("form fewer groups").removeprefix(", or ")
        remedy = remedy.replace("dropping out", "dropping out (secure.dropout)")
        return [f"secure: {why}; {remedy or instead(settings, aggregation, clients)}"]
    return []


def _weight_faults(config: Config, index: int, examples: Sequence[int]) -> list[str]:
    """Clients whose weight rounds to nothing."""
    arm = config.arms[index]
    if not examples or config.privacy_of(arm) is not None:
        return []
    quantizer = quantizer_of(config, arm, examples)
    try:
        quantizer.weighted(np.zeros(1), weight_of(config, arm, min(examples), quantizer))
    except WeightError as error:
        return [f"secure: a client of {min(examples)} examples: {error} (secure.bits, secure.largest_weight)"]
    return []
