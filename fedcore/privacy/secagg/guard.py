"""When a sum protects nobody, and what a client demands before it takes part."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np

from fedcore.errors import ConfigError, MissingError, PrivacyError, StorageError
from fedcore.numbers import shown
from fedcore.privacy.secagg.explanation import with_more_honest
from fedcore.privacy.secagg.parameters import Parameters

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def leaks(
    included: int,
    *,
    hidden_size: int | None = None,
    tokens: Sequence[int] | int | None = None,
    corrupt: int = 0,
    groups: Sequence[int] | None = None,
) -> list[str]:
    """Why a sum shows what it should hide, in words; empty where nothing known does.

    included      clients in the sum
    hidden_size   d of the model, the width of its layers
    tokens        that the clients in the sum trained on, one number each or in all
    corrupt       clients in the sum that may be with the server: they can take their own vectors off it
    groups        sizes of groups that are summed apart

    The tokens: gradients of linear layers lie in the span of their inputs, which can be searched for known tokens as
    long as there are fewer tokens than dimensions, in a plain sum over clients as in one client's gradient (DAGER,
    Petrov et al. 2024, arXiv 2405.15586). Masks hide the parts, not what the sum itself says; noise does.
    """
    found, left = [], included - corrupt
    if left <= 1:
        found.append(f"{included} clients in the sum, {corrupt} of them may be corrupt: it shows one client's vector")
    for number, size in enumerate(groups or []):
        if size - corrupt <= 1:
            found.append(f"group {number} has {size} members, {corrupt} may be corrupt: its sum shows one's vector")
    if tokens is not None and hidden_size is not None:
        total = int(np.sum(tokens))
        if total < hidden_size:
            found.append(
                f"the cohort trained on {total} tokens, fewer than the hidden size {hidden_size}: the tokens can be "
                "read from the sum; use more clients or longer texts, or add noise (fc.privacy.Distributed)"
            )
    return found


_FITS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "smallest_cohort": (lambda v: type(v) is int and v >= 2, "a whole number from 2 on"),
    "largest_epsilon": (lambda v: v is None or (type(v) in (int, float) and v > 0), "a number above 0"),
    "secure": (lambda v: type(v) is bool, "true or false"),
    "adversary": (lambda v: v in ("semi_honest", "malicious"), "'semi_honest' or 'malicious'"),
    "corrupt": (lambda v: type(v) in (int, float) and 0 <= v < 1, "a part of the members, from 0 to below 1"),
    "model": (
        lambda v: v is None or (isinstance(v, str) and len(v) == 64 and set(v) <= set("0123456789abcdef")),
        "64 hexadecimal digits, in lower case",
    ),
    "methods": (lambda v: isinstance(v, (list, tuple)) and all(isinstance(x, str) for x in v), "a list of names"),
}


@dataclass(frozen=True)
class Policy:
    """What a client accepts; a round that is outside is refused before anything is computed.

    smallest_cohort   fewest honest clients in a sum; above 2 it refuses rounds in the clear, which show each one alone
    largest_epsilon   most ε that the client may have spent after the round; None: any, or none at all
    secure            whether the round must be a secure sum
    adversary         'malicious': a sum must withstand its server; 'semi_honest': either kind will do
    corrupt           smallest part of the members, rounded down to members, that may be corrupt without harm
    model             SHA-256 (hex) of the base model; None: any
    methods           names of the methods it takes part in; empty: any

    Raises ConfigError for a value that is none of its key's.
    """

    smallest_cohort: int = 2
    largest_epsilon: float | None = None
    secure: bool = True
    adversary: str = "semi_honest"
    corrupt: float = 0.0
    model: str | None = None
    methods: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for key, (fits, expected) in _FITS.items():
            if not fits(value := getattr(self, key)):
                raise ConfigError(f"{key}: got {shown(value)}, expected {expected}")
        object.__setattr__(self, "methods", tuple(self.methods))

    @classmethod
    def load(cls, path: str | Path) -> Policy:
        """From `policy.toml`, whose keys are those above. Raises MissingError, StorageError, ConfigError."""
        try:
            found = tomllib.loads(Path(path).read_text(encoding="utf-8-sig"))  # some editors begin it with a mark
        except FileNotFoundError:
            raise MissingError(f"{path}: no such file; write the client's policy there") from None
        except OSError as error:
            raise StorageError(f"{path}: {error.strerror}, expected the client's policy, a TOML file") from None
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
        p = offer.parameters
        if p is None and self.secure:
            raise PrivacyError("policy: secure = true, but the round sends vectors in the clear; refused")
        if p is None and self.smallest_cohort > 2:
            raise PrivacyError(
                f"policy: smallest_cohort = {self.smallest_cohort}, but the round sends vectors in the clear, where "
                "the server sees each one alone; refused"
            )
        if p is not None and p.min_honest < self.smallest_cohort:
            more = with_more_honest(p)
            remedy = f" ({more.min_honest} with least_included={more.least_included})" if more else ""
            raise PrivacyError(
                f"policy: smallest_cohort = {self.smallest_cohort}, but only {p.min_honest} honest clients are "
                f"certain to be in the sum{remedy}; refused"
            )
        if p is not None and self.adversary == "malicious" and not p.malicious:
            raise PrivacyError("policy: adversary = 'malicious', but the round trusts its server; refused")
        if p is not None and p.corrupt < int(self.corrupt * p.clients + 1e-9):
            raise PrivacyError(
                f"policy: corrupt = {self.corrupt}, but the round allows for {p.corrupt} of {p.clients} "
                "members; refused"
            )
        if self.largest_epsilon is not None and not offer.epsilon <= self.largest_epsilon:
            raise PrivacyError(
                f"policy: largest_epsilon = {self.largest_epsilon}, but the round leads to {offer.epsilon}; refused"
            )
        if self.model is not None and offer.model != self.model:
            raise PrivacyError(f"policy: model = {self.model[:12]}…, but the round is for another; refused")
        if self.methods and offer.method not in self.methods:
            raise PrivacyError(
                f"policy: methods = {', '.join(self.methods)}, but the round runs {offer.method!r}; refused"
            )


@dataclass(frozen=True)
class Offer:
    """A round that a client is asked to join.

    parameters   of the secure sum, or None for vectors in the clear
    epsilon      ε that the client will have spent after it, by its own accounting; inf without noise
    model        SHA-256 (hex) of the base model
    method       name of the aggregation method

    Raises PrivacyError for an ε that is no number, or below 0.
    """

    parameters: Parameters | None
    epsilon: float = float("inf")
    model: str | None = None
    method: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.epsilon, Real) or isinstance(self.epsilon, bool) or not self.epsilon >= 0:
            raise PrivacyError(f"epsilon: got {self.epsilon!r}, expected a number from 0 on, inf without noise")


def require_linear(method: Any) -> None:
    """Raise PrivacyError for a method whose server needs more than a weighted sum of what clients send.

    method: one of `fc.lora`, whose `traits.linear` says so.
    """
    traits = getattr(method, "traits", None)
    if traits is None or not traits.linear:
        raise PrivacyError(
            f"{type(method).__name__}: its server needs each client's update, which a secure sum hides; take a method "
            "that needs sums only, such as FedIT or FFALoRA"
        )
