"""Whether two things were trained on one base model, and their tensors stand for the same on it.

Digests are compared with digests, names with names, and settings of PEFT under which tensors of one name and shape mean
something else where both have a config.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from itertools import combinations
from pathlib import PurePath
from typing import Any, NamedTuple

from fedcore.errors import LayoutError
from fedcore.numbers import shown
from fedcore.updates.taken import settings_of_rest
from fedcore.updates.update import Update

_DIGEST = re.compile(r"[0-9a-f]{64}")
#: organisation/model: said in full, unlike the path at which one machine has it
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
#: of adapter_config: whose rows trainable tokens are, which layers stand more than once, when an activated LoRA acts
_MEANING = ("alora_invocation_tokens", "layer_replication", "trainable_token_indices")


class BaseIdentity(NamedTuple):
    """What is known of a base and of what tensors stand for on it.

    digest    SHA-256 of its weights as fedcore writes it
    name      its name or path as PEFT has it
    settings  JSON of what adapter_config says for each key of `_MEANING` and how factors were begun; None without a
              config
    """

    digest: str | None
    name: str | None
    settings: tuple[str, ...] | None = None

    @classmethod
    def of(cls, update: Update) -> BaseIdentity:
        """From an update's `base` and its adapter_config."""
        config = update.adapter_config
        settings = tuple(json.dumps(value) for value in _settings(config).values()) if config else None
        if update.base is not None and not is_digest(update.base):
            return cls(None, update.base, settings)
        name = config.get("base_model_name_or_path")
        return cls(update.base, name if isinstance(name, str) and name else None, settings)

    def differs(self, other: BaseIdentity) -> bool:
        """Whether they are known to be two bases: by digest where both have one, else by name where both have one."""
        if self.digest and other.digest:
            return self.digest != other.digest
        return bool(self.name and other.name) and not same_name(self.name or "", other.name or "")


def _settings(config: dict[str, Any]) -> dict[str, Any]:
    """What tells the meaning of tensors, by its key in adapter_config; None is PEFT's default."""
    return {key: config.get(key) or None for key in _MEANING} | settings_of_rest(config)


def is_digest(base: str) -> bool:
    """Whether `base` is the hexadecimal SHA-256 that fedcore writes, and not a name."""
    return _DIGEST.fullmatch(base) is not None


def same_name(one: str, other: str) -> bool:
    """Hub names are equal or not; a path counts by its last part, since each machine has its own."""
    if one == other or (_HUB_NAME.fullmatch(one) and _HUB_NAME.fullmatch(other)):
        return one == other
    return PurePath(one).name == PurePath(other).name


def check_same_base(updates: Iterable[tuple[str, Update]]) -> None:
    """Raise LayoutError naming two of (who, update) whose base models, or what tensors stand for on it, differ."""
    # one for each identity: a cohort has many updates and few bases
    seen: dict[BaseIdentity, tuple[str, Update]] = {}
    for who, update in updates:
        seen.setdefault(BaseIdentity.of(update), (who, update))
    for (one, (first, like)), (other, (later, update)) in combinations(seen.items(), 2):
        if one.differs(other):
            by_digest = one.digest and other.digest
            got, expected = (other.digest, one.digest) if by_digest else (other.name, one.name)
            raise LayoutError(
                f"{later}: its base model is {shown(got)}, expected {shown(expected)} like {first}; "
                "aggregate one base at a time"
            )
        if one.settings and other.settings and one.settings != other.settings:
            wanted, found = _settings(like.adapter_config), _settings(update.adapter_config)
            key = next(key for key in wanted if wanted[key] != found[key])
            raise LayoutError(
                f"{later}: adapter_config has {key} {shown(found[key])}, expected {shown(wanted[key])} like {first}: "
                "its tensors stand for something else; train all adapters with one setting"
            )
