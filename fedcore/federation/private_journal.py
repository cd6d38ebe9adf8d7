"""What a private run keeps for its operator alone, for some days: private/ in the run folder.

private/secret (32 bytes, sealed: who is sampled, clients' noise, what commits to the texts)
private/plan-key (32 bytes, sealed: tells this run's plan from another's)
private/places.json (where budget and sealing key lie, if the configuration names other places)
private/updates/ (messages of private arms)
private/turns/<arm>/rounds (who took part when, hashed, where noise is correlated)
private/rounds/<arm>-<n>.json (who took part, digests, norms, seconds; why it stopped, is void or left a client out)
private/budget* (unless elsewhere: charges, sealed noise keys, marks of what clients with noise of their own sent)

Messages, norms and the rest expire `journal_days` after they were written, whether or not the run went on, but for
messages of a round that is not released: without them it could be trained otherwise, under other noise. The secret and
the turns, which tell who took part, expire once the run is finished. Charges, sealed keys and what was sent stay: they
are what was spent. So does the key of the plan, by which keys are destroyed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedcore.errors import FormatError, MissingError
from fedcore.federation.config_privacy import Privacy
from fedcore.federation.sealing import PLACES, places, sealing_key
from fedcore.privacy.seal import derived, sealed, unsealed
from fedcore.updates.atomic import sync, write_atomically
from fedcore.updates.header import json_object

FOLDER = "private"
_DAY = 86400.0
#: what the key that seals the secret is for
_SEAL = "seal of a run's secret"
#: what the key of its plan is for
_PLAN = "plan"


class PrivateJournal:
    """The private part of one run folder."""

    def __init__(self, run: Path):
        self.folder = run / FOLDER

    @staticmethod
    def begin(run: Path, secret: bytes, settings: Privacy) -> None:
        """Make the private part inside a new run folder, for its owner alone. Raises as `sealing_key` does."""
        folder = run / FOLDER
        folder.mkdir(mode=0o700)
        key = derived(sealing_key(settings, folder), _SEAL)
        files = {"secret": sealed(key, secret, _SEAL), "plan-key": sealed(key, derived(secret, _PLAN), _PLAN)}
        if elsewhere := places(settings):
            files[PLACES] = json.dumps(elsewhere, indent=1).encode()
        for name, data in files.items():
            (folder / name).touch(mode=0o600)
            (folder / name).write_bytes(data)

    def secret(self, sealing: bytes) -> bytes:
        """32 bytes, by the operator's key. Raises MissingError where it expired, FormatError where it does not open."""
        return self._opened("secret", _SEAL, sealing, "expired or was destroyed, as of a finished run; start a new run")

    def plan_key(self, sealing: bytes) -> bytes:
        """32 bytes, from the secret, that stay when it is gone. Raises MissingError, FormatError as `secret` does."""
        return self._opened("plan-key", _PLAN, sealing, "missing, so the plan cannot be checked; restore it")

    def rounds_of(self, arm: str) -> Path:
        """Where the rounds of an arm with correlated noise are kept."""
        return self.folder / "turns" / arm / "rounds"

    def keep(self, arm: str, number: int, facts: dict[str, Any]) -> None:
        """Write what round `number` of an arm must not publish. Raises StorageError."""
        write_atomically(self._round(arm, number), (json.dumps(facts, indent=1) + "\n").encode())

    def kept(self, arm: str, number: int) -> dict[str, Any] | None:
        """What `keep` wrote, None where it expired. Raises FormatError where it was damaged."""
        path = self._round(arm, number)
        return json_object(path.read_bytes(), str(path), "restore it from a copy") if path.is_file() else None

    def destroy_secret(self) -> None:
        """Delete the secret, from which clients' noise was derived: the run is finished."""
        (self.folder / "secret").unlink(missing_ok=True)
        sync(self.folder)

    def expire(
        self, days: int, *, finished: bool, released: Callable[[str, int], bool], now: float | None = None
    ) -> int:
        """Delete what is older than `days`, but messages of a round that is not `released`: how many files."""
        limit = (time.time() if now is None else now) - days * _DAY
        found = [p for part in ("rounds", "updates") for p in self.folder.glob(f"{part}/**/*") if p.is_file()]
        found += [p for p in self._of_the_whole() if finished and p.is_file()]
        old = [path for path in found if path.stat().st_mtime < limit and not self._pending(path, released)]
        for path in old:
            path.unlink(missing_ok=True)
        for folder in {path.parent for path in old}:
            sync(folder)
        return len(old)

    def _of_the_whole(self) -> list[Path]:
        """What an unfinished run needs to go on, whatever its age."""
        return [self.folder / "secret", *self.folder.glob("turns/*/*")]

    def _pending(self, path: Path, released: Callable[[str, int], bool]) -> bool:
        """Whether a file is a message of a round that is not released."""
        part, *inside = path.relative_to(self.folder).parts
        return part == "updates" and not released(inside[0], int(inside[1].removeprefix("round-")))

    def _opened(self, name: str, context: str, sealing: bytes, missing: str) -> bytes:
        path = self.folder / name
        if not path.is_file():
            raise MissingError(f"{path}: {missing}", filename=path)
        if (found := unsealed(derived(sealing, _SEAL), path.read_bytes(), context)) is None:
            raise FormatError(f"{path}: does not open: changed, or sealed by another key; restore both as they were")
        return found

    def _round(self, arm: str, number: int) -> Path:
        return self.folder / "rounds" / f"{arm}-{number:03d}.json"
