"""A roster on disk, kept by whom clients trust, not by the server: members join, change their key, and leave."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedcore.errors import FormatError, MissingError, PrivacyError
from fedcore.privacy.secagg.roster import Roster
from fedcore.updates.atomic import locked_beside, write_atomically, write_new

VERSION = 1


class RosterFile:
    """Members with their Ed25519 public keys, and keys that were taken out of use, which nobody can bring back.

    JSON: {"version": 1, "members": {identifier: key in hex}, "retired": [key in hex, ...]}. A change is made to what
    the file says at that moment, while others that change it wait, and is written whole or not at all. Raises
    FormatError for a file that is none, MissingError where a change finds the file gone, StorageError where it cannot
    be locked or written, PrivacyError for a change that would break it, or that would leave it broken by other hands:
    `revoke` is what mends that, of all members that have one key.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path).resolve()  # a change replaces the file, not a link to it, and locks it for all its names
        self._read()

    @classmethod
    def existing(cls, path: str | Path) -> RosterFile:
        """One that is there. Raises MissingError."""
        if not Path(path).exists():
            raise MissingError(f"{path}: no such roster; make it with fedcore keys enrol")
        return cls(path)

    def _read(self) -> None:
        self.members: dict[str, str] = {}
        self.retired: list[str] = []
        self._there = self.path.exists()
        if not self._there:
            return
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"), object_pairs_hook=self._each_once)
            version, members, retired = found["version"], found["members"], found["retired"]
            if version != VERSION or not all(isinstance(text, str) for text in [*members, *members.values(), *retired]):
                raise ValueError
        except FormatError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise FormatError(
                f"{self.path}: is no roster of version {VERSION}, expected JSON as fedcore keys writes it; put back "
                "a whole copy, a new one would forget retired keys"
            ) from None
        self.members = {name: _written(key) for name, key in members.items()}
        self.retired = [_written(key) for key in retired]

    def _each_once(self, pairs: list[tuple[str, object]]) -> dict[str, object]:
        """Of two of one name Python would take the last: whose key it is would depend on who reads."""
        names = Counter(name for name, _ in pairs)
        if twice := [name for name, count in names.items() if count > 1]:
            raise FormatError(f"{self.path}: names {twice[0]!r} twice; take out the one that is wrong")
        return dict(pairs)

    def roster(self) -> Roster:
        """For `Client` and `Server`. Raises PrivacyError for keys that are none, retired, or two members', and for
        identifiers that are none."""
        return self._of(self.members)

    def _of(self, members: dict[str, str]) -> Roster:
        for name, text in members.items():
            if not name or not name.isprintable() or name != name.strip():  # it could pass for another one where shown
                raise PrivacyError(
                    f"{self.path}: got {name!r}, expected an identifier of printable characters, without blanks at its "
                    "ends"
                )
            if text in self.retired:
                raise PrivacyError(
                    f"{self.path}: the key of {name!r} was retired; rotate or revoke it with fedcore keys"
                )
        return Roster({name: _key(text, f"{self.path}: {name!r}") for name, text in members.items()})

    def enrol(self, name: str, public: str) -> None:
        """A new member, with its Ed25519 public key in hex.

        Raises as every change does (see the class), PrivacyError also for a name that is empty, not printable or a
        member's already, and for a key that is none, retired or a member's.
        """
        key = _key(public, "public key").hex()
        with self._changing():
            if name in self.members:
                raise PrivacyError(f"{self.path}: {name!r} is a member; give it another key with fedcore keys rotate")
            self._put(name, key)

    def rotate(self, name: str, public: str) -> None:
        """Another key of a member, in hex; its old one is retired.

        Raises as every change does (see the class), PrivacyError also for a name that is no member's, and for a key
        that is none, retired or a member's.
        """
        key = _key(public, "public key").hex()
        with self._changing():
            old = self._member(name)
            self._put(name, key)
            self.retired.append(old)

    def revoke(self, name: str) -> None:
        """A member leaves, and its key is retired.

        Raises as every change does (see the class), PrivacyError also for a name that is no member's.
        """
        with self._changing():
            self.retired.append(self._member(name))
            del self.members[name]

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """What the file says now, to be changed and written while nobody else does."""
        with locked_beside(self.path):
            if self._there and not self.path.exists():
                raise MissingError(f"{self.path}: the roster is gone; put it back, a new one would forget retired keys")
            self._read()
            before = self.members.copy(), self.retired.copy()
            try:
                yield
                text = json.dumps({"version": VERSION, "members": self.members, "retired": self.retired}, indent=1)
                write_atomically(self.path, text.encode() + b"\n")
            except BaseException:
                self.members, self.retired = before  # nobody is to be taken for a member whom the file does not name
                raise
            self._there = True

    def _member(self, name: str) -> str:
        if name not in self.members:
            raise PrivacyError(f"{self.path}: {name!r} is no member; enrol it first")
        return self.members[name]

    def _put(self, name: str, key: str) -> None:
        if key in self.retired:
            raise PrivacyError(f"{self.path}: the key was retired; make a new one with fedcore keys new")
        if key in self.members.values():
            raise PrivacyError(f"{self.path}: the key is that of a member; each needs its own")
        members = self.members | {name: key}
        self._of(members)
        self.members = members


def _written(text: str) -> str:
    """A key as this file writes it, however it was put there; what is none stays as it is."""
    try:
        return bytes.fromhex(text).hex()
    except ValueError:
        return text


def _key(text: str, what: str) -> bytes:
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) != 32:
        raise PrivacyError(f"{what}: expected an Ed25519 public key, 64 hexadecimal digits")
    return key


def new_key(path: str | Path) -> str:
    """Write a member's new signing key (32 bytes, readable by its owner alone); returns the public key in hex.

    Raises ExistsError, StorageError.
    """
    key = Ed25519PrivateKey.generate()
    write_new(Path(path), key.private_bytes_raw())
    return key.public_key().public_bytes_raw().hex()
