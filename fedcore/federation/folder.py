"""The run folder: where everything a run leaves has its place, created whole, opened again to resume.

config.toml  run.json  ledger.jsonl  metrics.jsonl  updates/  arms/<name>/round-<n>.safetensors  arms/<name>/adapter/
privacy.json  private/ (of a private run: its plan; what it does not publish, updates/ of its private arms among it)
arms/<name>/server-<n>.safetensors (of a server optimiser)  arms/<name>/side-<n>.safetensors, side/ (of a LoRA method)
arms/<name>/fixed-<n>, start-<digest>-<n>, kept-<client>-<n>.safetensors (factors around a core, starts of clients that
are not the global adapter, what stays with a client of what it trained)
adapter/  report.html
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from datetime import datetime
from pathlib import Path
from typing import Any

from fedcore.errors import ConfigError, ExistsError, LayoutError, MissingError, StorageError
from fedcore.federation.config import Config
from fedcore.federation.config_file import load_config, to_toml
from fedcore.federation.journal import Journal, LineLog
from fedcore.federation.private_journal import PrivateJournal
from fedcore.federation.server_state import ServerState
from fedcore.federation.start import Start
from fedcore.updates import Update
from fedcore.updates.atomic import new_directory, refused, write_atomically


class RunFolder:
    """One run's folder. `create` and `resume` hold it for one process until `with` ends; `read` only looks at it."""

    def __init__(self, path: Path):
        self.path = path
        self.ledger = LineLog(path / "ledger.jsonl")
        self.metrics = LineLog(path / "metrics.jsonl")
        self.private = PrivateJournal(path)
        self.journal = Journal(path / "updates", self._private_messages())
        #: files of the private journal that were too old and are deleted
        self.expired = 0
        self._lock: Any = None

    @classmethod
    def create(cls, path: Path, config: Config, facts: dict[str, Any], secret: bytes | None = None) -> RunFolder:
        """Make the folder with its configuration and facts, whole or not at all. Raises ExistsError, StorageError.

        secret: of a private run
        """
        refuse_existing(path)
        with new_directory(path) as beside:
            (beside / "config.toml").write_text(to_toml(_portable(config)), encoding="utf-8")
            (beside / "run.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
            if secret is not None and config.privacy is not None:
                PrivateJournal.begin(beside, secret, config.privacy)
        folder = cls(path)
        folder._hold()
        return folder

    @classmethod
    def read(cls, path: Path) -> RunFolder:
        """Open a run folder to look at it; what expired of a private journal is deleted. Raises MissingError."""
        for name in ("config.toml", "run.json"):
            if not (path / name).is_file():
                raise MissingError(f"{path}: no {name} in it; give the folder of a run")
        folder = cls(path)
        if folder.private.folder.is_dir():
            folder._expire(load_config(path / "config.toml"))
        return folder

    @classmethod
    def resumable(cls, path: Path) -> RunFolder:
        """`read` for --resume. Raises MissingError, saying what to leave out, if there is no such folder at all."""
        if not path.exists():
            raise MissingError(f"{path}: no config.toml in it: there is nothing to resume; leave out --resume")
        return cls.read(path)

    @classmethod
    def resume(cls, path: Path, config: Config, facts: dict[str, Any]) -> RunFolder:
        """Open an interrupted run to go on with it.

        Raises ConfigError if the configuration differs from the run's own, LayoutError if the base or the texts do,
        StorageError if another process holds it.
        """
        folder = cls.resumable(path)
        same_config(folder, config)
        before = folder.facts
        for key, what in (("base", "the base model"), ("texts", "the texts"), ("adapter", "the first adapter")):
            if before[key] != facts[key]:
                raise LayoutError(
                    f"{path}: {what} changed since this run began ({before[key][:16]} then, {facts[key][:16]} now); "
                    "start a new run"
                )
        folder._hold()
        for left in sorted(path.rglob(".*.part")):
            # a file or adapter directory that a killed process was writing
            shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
        return folder

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            try:
                self.even_times()
            finally:
                self._lock.close()
                self._lock = None

    def _private_messages(self) -> dict[str, Path]:
        """Where messages of private arms lie, by arm: they expire. Those of open arms stay, for auditors."""
        if not self.private.folder.is_dir():
            return {}
        config = load_config(self.path / "config.toml")
        return {arm.name: self.private.folder / "updates" for arm in config.arms if config.privacy_of(arm) is not None}

    @property
    def facts(self) -> dict[str, Any]:
        """run.json: base, clients, machine, versions."""
        return json.loads((self.path / "run.json").read_text())

    def save_global(self, arm: str, number: int, update: Update) -> Update:
        """Keep the adapter that round `number` made; gives it back as read from those bytes, as a resumed run would."""
        write_atomically(self._global(arm, number), data := update.to_bytes())
        return Update.from_bytes(data, source=str(self._global(arm, number)))

    def load_global(self, arm: str, number: int, digest: str) -> Update:
        """The adapter that round `number` made. Raises LayoutError if it is not the one in the ledger."""
        return _known(self._global(arm, number), digest)

    def save_start(self, arm: str, number: int, start: Start) -> tuple[Start, dict[str, Any]]:
        """Keep all that round `number` made: (the same as read from those bytes, its digests for the ledger)."""
        adapter = self.save_global(arm, number, start.adapter)
        beside = {"side": start.side, "fixed": start.fixed}
        read = {what: update and self.save_beside(arm, number, what, update) for what, update in beside.items()}
        digests = {client: update.digest() for client, update in start.starts.items()}
        made = {d: self.save_beside(arm, number, _start(d), start.starts[client]) for client, d in digests.items()}
        starts = {client: made[digest] for client, digest in digests.items()}
        names: dict[str, Any] = {what: update and update.digest() for what, update in read.items()}
        return Start(adapter, **read, starts=starts), names | {"starts": digests, "output": adapter.digest()}

    def load_start(self, arm: str, number: int, entry: dict[str, Any]) -> Start:
        """What `save_start` kept, as the ledger's entry has it. Raises LayoutError if something is not what it says."""
        adapter = self.load_global(arm, number, entry["output"])
        read = {what: self.load_beside(arm, number, what, entry[what]) for what in ("side", "fixed") if entry.get(what)}
        digests = entry.get("starts", {})
        made = {digest: self.load_beside(arm, number, _start(digest), digest) for digest in set(digests.values())}
        return Start(adapter, **read, starts={client: made[digest] for client, digest in digests.items()})

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
            raise MissingError(f"{path}: the ledger has this state, the file is not there; restore it from a copy")
        data = path.read_bytes()
        if (found := hashlib.sha256(data).hexdigest()) != digest:
            raise LayoutError(f"{path}: its SHA-256 is {found[:16]}..., the ledger says {digest[:16]}...")
        return ServerState.from_bytes(data, str(path))

    def save_adapter(self, update: Update, *parts: str) -> None:
        """Write a PEFT directory inside the folder unless it is there already (each is written whole)."""
        target = self.path.joinpath(*parts, "adapter")
        if not target.exists():
            update.to_peft(target)

    def kept(self) -> str:
        """In words, what an interrupted run has kept."""
        rounds = len(self.ledger.entries)
        entry = self.ledger.entries[-1] if rounds else None
        pending = []
        for arm, number in self.journal.rounds():
            if self.ledger.find(arm=arm, round=number) is None:
                # how many take part in a private run is private
                count = "" if self.private.folder.is_dir() else f"{len(self.journal.received(arm, number))} "
                pending.append(f"{count}updates of {arm} round {number}")
        done = f"{rounds} finished rounds" + (f" (last: {entry['arm']} round {entry['round']})" if entry else "")
        return " and ".join([done, *pending])

    def _expire(self, config: Config) -> None:
        """Delete what is too old of the private journal."""
        assert config.privacy is not None, "the folder of a private run"
        days, ledger = config.privacy.journal_days, self.ledger
        self.expired = self.private.expire(
            days,
            finished=self.finished(config),
            released=lambda arm, number: ledger.find(arm=arm, round=number) is not None,
        )

    def finished(self, config: Config) -> bool:
        """Whether all arms went as far as they go."""
        return all(self.ledger.find(arm=a.name, round=config.run.rounds) or self.stopped(a.name) for a in config.arms)

    def even_times(self) -> None:
        """Give all public files of a private run one time, that of its start: theirs would tell how long training took.

        Change times, which no program sets, still tell whoever has an account on this machine.
        """
        if not self.private.folder.is_dir():
            return
        started = datetime.fromisoformat(self.facts["started"]).timestamp()
        for path in [self.private.folder, *self.path.rglob("*"), self.path]:
            if path == self.private.folder or self.private.folder not in path.parents:
                with contextlib.suppress(FileNotFoundError):  # another process renames what it writes beside
                    os.utime(path, (started, started))

    def stopped(self, arm: str) -> dict[str, Any] | None:
        """The ledger's entry of the round at which an arm stopped, where the next would have passed the budget."""
        return next((entry for entry in self.ledger.entries if entry["arm"] == arm and "stopped" in entry), None)

    def _global(self, arm: str, number: int) -> Path:
        return self.path / "arms" / arm / f"round-{number:03d}.safetensors"

    def _beside(self, arm: str, number: int, what: str) -> Path:
        return self.path / "arms" / arm / f"{what}-{number:03d}.safetensors"

    def _state(self, arm: str, number: int) -> Path:
        return self.path / "arms" / arm / f"server-{number:03d}.safetensors"

    def _hold(self) -> None:
        """One process writes to a run folder at a time."""
        self._lock = (self.path / "config.toml").open("rb")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise StorageError(f"{self.path}: another process is running this; wait for it or stop it") from None


def _start(digest: str) -> str:
    """What the clients' starts of one content are kept as."""
    return f"start-{digest[:16]}"


def _known(path: Path, digest: str | None) -> Update:
    """An adapter that the ledger knows by its digest, or that it does not name (None)."""
    if not path.is_file():
        raise MissingError(f"{path}: the ledger has this round, the adapter is not there; restore it from a copy")
    update = Update.from_bytes(path.read_bytes(), source=str(path))
    if digest is not None and update.digest() != digest:
        raise LayoutError(f"{path}: its digest is {update.digest()[:16]}..., the ledger says {digest[:16]}...")
    return update


def refuse_existing(path: Path) -> None:
    """Raise ExistsError if there is something at `path` already."""
    if os.path.lexists(path):
        hint = "to go on with it use --resume, else " if (path / "run.json").exists() else ""
        raise ExistsError(f"{path}: already exists; {hint}choose another --output or remove it")


def check_writable(path: Path) -> None:
    """Make and remove a folder at `path`, so that a place that takes none is found before any work.

    Raises StorageError naming it. Missing parents are made, and stay.
    """
    try:
        path.mkdir(parents=True)
        path.rmdir()
    except OSError as error:
        raise refused(path, error) from error


def same_config(folder: RunFolder, config: Config) -> None:
    """Raise ConfigError, naming the first table that differs, unless the run was started with this configuration."""
    before, now = _portable(load_config(folder.path / "config.toml")), _portable(config)
    for table in Config.model_fields:
        if getattr(before, table) != getattr(now, table):
            raise ConfigError(
                f"{table}: differs from {folder.path / 'config.toml'}, with which this run began; resume with that file"
            )


def _portable(config: Config) -> Config:
    """The configuration without the place it writes to, which changes nothing of the result."""
    return config.model_copy(update={"run": config.run.model_copy(update={"output": None})})
