"""A file of records that only grows, where a changed, dropped or rolled back record shows.

Each line ends in a MAC over the line and the MAC before it (HMAC-SHA256), under a key that the operator holds, and a
sidecar `<path>.head` says how many lines there are and the last MAC, under a MAC of its own key. What this tells, and
what it cannot, of who does not hold the key:
- a changed, inserted, reordered or removed line: always;
- a file cut short, or put back to an earlier copy, without an earlier sidecar to go with it: always;
- both put back together to what they were at one time, or both deleted: not from these two files. What is written
  beside them may tell (a `Budget` looks at the numbers of its sealed keys), and `head` is for the rest: kept in a place
  of another owner, such as a public ledger, it shows the rollback (`require`).
"""

from __future__ import annotations

import hmac
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from fedcore.errors import FormatError, PrivacyError
from fedcore.privacy.files import read
from fedcore.privacy.seal import derived, same_text
from fedcore.updates.atomic import append, refused, sync, write_atomically
from fedcore.updates.file_lock import locked_beside


class Head(NamedTuple):
    """The number of the last record, from 1, and its MAC (hex)."""

    number: int
    mac: str


class Line(NamedTuple):
    """What a record is in the file: its head, and its text."""

    head: Head
    text: bytes


class Chain:
    """The records at `path`, for one writer at a time: `with chain.locked() as records: chain.append(...)`."""

    def __init__(self, path: Path, secret: bytes):
        self.path, self._secret, self._head_secret = path, secret, derived(secret, "head of a chain")
        self.head_path = path.with_name(path.name + ".head")
        self._last = Head(0, "")

    @contextmanager
    def locked(self) -> Iterator[list[dict[str, Any]]]:
        """All records, verified, while no other process or thread reads or writes them.

        A record that a crash left half written is dropped: nobody was told of it. Raises FormatError for a file that
        was changed or rolled back, StorageError.
        """
        with locked_beside(self.path, 0o600):
            yield self._read()

    def append(self, record: dict[str, Any]) -> Head:
        """Add a record, as `line` and `write` do."""
        return self.write(self.line(record))

    def line(self, record: dict[str, Any]) -> Line:
        """The next line, of this record, for `write`. Only while `locked`."""
        content = {"number": self._last.number + 1, **record}
        content["mac"] = self._mac(self._last.mac, content)
        return Line(Head(content["number"], content["mac"]), _text(content).encode() + b"\n")

    def write(self, line: Line) -> Head:
        """Add the next line; when this returns it is on disk, and then in the head. Only while `locked`.

        Raises Unwritten where nothing of it is in the file, StorageError where some of it may be.
        """
        append(self.path, line.text, mode=0o600)
        self._last = line.head
        self._write_head()
        return self._last

    @property
    def head(self) -> Head:
        """As of the last `locked` or `append`."""
        return self._last

    def _read(self) -> list[dict[str, Any]]:
        content = read(self.path) or b""
        whole, newline, torn = content.rpartition(b"\n")
        head = self._read_head(bool(whole))
        records, last = [], Head(0, "")
        for number, text in enumerate(whole.splitlines(), 1):
            records.append(self._parse(number, text, last.mac))
            last = Head(number, records[-1]["mac"])
            if number == head.number and last != head:
                raise self._tampered(f"record {number} is not the one that {self.head_path.name} names")
        if last.number < head.number:
            raise self._tampered(f"has {last.number} records where {self.head_path.name} counts {head.number}")
        if last.number > head.number + 1:  # a crash leaves one record that the head has not counted, never two
            raise self._tampered(f"has {last.number} records where {self.head_path.name} counts only {head.number}")
        if torn:
            try:
                os.truncate(self.path, len(whole) + len(newline))
                sync(self.path)
            except OSError as error:
                raise refused(self.path, error) from error
        self._last = last
        if last != head:
            self._write_head()
        return records

    def _parse(self, number: int, text: bytes, before: str) -> dict[str, Any]:
        try:
            record = json.loads(text)
            mac = record.pop("mac")
            known = same_text(mac, self._mac(before, record)) and record.get("number") == number
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
            raise self._tampered(f"line {number} is no record") from None
        if not known:
            raise self._tampered(f"line {number} was changed, moved or written under another sealing key")
        return {**record, "mac": mac}

    def _read_head(self, started: bool) -> Head:
        if (content := read(self.head_path)) is None:
            if started:
                raise self._tampered(f"its head {self.head_path.name} is missing")
            self._write_head()  # before the first record, so that a file without a head is never a new one
            return self._last
        try:
            found = json.loads(content)
            head = Head(found["number"], found["mac"])
            known = same_text(found["seal"], self._seal(head))
        except (ValueError, KeyError, TypeError, RecursionError):
            raise self._tampered(f"its head {self.head_path.name} is damaged") from None
        if not known:
            raise self._tampered(f"its head {self.head_path.name} was changed or written under another sealing key")
        return head

    def _write_head(self) -> None:
        write_atomically(self.head_path, _text({**self._last._asdict(), "seal": self._seal(self._last)}).encode())

    def _seal(self, head: Head) -> str:
        return hmac.digest(self._head_secret, _text(head._asdict()).encode(), "sha256").hex()

    def _mac(self, before: str, record: dict[str, Any]) -> str:
        return hmac.digest(self._secret, f"{before}\n{_text(record)}".encode(), "sha256").hex()

    def _tampered(self, what: str) -> FormatError:
        return tampered(self.path, what)


def tampered(path: Path, what: str) -> FormatError:
    """The error for a file of which somebody changed or put back something."""
    return FormatError(
        f"{path}: {what}: tampered with, rolled back or damaged, so what was spent is not known; "
        "nothing is released: restore the file and its head as they were last"
    )


def require(records: list[dict[str, Any]], head: Head) -> None:
    """Raise PrivacyError unless the chain still holds the record that an earlier `head` names."""
    if head.number > len(records) or (head.number and records[head.number - 1]["mac"] != head.mac):
        raise PrivacyError(
            f"head: got one of {head.number} records, and the file, with {len(records)}, does not continue it: file "
            "and head were rolled back together; restore them as they were last"
        )


def _text(record: dict[str, Any]) -> str:
    return json.dumps(record, sort_keys=True, separators=(",", ":"))
