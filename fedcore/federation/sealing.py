"""The key that seals what a private run must keep secret, and where it and the population's budget lie."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

from fedcore.errors import ConfigError, ExistsError, FormatError, MissingError
from fedcore.federation.config import Config
from fedcore.federation.config_privacy import Privacy
from fedcore.privacy.files import read
from fedcore.privacy.seal import KEY_BYTES
from fedcore.updates.atomic import write_new
from fedcore.updates.header import json_object

#: in a run's private folder, and the keys of [privacy] in it, which are empty in the run's public configuration
PLACES = "places.json"
KEYS = ("budget", "sealing_key")


def budget_path(settings: Privacy, private: Path) -> Path:
    """The file of the population's budget, for a run whose private folder is given."""
    return Path(settings.budget) if settings.budget else private / "budget"


def sealing_key(settings: Privacy, private: Path) -> bytes:
    """The operator's key; a new one, made for its owner alone, where neither it nor the budget is there yet.

    private: the private folder of a run, where both lie unless [privacy] names other places. Raises MissingError where
    the budget has lost its key, FormatError for one of another length, StorageError.
    """
    budget = budget_path(settings, private)
    path = Path(settings.sealing_key) if settings.sealing_key else budget.with_name(budget.name + ".sealing-key")
    if not path.exists():
        if budget.exists():
            raise MissingError(
                f"{path}: the sealing key of {budget} is missing; put it back, or nothing can be charged", filename=path
            )
        with contextlib.suppress(ExistsError):  # another run over this population may be as quick
            write_new(path, os.urandom(KEY_BYTES))
    key = read(path) or b""
    if len(key) != KEY_BYTES:
        raise FormatError(f"{path}: got {len(key)} bytes, expected a sealing key of {KEY_BYTES}; restore it")
    return key


def places(settings: Privacy) -> dict[str, str]:
    """The places that [privacy] names, by key."""
    return {key: place for key in KEYS if (place := getattr(settings, key))}


def public(config: Config) -> Config:
    """A run's public configuration: without its output, and with empty places, so that no copy starts a budget."""
    run = config.run.model_copy(update={"output": None})
    if config.privacy is None:
        return config.model_copy(update={"run": run})
    empty = dict.fromkeys(places(config.privacy), "")
    return config.model_copy(update={"run": run, "privacy": config.privacy.model_copy(update=empty)})


def with_places(section: dict[str, Any], name: str, private: Path) -> dict[str, Any]:
    """A table [privacy] with its empty places filled in from a run's private folder.

    name: of the configuration in errors. Raises ConfigError where the private folder does not have them.
    """
    empty = [key for key in KEYS if section.get(key) == ""]
    try:
        kept = json_object((private / PLACES).read_bytes(), PLACES) if empty else {}
        return section | {key: str(kept[key]) for key in empty}
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigError(
            f'{name}: privacy.{empty[0]}: got "", as in the public configuration of a run, whose private/{PLACES} has '
            "it, and there is none beside this file: restore that, or in a copy give the path, or runs over one "
            "population have two budgets"
        ) from None
