"""What the rounds of an arm leave, one file each, known to the ledger by its digest.

arms/<name>/round-<n>.safetensors (the global adapter; round-000 is what the first round starts from)
server-<n>.safetensors (of a server optimiser)  side-<n>.safetensors (of a LoRA method)  fixed-<n>, start-<digest>-<n>,
kept-<client>-<n>.safetensors (factors around a core, starts of clients that are not the global adapter, what stays with
a client of what it trained; under masks that lies in clients/: `client_disks`)
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedcore.errors import LayoutError, MissingError
from fedcore.federation.client_disks import ClientDisks
from fedcore.federation.server_state import ServerState
from fedcore.federation.start import Start
from fedcore.updates import Update
from fedcore.updates.atomic import write_atomically


class RoundFiles:
    """The folder arms/ of a run, and what lies in place of it on clients' own disks."""

    def __init__(self, run: Path):
        self.folder = run / "arms"
        self.disks = ClientDisks(run)

    def save_first(self, arm: str, adapter: Update) -> None:
        """Keep what the first round starts from, its `reference` in the ledger, unless an interrupted run has."""
        if not self._global(arm, 0).exists():
            write_atomically(self._global(arm, 0), adapter.to_bytes())

    def save_global(self, arm: str, number: int, update: Update) -> Update:
        """Keep the adapter that round `number` made; gives it back as read from those bytes, as a resumed run would."""
        write_atomically(self._global(arm, number), data := update.to_bytes())
        return Update.from_bytes(data, source=str(self._global(arm, number)))

    def load_global(self, arm: str, number: int, digest: str) -> Update:
        """The adapter that round `number` made. Raises LayoutError if it is not the one in the ledger."""
        return _known(self._global(arm, number), digest)

    def save_start(self, arm: str, number: int, start: Start, *, masked: bool = False) -> tuple[Start, dict[str, Any]]:
        """Keep all that round `number` made: (the same as read from those bytes, its digests for the ledger).

        masked: starts of clients lie on their own disks, and their digests are keyed
        """
        adapter = self.save_global(arm, number, start.adapter)
        beside = {"side": start.side, "fixed": start.fixed}
        read = {what: update and self.save_beside(arm, number, what, update) for what, update in beside.items()}
        starts, digests = (self.disks.save if masked else self._save_starts)(arm, number, start.starts)
        names: dict[str, Any] = {what: update and update.digest() for what, update in read.items()}
        return Start(adapter, **read, starts=starts), names | {"starts": digests, "output": adapter.digest()}

    def load_start(self, arm: str, number: int, entry: dict[str, Any]) -> Start:
        """What `save_start` kept, as the ledger's entry has it. Raises LayoutError if something is not what it says."""
        adapter = self.load_global(arm, number, entry["output"])
        read = {what: self.load_beside(arm, number, what, entry[what]) for what in ("side", "fixed") if entry.get(what)}
        load = self.disks.load if "secure" in entry else self._load_starts
        return Start(adapter, **read, starts=load(arm, number, entry.get("starts", {})))

    def save_beside(self, arm: str, number: int, what: str, update: Update) -> Update:
        """Keep what round `number` made or needs beside the adapter; gives it back as read from those bytes."""
        write_atomically(self._beside(arm, number, what), data := update.to_bytes())
        return Update.from_bytes(data, source=str(self._beside(arm, number, what)))

    def load_beside(self, arm: str, number: int, what: str, digest: str | None = None) -> Update:
        """What `save_beside` kept. Raises LayoutError if it is not the one in the ledger."""
        return _known(self._beside(arm, number, what), digest)

    def save_state(self, arm: str, number: int, state: ServerState) -> str:
        """Keep what the server optimiser remembers after round `number`; gives back the SHA-256 of its file."""
        write_atomically(self._state(arm, number), data := state.to_bytes())
        return hashlib.sha256(data).hexdigest()

    def load_state(self, arm: str, number: int, digest: str) -> ServerState:
        """The state after round `number`. Raises MissingError, or LayoutError if it is not the one in the ledger."""
        path = self._state(arm, number)
        if not path.is_file():
            raise MissingError(
                f"{path}: the ledger has this state, the file is not there; restore it from a copy", filename=path
            )
        data = path.read_bytes()
        if (found := hashlib.sha256(data).hexdigest()) != digest:
            raise LayoutError(f"{path}: its SHA-256 is {found[:16]}..., the ledger says {digest[:16]}...")
        return ServerState.from_bytes(data, str(path))

    def _save_starts(
        self, arm: str, number: int, starts: Mapping[str, Update]
    ) -> tuple[dict[str, Update], dict[str, str]]:
        digests = {client: update.digest() for client, update in starts.items()}
        made = {d: self.save_beside(arm, number, _start(d), starts[client]) for client, d in digests.items()}
        return {client: made[digest] for client, digest in digests.items()}, digests

    def _load_starts(self, arm: str, number: int, digests: Mapping[str, str]) -> dict[str, Update]:
        made = {digest: self.load_beside(arm, number, _start(digest), digest) for digest in set(digests.values())}
        return {client: made[digest] for client, digest in digests.items()}

    def _global(self, arm: str, number: int) -> Path:
        return self.folder / arm / f"round-{number:03d}.safetensors"

    def _beside(self, arm: str, number: int, what: str) -> Path:
        return self.folder / arm / f"{what}-{number:03d}.safetensors"

    def _state(self, arm: str, number: int) -> Path:
        return self.folder / arm / f"server-{number:03d}.safetensors"


def _start(digest: str) -> str:
    """What the clients' starts of one content are kept as."""
    return f"start-{digest[:16]}"


def _known(path: Path, digest: str | None) -> Update:
    """An adapter that the ledger knows by its digest, or that it does not name (None)."""
    if not path.is_file():
        raise MissingError(
            f"{path}: the ledger has this round, the adapter is not there; restore it from a copy", filename=path
        )
    update = Update.from_bytes(path.read_bytes(), source=str(path))
    if digest is not None and update.digest() != digest:
        raise LayoutError(f"{path}: its digest is {update.digest()[:16]}..., the ledger says {digest[:16]}...")
    return update
