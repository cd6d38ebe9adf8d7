"""A roster on disk, kept by whom clients trust, not by the server: members join, change their key, and leave."""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedcore.errors import ExistsError, FormatError, MissingError, PrivacyError, StorageError
from fedcore.numbers import one_line, printable, shown
from fedcore.privacy.secagg.keys import KEY_BYTES
from fedcore.privacy.secagg.roster import Roster
from fedcore.updates.atomic import Unflushed, write_atomically, write_new
from fedcore.updates.file import read_regular
from fedcore.updates.file_lock import locked_beside

VERSION = 1
#: bytes of a roster, many times those of as many members as a round can have
MOST = 64 << 20
_EXPECTED = f"a roster of at most {MOST >> 20} MiB, a JSON file as fedcore keys writes it; give its path"
_EXPECTED_KEY = f"the {KEY_BYTES} bytes of a secret key, as fedcore keys new writes them; give its path"
#: words in the names of characters that Python calls printable and that show as nothing, or change another one's form:
#: with `isprintable` and NFKC they refuse all that Unicode calls default ignorable
_UNSEEN = ("BLANK", "FILLER", "JOINER", "NULL NOTEHEAD", "VARIATION SELECTOR", "VOWEL INHERENT")


class RosterFile:
    """Members with their Ed25519 public keys, and keys that were taken out of use, which nobody can bring back.

    JSON: {"version": 1, "members": {identifier: key in hex}, "retired": [key in hex, ...]}. A change is made to what
    the file says at that moment, while others that change it wait, and is written whole or not at all. Raises
    FormatError for a file that is none, MissingError where a change finds the file gone, StorageError where it cannot
    be read, locked or written, PrivacyError for a change that would break it, or that would leave it broken by other
    hands: `revoke` is what mends that, of all members that have one key.
    """

    def __init__(self, path: str | Path):
        try:
            self.path = Path(path).resolve()  # a change replaces the file, not a link, and locks it for all its names
        except (OSError, RuntimeError, ValueError) as error:  # too long, a loop of links, a NUL
            raise _unreadable(path, error) from None
        self._name = printable(self.path)  # in errors
        self._read(self._data())

    @classmethod
    def existing(cls, path: str | Path) -> RosterFile:
        """One that is there. Raises MissingError."""
        found = cls(path)
        if not found.there:
            raise MissingError(f"{printable(path)}: no such roster; make it with fedcore keys enrol", filename=path)
        return found

    def _data(self) -> bytes | None:
        """What is in the file; None where there is none."""
        try:
            return read_regular(self.path, MOST, _EXPECTED)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _unreadable(self.path, error) from None

    def _read(self, data: bytes | None) -> None:
        self.members: dict[str, str] = {}
        self.retired: list[str] = []
        #: whether there is a file, since it was read or written
        self.there = data is not None
        if data is None:
            return
        try:
            found = json.loads(data.decode(), object_pairs_hook=self._each_once)
            version, members, retired = found["version"], found["members"], found["retired"]
            right = type(version) is int and version == VERSION and type(members) is dict and type(retired) is list
            if not right or not all(isinstance(text, str) for text in [*members.values(), *retired]):
                raise ValueError
        except FormatError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise FormatError(
                f"{self._name}: is no roster of version {VERSION}, expected JSON as fedcore keys writes it; put back "
                "a whole copy, a new one would forget retired keys"
            ) from None
        self.members = {name: _written(key) for name, key in members.items()}
        self.retired = [_written(key) for key in retired]

    def _each_once(self, pairs: list[tuple[str, object]]) -> dict[str, object]:
        """Of two of one name Python would take the last: whose key it is would depend on who reads."""
        names = Counter(name for name, _ in pairs)
        if twice := [name for name, count in names.items() if count > 1]:
            raise FormatError(f"{self._name}: names {shown(twice[0])} twice; take out the one that is wrong")
        return dict(pairs)

    def roster(self) -> Roster:
        """For `Client` and `Server`. Raises PrivacyError for keys that are none, retired, or two members', and for
        identifiers that are none."""
        return self._of(self.members)

    def _of(self, members: dict[str, str]) -> Roster:
        for name, text in members.items():
            self._check(name, "; revoke it with fedcore keys and enrol it under another name")
            if text in self.retired:
                raise PrivacyError(
                    f"{self._name}: the key of {shown(name)} was retired; rotate or revoke it with fedcore keys"
                )
        return Roster({name: _key(text, f"{self._name}: {shown(name)}") for name, text in members.items()})

    def _check(self, name: str, remedy: str = "") -> None:
        if not is_identifier(name):
            raise PrivacyError(
                f"{self._name}: got {one_line(ascii(name))}, expected an identifier of printable characters in "
                f"Unicode's normal form NFKC, none that shows as nothing, without blanks at its ends{remedy}"
            )

    def enrol(self, name: str, public: str) -> None:
        """A new member, with its Ed25519 public key in hex.

        Raises as every change does (see the class), PrivacyError also for a name that is no identifier
        (`is_identifier`) or a member's already, and for a key that is none, retired or a member's.
        """
        self._check(name)
        key = _key(public, "public key").hex()
        with self._changing():
            if name in self.members:
                raise PrivacyError(
                    f"{self._name}: {shown(name)} is a member; give it another key with fedcore keys rotate"
                )
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
            data = self._data()
            if self.there and data is None:
                raise MissingError(
                    f"{self._name}: the roster is gone; put it back, a new one would forget retired keys",
                    filename=self.path,
                )
            self._read(data)
            before = self.members.copy(), self.retired.copy()
            try:
                yield
                text = json.dumps({"version": VERSION, "members": self.members, "retired": self.retired}, indent=1)
                write_atomically(self.path, text.encode() + b"\n")
            except Unflushed:  # the file names them
                self.there = True
                raise
            except BaseException:
                self.members, self.retired = before  # nobody is to be taken for a member whom the file does not name
                raise
            self.there = True

    def _member(self, name: str) -> str:
        if not isinstance(name, str) or name not in self.members:
            raise PrivacyError(f"{self._name}: {shown(name)} is no member; enrol it first")
        return self.members[name]

    def _put(self, name: str, key: str) -> None:
        if key in self.retired:
            raise PrivacyError(f"{self._name}: the key was retired; make a new one with fedcore keys new")
        if holder := next((member for member, its in self.members.items() if its == key), None):
            raise PrivacyError(f"{self._name}: the key is that of a member, {shown(holder)}; each needs its own")
        members = self.members | {name: key}
        self._of(members)
        self.members = members


def is_identifier(name: object) -> bool:
    """Whether a member can be told from others by this name where it is shown.

    Printable characters in the form NFKC, none that shows as nothing, no blanks at the ends. Letters of one script that
    look like another's are let through: `fedcore keys show` prints names that are not ASCII escaped as well.
    """
    return (
        isinstance(name, str)
        and name != ""
        and name.isprintable()
        and name == name.strip()
        and unicodedata.is_normalized("NFKC", name)
        and not any(word in unicodedata.name(one, "") for one in name for word in _UNSEEN)
    )


def _unreadable(path: str | Path, error: Exception, expected: str = _EXPECTED) -> StorageError:
    reason = error.strerror if isinstance(error, OSError) else error
    return StorageError(
        f"{printable(path)}: {reason}, expected {expected}",
        errno=getattr(error, "errno", None),
        filename=path,
    )


def _written(text: str) -> str:
    """A key as this file writes it, however it was put there; what is none stays as it is."""
    try:
        return bytes.fromhex(text).hex()
    except ValueError:
        return text


def _key(text: str, what: str) -> bytes:
    try:
        key = bytes.fromhex(text)
    except (ValueError, TypeError):
        key = b""
    if len(key) != 32:
        raise PrivacyError(f"{what}: expected an Ed25519 public key, 64 hexadecimal digits")
    return key


def new_key(path: str | Path) -> str:
    """Write a member's new signing key (32 bytes, readable by its owner alone); returns the public key in hex.

    Raises ExistsError, StorageError. `public_of` gives it again.
    """
    key = Ed25519PrivateKey.generate()
    try:
        write_new(Path(path), key.private_bytes_raw())
    except ExistsError as error:
        raise error.with_message(f"{error}, or show its public half with fedcore keys public") from None
    except ValueError as error:  # of a path with a NUL
        raise StorageError(f"{str(path)!a}: {error}; choose another name") from None
    return key.public_key().public_bytes_raw().hex()


def public_of(path: str | Path) -> str:
    """The public key, in hex, of the secret key that `new_key` wrote.

    Raises MissingError, StorageError where it cannot be read, and FormatError for a file that is none.
    """
    try:
        secret = read_regular(path, KEY_BYTES, _EXPECTED_KEY)
    except FileNotFoundError:
        raise MissingError(f"{printable(path)}: no such key; make one with fedcore keys new", filename=path) from None
    except FormatError:
        raise
    except (OSError, ValueError) as error:
        raise _unreadable(path, error, _EXPECTED_KEY) from None
    if len(secret) != KEY_BYTES:
        raise FormatError(f"{printable(path)}: has {len(secret)} bytes, expected {_EXPECTED_KEY}")
    return Ed25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw().hex()
