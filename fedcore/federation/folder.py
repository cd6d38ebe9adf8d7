"""The run folder: where everything a run leaves has its place, created whole, opened again to resume.

config.toml  run.json  ledger.jsonl  metrics.jsonl  updates/  adapter/  report.html
arms/<name>/*.safetensors (what its rounds leave: `round_files`)  arms/<name>/adapter/, side/ (what it ends with)
clients/ (what stays with clients under masks, for the run's owner alone: `client_disks`)
privacy.json  private/ (of a private run: its plan; what it does not publish, updates/ of private arms in it)
"""

from __future__ import annotations

import contextlib
import json
import os
from datetime import datetime
from pathlib import Path
from typing import Any

from fedcore.errors import ConfigError, ExistsError, LayoutError, MissingError
from fedcore.federation.config import Config
from fedcore.federation.config_changes import change
from fedcore.federation.config_file import load_config, parse_config, to_toml
from fedcore.federation.journal import Journal, LineLog
from fedcore.federation.private_journal import PrivateJournal
from fedcore.federation.round_files import RoundFiles
from fedcore.federation.sealing import public
from fedcore.updates import Update
from fedcore.updates.atomic import is_left, new_directory, refused, remove_left
from fedcore.updates.file_lock import FileLock
from fedcore.updates.header import json_object


class RunFolder:
    """One run's folder. `create`, `resume` and `hold` keep it for one process until `with` ends; `read` looks."""

    def __init__(self, path: Path):
        self.path = path
        self.ledger = LineLog(path / "ledger.jsonl")
        self.metrics = LineLog(path / "metrics.jsonl")
        self.rounds = RoundFiles(path)
        self.private = PrivateJournal(path)
        self.journal = Journal(path / "updates", self._private_messages())
        #: files of the private journal that were too old and are deleted
        self.expired = 0
        self._lock: FileLock | None = None

    @classmethod
    def create(cls, path: Path, config: Config, facts: dict[str, Any], secret: bytes | None) -> RunFolder:
        """Make the folder with its configuration and facts, whole or not at all. Raises ExistsError, StorageError.

        secret: of a private run, None of others
        """
        refuse_existing(path)
        with new_directory(path) as beside:
            text = to_toml(public(config))
            (beside / "config.toml").write_text(text, encoding="utf-8")
            # once more, as people edit the file above
            kept = json.dumps(facts | {"config": text}, indent=1) + "\n"
            (beside / "run.json").write_text(kept, encoding="utf-8")
            if secret is not None and config.privacy is not None:
                PrivateJournal.begin(beside, secret, config.privacy)
        folder = cls(path)
        folder.hold()
        return folder

    @classmethod
    def read(cls, path: Path) -> RunFolder:
        """Open a run folder to look at it; what expired of a private journal is deleted. Raises MissingError."""
        for name in ("config.toml", "run.json"):
            if not (path / name).is_file():
                raise MissingError(f"{path}: no {name} in it; give the folder of a run", filename=path)
        folder = cls(path)
        if folder.private.folder.is_dir():
            folder._expire(folder.config)
        return folder

    @classmethod
    def resumable(cls, path: Path) -> RunFolder:
        """`read` for --resume. Raises MissingError, saying what to leave out, if there is no such folder at all."""
        if not path.exists():
            raise MissingError(
                f"{path}: no config.toml in it: there is nothing to resume; leave out --resume", filename=path
            )
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
        folder.hold()
        # a file or adapter directory that a killed process was writing
        remove_left(left for left in sorted(path.rglob(".*.part")) if is_left(left.name))
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
        config = self.config
        return {arm.name: self.private.folder / "updates" for arm in config.arms if config.privacy_of(arm) is not None}

    @property
    def facts(self) -> dict[str, Any]:
        """run.json: base, clients, machine, versions, configuration. Raises FormatError where it was damaged."""
        path = self.path / "run.json"
        return json_object(path.read_bytes(), str(path), "restore it from a copy")

    @property
    def config_text(self) -> str:
        """The configuration that the run began with, in TOML, whatever became of config.toml. Raises MissingError."""
        text = self.facts.get("config")
        if not isinstance(text, str):
            path = self.path / "run.json"
            raise MissingError(
                f"{path}: has not the run's configuration; restore it from a copy or start a new run", filename=path
            )
        return text

    @property
    def config(self) -> Config:
        """`config_text`, read. Raises MissingError, and ConfigError where it does not load."""
        return parse_config(self.config_text, str(self.path / "run.json"), self.path, ran=True)

    def changed(self) -> str:
        """What was changed in config.toml after the run began, in words; "" for nothing. Raises as `config` does."""
        path = self.path / "config.toml"
        if path.exists() and path.read_bytes() == self.config_text.encode():
            return ""  # also in a copy without the private part, which does not load
        began = self.config
        try:
            said = change(began, load_config(path), str(self.path / "run.json"))
        except ConfigError as error:
            return str(error).splitlines()[0]
        return f"{path}: {said}" if said else ""

    def save_adapter(self, update: Update, *parts: str) -> None:
        """Write a PEFT directory inside the folder unless it is there already (each is written whole)."""
        target = self.path.joinpath(*parts, "adapter")
        if not target.exists():
            update.to_peft(target)

    def kept(self) -> str:
        """In words, what an interrupted run has kept."""
        rounds = len(self.ledger)
        entry = self.ledger[-1] if rounds else None
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
        return next((entry for entry in self.ledger if entry.get("arm") == arm and "stopped" in entry), None)

    def hold(self) -> RunFolder:
        """Keep other processes from writing to the folder until `with` ends.

        Raises StorageError if one does or the file system has no locks, FormatError if a log was damaged meanwhile.
        """
        lock = FileLock(
            self.path / "config.toml", busy=f"{self.path}: another process is running this; wait for it or stop it"
        )
        with contextlib.ExitStack() as opened:
            opened.callback(lock.close)
            # what the process before has written since
            self.ledger.read_on()
            self.metrics.read_on()
            opened.pop_all()
        self._lock = lock
        return self


def refuse_existing(path: Path) -> None:
    """Raise ExistsError if there is something at `path` already."""
    if os.path.lexists(path):
        hint = "to go on with it use --resume, else " if (path / "run.json").exists() else ""
        raise ExistsError(f"{path}: already exists; {hint}choose another --output or remove it", filename=path)


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
    """Raise ConfigError, naming the keys that differ, unless the run was started with this configuration.

    Nor may config.toml in its folder have been changed, which readers take for the run's. [run] output and workers may
    differ, and the folders of files.
    """
    if said := folder.changed():
        raise ConfigError(f"{said}; put it back, or start a new run with it in another folder")
    if said := change(folder.config, config, str(folder.path / "run.json")):
        raise ConfigError(f"{said}; resume with {folder.path / 'config.toml'}")
