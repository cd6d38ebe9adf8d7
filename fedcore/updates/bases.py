"""Whether two things were trained on one base model: digests are compared with digests, names with names."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import combinations
from pathlib import PurePath
from typing import NamedTuple

from fedcore.errors import LayoutError
from fedcore.updates.layout import shown
from fedcore.updates.update import Update

_DIGEST = re.compile(r"[0-9a-f]{64}")
#: organisation/model: said in full, unlike the path at which one machine has it
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


class BaseIdentity(NamedTuple):
    """What is known of a base: the SHA-256 of its weights as fedcore writes it, its name or path as PEFT does."""

    digest: str | None
    name: str | None

    @classmethod
    def of(cls, update: Update) -> BaseIdentity:
        """From an update's `base`, and the name that its adapter_config gives."""
        if update.base is not None and not is_digest(update.base):
            return cls(None, update.base)
        name = update.adapter_config.get("base_model_name_or_path")
        return cls(update.base, name if isinstance(name, str) and name else None)

    def differs(self, other: BaseIdentity) -> bool:
        """Whether they are known to be two bases: by digest where both have one, else by name where both have one."""
        if self.digest and other.digest:
            return self.digest != other.digest
        return bool(self.name and other.name) and not same_name(self.name or "", other.name or "")


def is_digest(base: str) -> bool:
    """Whether `base` is the hexadecimal SHA-256 that fedcore writes, and not a name."""
    return _DIGEST.fullmatch(base) is not None


def same_name(one: str, other: str) -> bool:
    """Hub names are equal or not; a path counts by its last part, since each machine has its own."""
    if one == other or (_HUB_NAME.fullmatch(one) and _HUB_NAME.fullmatch(other)):
        return one == other
    return PurePath(one).name == PurePath(other).name


def check_same_base(updates: Iterable[tuple[str, Update]]) -> None:
    """Raise LayoutError naming two of (who, update) whose base models are known to differ."""
    # one for each identity: a cohort has many updates and few bases
    seen: dict[BaseIdentity, str] = {}
    for who, update in updates:
        seen.setdefault(BaseIdentity.of(update), who)
    for (one, first), (other, later) in combinations(seen.items(), 2):
        if one.differs(other):
            by_digest = one.digest and other.digest
            got, expected = (other.digest, one.digest) if by_digest else (other.name, one.name)
            raise LayoutError(
                f"{later}: its base model is {shown(got)}, expected {shown(expected)} like {first}; "
                "aggregate one base at a time"
            )
