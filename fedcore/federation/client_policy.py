"""What the clients' policy says to a run: to all of its arms before anything is trained, and to each round again."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from fedcore.errors import ConfigError, MissingError, PrivacyError, StorageError
from fedcore.federation.config import Arm, Config
from fedcore.federation.config_privacy import Privacy
from fedcore.federation.privacy_mechanisms import distributed
from fedcore.federation.secure_sum import parameters_of, with_honest
from fedcore.privacy import Distributed, secagg


def all_agree(config: Config, clients: int, model: str | None) -> None:
    """Raise PrivacyError where the policy of an arm refuses it; MissingError, StorageError, ConfigError for the file.

    For before anything is trained or written. model: SHA-256 (hex) of the base; None: not known yet, nor looked at.
    """
    for arm in config.arms:
        secure, privacy = config.secure_of(arm), config.privacy_of(arm)
        if secure is None:
            agreed_in_the_clear(config, arm, model)
        elif config.policy_of(arm) is None:
            continue
        elif privacy is None:
            # no condition depends on how long the vectors are, which the base tells
            agreed(config, arm, list(parameters_of(secure, clients, 1).values()), clients, model)
        else:
            held = [one for one in config.arms if config.privacy_of(one) is not None]
            masks = [one for other in held if (one := config.secure_of(other)) is not None]
            # nor on how much noise there is
            mechanism = distributed(with_honest(privacy, masks, clients), clients, 1, 1.0)
            agreed(config, arm, [masks_of(config, arm, mechanism)], clients, model)


def masks_of(config: Config, arm: Arm, mechanism: Distributed) -> secagg.Parameters:
    """Parameters of the sums of an arm whose clients add noise. Raises PrivacyError."""
    secure = config.secure_of(arm)
    assert secure is not None
    return secagg.Parameters.for_distributed(
        mechanism, dropout=secure.dropout, adversary=secure.adversary, stream=secure.stream
    )


def agreed(config: Config, arm: Arm, sums: Sequence[secagg.Parameters], clients: int, model: str | None) -> None:
    """The same for these sums of an arm under masks, over so many clients in all."""
    if (policy := config.policy_of(arm)) is not None:
        _check(config, arm, policy, sums, clients, model)


def agreed_in_the_clear(config: Config, arm: Arm, model: str | None) -> None:
    """The same for an arm without masks; nothing for one with them."""
    if (policy := config.policy_of(arm)) is not None and config.secure_of(arm) is None:
        _check(config, arm, policy, [None], None, model)


def _check(
    config: Config,
    arm: Arm,
    path: str,
    sums: Sequence[secagg.Parameters | None],
    clients: int | None,
    model: str | None,
) -> None:
    aggregation = config.aggregation_of(arm)
    try:
        policy = secagg.Policy.load(path)
    except (MissingError, StorageError, ConfigError) as error:
        raise error.with_message(f"arm {arm.name!r}: {error}") from None
    if model is None:
        policy = replace(policy, model=None)
    for p in sums:
        epsilon, delta = _accounted(config.privacy_of(arm), masked=p is not None)
        offer = secagg.Offer(p, epsilon, delta, model, aggregation.method or aggregation.rule, clients)
        try:
            policy.check(offer)
        except PrivacyError as error:
            raise PrivacyError(f"arm {arm.name!r}: {path}: {str(error).removeprefix('policy: ')}") from None


def _accounted(privacy: Privacy | None, masked: bool) -> tuple[float, float]:
    """(ε, δ) of what leaves the clients, or of what a server publishes that they trust with it."""
    # without masks the server sees each message under its own part of the noise, and the accounting is of their sum
    if privacy is None or (privacy.mode == "distributed" and not masked):
        return math.inf, 1.0
    return privacy.epsilon, privacy.delta
