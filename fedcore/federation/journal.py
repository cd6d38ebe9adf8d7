"""Durability: what the server has acknowledged survives a crash at any instruction.

A file counts once it has its final name: it is written beside, synced, renamed, and its folder synced. A line counts
once it ends in a newline and is synced; the torn line that a crash can leave is dropped when the log is opened.
"""

from __future__ import annotations

import hashlib
import json
import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedcore.errors import FormatError
from fedcore.updates.atomic import append, write_atomically
from fedcore.updates.header import json_object


@dataclass(frozen=True)
class Receipt:
    """What the server says to a client whose bytes it holds: they are on disk and will be counted."""

    client_id: str
    sha256: str
    size: int
    path: Path

    def open(self) -> mmap.mmap:
        """The received bytes, memory-mapped."""
        with self.path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


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
    """A file of JSON lines that only grows, one synced line at a time.

    `entries` are its lines. Opening drops a torn last line (`dropped` says whether there was one) and raises
    FormatError, with file and line, for a damaged one before it.
    """

    def __init__(self, path: Path):
        self.path = path
        content = path.read_bytes() if path.exists() else b""
        whole, _, torn = content.rpartition(b"\n")
        self.dropped = bool(torn)
        self.entries: list[dict[str, Any]] = []
        for number, line in enumerate(whole.split(b"\n") if whole else [], 1):
            self.entries.append(json_object(line, f"{path}:{number}", "the file was damaged, restore it from a copy"))
        self._size = len(content) - len(torn)

    def append(self, entry: Mapping[str, Any]) -> None:
        """Add one line; when this returns it is on disk. Raises StorageError, as `append` does."""
        line = (json.dumps(entry, ensure_ascii=False, allow_nan=False) + "\n").encode()
        append(self.path, line, keep=self._size)
        self._size += len(line)
        self.entries.append(json.loads(line))

    def find(self, **keys: Any) -> dict[str, Any] | None:
        """The first line that has all these values, or None."""
        return next((e for e in self.entries if all(e.get(k) == v for k, v in keys.items())), None)
