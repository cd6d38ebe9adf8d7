"""Keys of the file that nothing would look at, one line each: who sets one means something by it."""

from __future__ import annotations

from collections.abc import Callable

from fedcore.errors import RuleError
from fedcore.federation.config import Aggregation, Arm, Config
from fedcore.federation.config_secure import Secure
from fedcore.federation.rule_names import make_chain


def unused_keys(config: Config) -> list[str]:
    """Keys with another value than their default that no arm uses: a file that was written whole has every default."""
    found, settings = [], [config.aggregation_of(arm) for arm in config.arms]
    rules = ", ".join(dict.fromkeys(one.method or one.rule for one in settings))
    # a method with a center is told of elsewhere
    centered = any(_uses("center", one) or (one.method and one.center != "reference") for one in settings)
    if config.aggregation.center != "reference" and not centered:
        found.append(
            f'aggregation.center: got "moved_on" with {rules}; it is where centered_clipping starts: leave it out'
        )
    if config.server.data is not None and not any(_uses("server", one) for one in settings):
        found.append(
            f'server.data: got "{config.server.data}" with {rules}; only rules that compare with an update of the '
            "server read it (fltrust, monna): leave it out"
        )
    if config.secure is not None:
        found += _masks("secure", config, config.secure, [arm for arm in config.arms if arm.secure is None])
    for index, arm in enumerate(config.arms):
        if isinstance(arm.secure, Secure):
            found += _masks(f"arms[{index}].secure", config, arm.secure, [arm])
    return found


def _uses(reference: str, settings: Aggregation) -> bool:
    """Whether its rule looks at that row; one that is wrong is told of elsewhere."""
    if settings.method is not None:
        return False
    try:
        return reference in make_chain(settings.rule, settings.parameters, settings.before).uses
    except RuleError:
        return True


def _masks(table: str, config: Config, settings: Secure, arms: list[Arm]) -> list[str]:
    """The keys of one table of masks that none of its arms uses."""

    def noisy(arm: Arm) -> bool:
        privacy = config.privacy_of(arm)
        return privacy is not None and privacy.mode == "distributed"

    def equal(arm: Arm) -> bool:
        return noisy(arm) or config.aggregation_of(arm).weights == "equal"

    unread: list[tuple[str, Callable[[Arm], bool], str]] = [
        ("bits", noisy, 'privacy.mode = "distributed", which has a grid of its own'),
        ("largest", noisy, 'privacy.mode = "distributed", where the clip bounds a change'),
        ("largest_weight", equal, 'weights = "equal", by which each client counts for 1'),
    ]
    return [
        f"{table}.{key}: got {getattr(settings, key):g} with {why}: leave it out"
        for key, useless, why in unread
        if getattr(settings, key) != Secure.model_fields[key].default and arms and all(map(useless, arms))
    ]
