"""What stays with clients under masks: clients/ in the run folder, for its owner alone, plays their own disks.

clients/<arm>/<client>-<n>.safetensors (what a client starts from after round n, with its own factors)
clients/.key (32 bytes of which the ledger's digests are: with plain ones anyone could confirm a guess)
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from fedcore.errors import LayoutError, MissingError
from fedcore.privacy.seal import KEY_BYTES, derived, same_text
from fedcore.updates import Update
from fedcore.updates.atomic import refused, sync, write_atomically, write_new

FOLDER = "clients"


class ClientDisks:
    """The clients' own part of one run folder."""

    def __init__(self, run: Path):
        self.folder = run / FOLDER

    def save(self, arm: str, number: int, starts: Mapping[str, Update]) -> tuple[dict[str, Update], dict[str, str]]:
        """Keep what clients start from after a round: (the same as read from those bytes, keyed digests by client).

        Raises StorageError.
        """
        found, digests = {}, {}
        for client, update in starts.items():
            path = self._path(arm, number, client)
            digests[client] = _keyed(self._begun(), arm, number, client, update)
            write_atomically(path, data := update.to_bytes(), mode=0o600)
            found[client] = Update.from_bytes(data, source=str(path))
        return found, digests

    def load(self, arm: str, number: int, digests: Mapping[str, str]) -> dict[str, Update]:
        """What `save` kept. Raises MissingError, or LayoutError where something is not what the ledger says."""
        found = {}
        for client, digest in digests.items():
            path = self._path(arm, number, client)
            if not self.folder.is_dir():
                raise MissingError(
                    f"{self.folder}: is not there, as in a copy for others; bring it back, or start a new run",
                    filename=self.folder,
                )
            for part in (self._key, path):
                if not part.is_file():
                    raise self._missing(part)
            found[client] = Update.from_bytes(path.read_bytes(), source=str(path))
            if not same_text(digest, _keyed(self._key.read_bytes(), arm, number, client, found[client])):
                raise LayoutError(f"{path}: its digest under {self._key} is not the ledger's; restore both from a copy")
        return found

    @property
    def _key(self) -> Path:
        return self.folder / ".key"  # which no arm is called

    def _begun(self) -> bytes:
        """The key, made with the folder where nothing is kept yet. A copy of the folder may have lost its mode."""
        try:
            self.folder.mkdir(mode=0o700, exist_ok=True)
            self.folder.chmod(0o700)
            sync(self.folder.parent)
        except OSError as error:
            raise refused(self.folder, error) from error
        if not self._key.is_file():
            if any(part.is_dir() for part in self.folder.iterdir()):
                raise self._missing(self._key)
            write_new(self._key, new_key())
        return self._key.read_bytes()

    def _missing(self, part: Path) -> MissingError:
        return MissingError(f"{part}: the ledger has it, it is not there; restore it from a copy", filename=part)

    def _path(self, arm: str, number: int, client: str) -> Path:
        return self.folder / arm / f"{client}-{number:03d}.safetensors"


def new_key() -> bytes:
    """32 random bytes."""
    return os.urandom(KEY_BYTES)


def _keyed(key: bytes, arm: str, number: int, client: str, update: Update) -> str:
    return derived(key, json.dumps(["start", arm, number, client, update.digest()])).hex()
