"""Why an arm cannot run under masks as the file says, one line each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedcore.errors import PrivacyError, RuleError, WeightError
from fedcore.federation.config import Config
from fedcore.federation.methods import method_of
from fedcore.federation.rule_names import make_chain
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
        found += _rule_faults(config, index)
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


def _rule_faults(config: Config, index: int) -> list[str]:
    """What a rule under masks needs: a mean of parameters, or groups."""
    arm = config.arms[index]
    settings, aggregation = config.secure_of(arm), config.aggregation_of(arm)
    assert settings is not None
    if settings.groups is None:
        if aggregation.rule != "mean" or aggregation.before:
            return [
                f"{aggregation.rule}: needs each client's own update, which masks hide; set secure.groups = 3 or more "
                'to have sums over groups to choose from, or rule = "mean"'
            ]
        if aggregation.space != "parameters":
            return [
                'aggregation.space: got "delta" with [secure]: Δ of a mean is no sum of what clients send; set space = '
                '"parameters", or a method such as "ffa_lora"'
            ]
    elif make_chain(aggregation.rule, aggregation.parameters, aggregation.before).uses:
        return [f"{aggregation.rule}: compares with an update of the server, for which [secure] has no place"]
    return []


def _size_faults(config: Config, index: int, clients: int) -> list[str]:
    """What so many clients are too few for."""
    settings = config.secure_of(config.arms[index])
    assert settings is not None
    groups = settings.groups or 1
    if clients < 2:
        return [f"secure: got {clients} client, expected at least two: the sum of one's changes is its own"]
    if clients < 2 * groups:
        return [f"secure.groups: got {groups} for {clients} clients, expected at most {clients // 2}: one of a group "
                "of one is not hidden by its sum"]  # fmt: skip
    try:
        parameters_of(settings, clients, 1)
        if (privacy := config.privacy_of(config.arms[index])) is not None and privacy.mode == "distributed":
            with_honest(privacy, [settings], clients)
    except PrivacyError as error:
        return [f"secure: {error}"]
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
