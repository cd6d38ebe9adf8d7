"""What a client demands of a round before it takes part."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

from fedcore.errors import ConfigError, MissingError, PrivacyError, StorageError
from fedcore.numbers import as_whole, got, shown
from fedcore.privacy.secagg.counts import counted
from fedcore.privacy.secagg.explanation import with_more_honest
from fedcore.privacy.secagg.groups import allows_for
from fedcore.privacy.secagg.parameters import Parameters

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_FITS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "smallest_cohort": (lambda v: type(v) is int and v >= 2, "a whole number from 2 on"),
    "largest_epsilon": (lambda v: v is None or (type(v) in (int, float) and v > 0), "a number above 0"),
    "largest_delta": (lambda v: v is None or (type(v) is float and 0 < v < 1), "a number between 0 and 1"),
    "secure": (lambda v: type(v) is bool, "true or false"),
    "adversary": (lambda v: v in ("semi_honest", "malicious"), "'semi_honest' or 'malicious'"),
    "corrupt": (lambda v: type(v) in (int, float) and 0 <= v < 1, "a part of the members, from 0 to below 1"),
    "model": (
        lambda v: v is None or (isinstance(v, str) and len(v) == 64 and set(v) <= set("0123456789abcdef")),
        "64 hexadecimal digits, in lower case",
    ),
    "methods": (lambda v: isinstance(v, (list, tuple)) and all(isinstance(x, str) for x in v), "a list of names"),
}
#: δ of a cap on ε that names none, as the field has it for populations of up to some ten thousand
USUAL_DELTA = 1e-5


@dataclass(frozen=True)
class Policy:
    """What a client accepts; a round that is outside is refused before anything is computed.

    smallest_cohort   fewest honest clients in a sum
    largest_epsilon   most ε that the client may have spent after the round; None: any, or none at all
    largest_delta     most δ that this ε may hold at; None: 1e-5, where there is a largest_epsilon. One that is not well
                      below 1 over the population promises little
    secure            whether the round must be a secure sum
    adversary         'malicious': a sum must withstand its server; 'semi_honest': either kind will do
    corrupt           smallest part of the members, rounded down to members, that may be corrupt without harm. Of the
                      members of all groups together, where there are groups: each group has to allow for as many of
                      them as chance may put there (`group_parameters`)
    model             SHA-256 (hex) of the base model; None: any
    methods           names of the methods it takes part in; empty: any

    A round in the clear shows its server each client's message. Who sets secure = false trusts the server with that,
    and largest_epsilon then caps the ε of what the server publishes if it adds the noise, and of the messages if the
    clients do. A smallest_cohort above 2, adversary = 'malicious' or corrupt above 0 refuses rounds in the clear, since
    masks alone keep them.

    That a sum is no group's, groups = 1 of its parameters, is what the server says: only a client that knows the groups
    can tell, as one that drew them (`GroupDraw`).

    Raises ConfigError for a value that is none of its key's, and for largest_delta without largest_epsilon.
    """

    smallest_cohort: int = 2
    largest_epsilon: float | None = None
    largest_delta: float | None = None
    secure: bool = True
    adversary: str = "semi_honest"
    corrupt: float = 0.0
    model: str | None = None
    methods: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for key, (fits, expected) in _FITS.items():
            if not fits(value := getattr(self, key)):
                raise ConfigError(f"{key}: got {shown(value)}, expected {expected}")
        if self.largest_delta is not None and self.largest_epsilon is None:
            raise ConfigError(f"largest_delta: got {self.largest_delta} without largest_epsilon; set both, or neither")
        object.__setattr__(self, "methods", tuple(self.methods))

    @classmethod
    def load(cls, path: str | Path) -> Policy:
        """From `policy.toml`, whose keys are those above. Raises MissingError, StorageError, ConfigError."""
        try:
            found = tomllib.loads(Path(path).read_text(encoding="utf-8-sig"))  # some editors begin it with a mark
        except FileNotFoundError:
            raise MissingError(f"{path}: no such file; write the client's policy there", filename=path) from None
        except OSError as error:
            raise StorageError(
                f"{path}: {error.strerror}, expected the client's policy, a TOML file", errno=error.errno, filename=path
            ) from None
        except (ValueError, RecursionError) as error:  # of TOML, of UTF-8, of the path, or nesting too deep
            raise ConfigError(f"{str(path)!r}: {error}") from None
        return cls.checked(found, str(path))

    @classmethod
    def checked(cls, given: Mapping[str, Any], where: str) -> Policy:
        """From a mapping of keys that may be unknown. Raises ConfigError, which names the place as well."""
        for key in given:
            if key not in _FITS:
                raise ConfigError(f"{where}: unknown key {key!r}, expected one of {', '.join(_FITS)}")
        try:
            return cls(**given)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None

    def check(self, offer: Offer) -> None:
        """Raise PrivacyError for the first thing that this client does not accept."""
        if offer.parameters is None:
            self._check_clear()
        else:
            self._check_sum(offer.parameters, offer.members)
        self._check_spent(offer)
        if self.model is not None and offer.model != self.model:
            raise PrivacyError(f"policy: model = {self.model[:12]}…, but the round is for another; refused")
        if self.methods and offer.method not in self.methods:
            raise PrivacyError(
                f"policy: methods = {', '.join(self.methods)}, but the round runs {offer.method!r}; refused"
            )

    def _check_clear(self) -> None:
        for refuses, asked in (
            (self.secure, "secure = true"),
            (self.smallest_cohort > 2, f"smallest_cohort = {self.smallest_cohort}"),
            (self.adversary == "malicious", "adversary = 'malicious'"),
            (self.corrupt > 0, f"corrupt = {self.corrupt}"),
        ):
            if refuses:
                raise PrivacyError(
                    f"policy: {asked}, but the round sends vectors in the clear, where the server sees each one alone; "
                    "refused"
                )

    def _check_sum(self, p: Parameters, members: int | None) -> None:
        if p.min_honest < self.smallest_cohort:
            more = with_more_honest(p)
            remedy = f" ({more.min_honest} with least_included={more.least_included})" if more else ""
            raise PrivacyError(
                f"policy: smallest_cohort = {self.smallest_cohort}, but only {p.min_honest} honest clients are "
                f"certain to be in the sum{remedy}; refused"
            )
        if self.adversary == "malicious" and not p.malicious:
            raise PrivacyError("policy: adversary = 'malicious', but the round trusts its server; refused")
        if not self.corrupt:
            return
        if p.groups > 1 and members is None:
            raise PrivacyError(
                f"policy: corrupt = {self.corrupt}, but the offer does not say how many members all {p.groups} groups "
                "have; refused"
            )
        everybody = members or p.clients
        liars = counted("corrupt", self.corrupt, everybody)
        if not allows_for(p, everybody, liars):
            chance = f", and chance puts more of {liars} into one of {p.groups} groups" if p.groups > 1 else ""
            raise PrivacyError(
                f"policy: corrupt = {self.corrupt}, but the round allows for {p.corrupt} of {p.clients} "
                f"members{chance}; refused"
            )

    def _check_spent(self, offer: Offer) -> None:
        if self.largest_epsilon is None:
            return
        if not offer.epsilon <= self.largest_epsilon:
            clear = offer.parameters is None and offer.epsilon == float("inf")
            raise PrivacyError(
                f"policy: largest_epsilon = {self.largest_epsilon}, but the round leads to {offer.epsilon}"
                + (": in the clear, without noise or under a part of a sum's" if clear else "")
                + "; refused"
            )
        if offer.delta > (most := self.largest_delta or USUAL_DELTA):
            set_by = f"largest_delta = {most}" if self.largest_delta else f"no largest_delta, so that {most} holds"
            raise PrivacyError(f"policy: {set_by}, but the round's ε holds at δ = {offer.delta}; refused")


@dataclass(frozen=True)
class Offer:
    """A round that a client is asked to join.

    parameters   of the secure sum, or None for vectors in the clear
    epsilon      ε that the client will have spent after it, by its own accounting: of the sum, where that is all that
                 the server sees; in the clear, of the client's messages, or, if the server adds the noise, of what it
                 publishes. inf without noise, and for messages of `fc.privacy.Distributed` in the clear, whose ε is of
                 their sum
    delta        δ that this ε holds at; 1 for none
    model        SHA-256 (hex) of the base model
    method       name of the aggregation method
    members      of all groups together, where the sum is of one of some groups; None: not known

    Raises PrivacyError for an ε that is no number, or below 0, a δ that is none from 0 to 1, and for a number of
    members of which the groups are not of this size.
    """

    parameters: Parameters | None
    epsilon: float = float("inf")
    delta: float = 1.0
    model: str | None = None
    method: str | None = None
    members: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.epsilon, Real) or isinstance(self.epsilon, bool) or not self.epsilon >= 0:
            raise PrivacyError(f"{got('epsilon', self.epsilon)}, expected a number from 0 on, inf without noise")
        if not isinstance(self.delta, Real) or isinstance(self.delta, bool) or not 0 <= self.delta <= 1:
            raise PrivacyError(f"{got('delta', self.delta)}, expected a number from 0 to 1, 1 without noise")
        if (p := self.parameters) is not None and self.members is not None:
            members = as_whole(self.members)
            if members is None or p.clients not in (members // p.groups, -(-members // p.groups)):
                raise PrivacyError(
                    f"{got('members', self.members)}, expected as many as {p.groups} groups have, one of them of "
                    f"{p.clients}"
                )
