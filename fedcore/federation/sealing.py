"""The key that seals what a private run must keep secret, and where it and the population's budget lie."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

from fedcore.errors import FormatError, MissingError
from fedcore.federation.config_privacy import Privacy
from fedcore.privacy.seal import KEY_BYTES
from fedcore.updates.atomic import refused, sync


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
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # another run over this population may be as quick
            with contextlib.suppress(FileExistsError), _new(path) as file:
                file.write(os.urandom(KEY_BYTES))
                file.flush()
                os.fsync(file.fileno())
            sync(path.parent)
        except OSError as error:
            raise refused(path, error) from error
    key = path.read_bytes()
    if len(key) != KEY_BYTES:
        raise FormatError(f"{path}: got {len(key)} bytes, expected a sealing key of {KEY_BYTES}; restore it")
    return key


def _new(path: Path) -> Any:
    return open(path, "xb", opener=lambda name, flags: os.open(name, flags, 0o600))
