"""Durability: what the server has acknowledged survives a crash at any instruction.

A file counts once it has its final name: it is written beside, synced, renamed, and its folder synced. A line counts
once it ends in a newline and is synced; the torn line that a crash can leave is dropped when the log is opened.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedcore.errors import FormatError
from fedcore.updates import Update
from fedcore.updates.atomic import append, write_atomically
from fedcore.updates.directory import map_file
from fedcore.updates.file import File
from fedcore.updates.header import json_object


@dataclass(frozen=True)
class Receipt:
    """What the server says to a client whose bytes it holds: they are on disk and will be counted."""

    client_id: str
    sha256: str
    size: int
    path: Path

    def open(self) -> memoryview:
        """The received bytes, memory-mapped; before Python 3.13 a map keeps a file open. Raises as `map_file` does."""
        return map_file(self.path).data

    def update(self) -> Update:
        """The update in the message, whose tensors stay in the file: as many as arrive keep no file open."""
        return Update.open(self.path)


class Journal:
    """Received updates: updates/<arm>/round-<number>/<client>.<sha256>.safetensors, each named by its hash.

    folder   updates/ of the run
    private  arm -> the folder in its place, of arms whose messages expire
    """

    def __init__(self, folder: Path, private: Mapping[str, Path] | None = None):
        self.folder = folder
        self._private = dict(private or {})

    def receive(self, arm: str, number: int, client_id: str, data: bytes) -> Receipt:
        """Keep a client's bytes; when this returns they are on disk.

        Raises StorageError, leaving nothing behind that was not there before, or saying so (Unflushed).
        """
        digest = hashlib.sha256(data).hexdigest()
        path = self._round(arm, number) / f"{client_id}.{digest}.safetensors"
        write_atomically(path, data)
        return Receipt(client_id, digest, len(data), path)

    def received(self, arm: str, number: int) -> dict[str, Receipt]:
        """The receipts of a round so far, by client, from the files. Raises FormatError if one was damaged since."""
        receipts = {}
        folder = self._round(arm, number)
        for path in sorted(folder.glob("*.safetensors")) if folder.is_dir() else []:
            client_id, digest, _ = path.name.rsplit(".", 2)
            found = hashlib.sha256(path.read_bytes()).hexdigest()
            if found != digest:
                raise FormatError(
                    f"{path}: its SHA-256 is {found[:16]}..., not the one in its name; delete it and resume"
                )
            receipts[client_id] = Receipt(client_id, digest, path.stat().st_size, path)
        return receipts

    def rounds(self) -> list[tuple[str, int]]:
        """(arm, number) of the rounds of which there is a message or was one, in order."""
        found = [path for folder in {self.folder, *self._private.values()} for path in folder.glob("*/round-*")]
        return sorted((path.parent.name, int(path.name.removeprefix("round-"))) for path in found)

    def _round(self, arm: str, number: int) -> Path:
        return self._private.get(arm, self.folder) / arm / f"round-{number:03d}"


class LineLog:
    """A file of JSON lines that only grows, one synced line at a time; of which places alone are held, not the lines.

    Iterating reads the lines anew, one by one. Opening drops a torn last line (`dropped` says whether there was one)
    and raises FormatError, with file and line, for a damaged one before it.
    """

    def __init__(self, path: Path):
        self.path = path
        self.dropped = False
        #: (start, bytes) of each line, and by arm and round, or by arm alone, the first such line
        self._lines: list[tuple[int, int]] = []
        self._first: dict[tuple[str, int | None], int] = {}
        self._size = 0
        self.read_on()

    def read_on(self) -> None:
        """Take in what another process has added since. Raises FormatError as opening does."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            if file.seek(0, os.SEEK_END) < self._size:
                raise FormatError(f"{self.path}: is shorter than it was; the file was damaged, restore it from a copy")
            file.seek(self._size)
            for line in file:
                self.dropped = not line.endswith(b"\n")
                if self.dropped:
                    break
                self._enter(self._parsed(line, len(self._lines)), len(line))

    def append(self, entry: Mapping[str, Any]) -> None:
        """Add one line; when this returns it is on disk. Raises StorageError, as `append` does."""
        line = (json.dumps(entry, ensure_ascii=False, allow_nan=False) + "\n").encode()
        append(self.path, line, keep=self._size)
        self._enter(entry, len(line))

    def __len__(self) -> int:
        return len(self._lines)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One line. Raises MissingError, FormatError or StorageError for a file that is not what was read and added."""
        start, size = self._lines[index]
        return self._parsed(File.at(self.path).read(start, size).tobytes(), range(len(self))[index])

    @property
    def entries(self) -> list[dict[str, Any]]:
        """All lines."""
        return list(self)

    def find(self, arm: str, round: int | None = None) -> dict[str, Any] | None:
        """The first line of an arm, or of one of its rounds; None where there is none."""
        index = self._first.get((arm, round))
        return None if index is None else self[index]

    def _enter(self, entry: Mapping[str, Any], size: int) -> None:
        arm, number, index = entry.get("arm"), entry.get("round"), len(self._lines)
        if isinstance(arm, str):
            self._first.setdefault((arm, None), index)
            if isinstance(number, int):
                self._first.setdefault((arm, number), index)
        self._lines.append((self._size, size))
        self._size += size

    def _parsed(self, line: bytes, index: int) -> dict[str, Any]:
        return json_object(line, f"{self.path}:{index + 1}", "the file was damaged, restore it from a copy")
