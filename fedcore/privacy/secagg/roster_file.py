"""A roster on disk, kept by whom clients trust, not by the server: members join, change their key, and leave."""

from __future__ import annotations

import json
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedcore.errors import FormatError, MissingError, PrivacyError
from fedcore.privacy.secagg.roster import Roster
from fedcore.updates.atomic import write_atomically, write_new

VERSION = 1


class RosterFile:
    """Members with their Ed25519 public keys, and keys that were taken out of use, which nobody can bring back.

    JSON: {"version": 1, "members": {identifier: key in hex}, "retired": [key in hex, ...]}. Every change is written
    whole or not at all. Raises FormatError for a file that is none, PrivacyError for a change that would break it.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.members: dict[str, str] = {}
        self.retired: list[str] = []
        if self.path.exists():
            self._read()

    @classmethod
    def existing(cls, path: str | Path) -> RosterFile:
        """One that is there. Raises MissingError."""
        if not Path(path).exists():
            raise MissingError(f"{path}: no such roster; make it with fedcore keys enrol")
        return cls(path)

    def _read(self) -> None:
        try:
            found = json.loads(self.path.read_text())
            version, self.members, self.retired = found["version"], found["members"], found["retired"]
            texts = [*self.members, *self.members.values(), *self.retired]
            if version != VERSION or not all(isinstance(text, str) for text in texts):
                raise ValueError
        except (ValueError, KeyError, TypeError, AttributeError):
            raise FormatError(f"{self.path}: is no roster of version {VERSION}") from None
        if self.members:
            self.roster()

    def roster(self) -> Roster:
        """For `Client` and `Server`. Raises PrivacyError for keys that are none."""
        return Roster({name: _key(text, f"{self.path}: {name!r}") for name, text in self.members.items()})

    def enrol(self, name: str, public: str) -> None:
        """A new member."""
        if name in self.members:
            raise PrivacyError(f"{self.path}: {name!r} is a member; give it another key with fedcore keys rotate")
        self._put(name, public)

    def rotate(self, name: str, public: str) -> None:
        """Another key of a member; its old one is retired."""
        self._retire(name, public)
        self._put(name, public)

    def revoke(self, name: str) -> None:
        """A member leaves, and its key is retired."""
        self._retire(name, "")
        del self.members[name]
        self._write()

    def _retire(self, name: str, public: str) -> None:
        if name not in self.members:
            raise PrivacyError(f"{self.path}: {name!r} is no member; enrol it first")
        if public.lower() != self.members[name]:
            if public:
                self._check_new(public)
            self.retired.append(self.members[name])

    def _check_new(self, public: str) -> str:
        found = _key(public, "public key").hex()
        if found in self.retired:
            raise PrivacyError(f"{self.path}: the key was retired; make a new one with fedcore keys new")
        if found in self.members.values():
            raise PrivacyError(f"{self.path}: the key is that of a member; each needs its own")
        return found

    def _put(self, name: str, public: str) -> None:
        if not name:
            raise PrivacyError(f"{self.path}: expected an identifier, got an empty one")
        self.members[name] = self._check_new(public)
        self._write()

    def _write(self) -> None:
        text = json.dumps({"version": VERSION, "members": self.members, "retired": self.retired}, indent=1)
        write_atomically(self.path, text.encode() + b"\n")


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
