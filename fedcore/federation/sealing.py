"""The key that seals what a private run must keep secret, and where it and the population's budget lie."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from fedcore.errors import ExistsError, FormatError, MissingError
from fedcore.federation.config_privacy import Privacy
from fedcore.privacy.seal import KEY_BYTES
from fedcore.updates.atomic import write_new


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
                f"{path}: the sealing key of {budget} is missing; put it back, or nothing can be charged"
            )
        with contextlib.suppress(ExistsError):  # another run over this population may be as quick
            write_new(path, os.urandom(KEY_BYTES))
    key = path.read_bytes()
    if len(key) != KEY_BYTES:
        raise FormatError(f"{path}: got {len(key)} bytes, expected a sealing key of {KEY_BYTES}; restore it")
    return key
