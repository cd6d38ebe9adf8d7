"""Who takes part: identifiers and long-term Ed25519 keys, from outside the server."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping

from fedcore.errors import PrivacyError
from fedcore.numbers import shown
from fedcore.privacy.secagg.keys import public_fault

PUBLIC_BYTES = 32
#: UTF-8 of an identifier
MOST_BYTES = 1024
Id = str | int


class Roster:
    """Members of a round with their Ed25519 public keys (RFC 8032), in an order that all sides find alike.

    keys: identifier (text of at most 1,024 bytes in UTF-8, or whole numbers of 64 bits with their sign, all of one
    kind) -> 32 bytes of the public key. A key that is in the roster twice, an identifier of another kind or length and
    bytes that are no public key, or one of low order, raise PrivacyError. A server that could choose the roster could
    fill it with members of its own: get it elsewhere.
    """

    def __init__(self, keys: Mapping[Id, bytes]):
        if not isinstance(keys, Mapping):
            raise PrivacyError(f"roster: got {type(keys).__name__}, expected a mapping of identifiers to public keys")
        kinds = {type(name) for name in keys}
        if not keys or not (kinds <= {str} or kinds <= {int}):
            raise PrivacyError("roster: expected identifiers of at least one member, all text or all whole numbers")
        for name, key in keys.items():
            if not _fits(name):
                raise PrivacyError(
                    f"roster: got {shown(name)} as an identifier, expected a whole number of 64 bits with its sign, or "
                    f"text of at most {MOST_BYTES:,} bytes in UTF-8; give the member another"
                )
            if not isinstance(key, bytes) or len(key) != PUBLIC_BYTES:
                got = f"{len(key)} bytes" if isinstance(key, bytes) else type(key).__name__
                raise PrivacyError(
                    f"roster: got {got} for {shown(name)}, expected the 32 bytes of an Ed25519 public key"
                )
            if fault := public_fault(key):
                raise PrivacyError(f"roster: the public key of {shown(name)} {fault}; make one with fedcore keys new")
        if len(set(keys.values())) < len(keys):
            raise PrivacyError("roster: two members have one key; each needs its own")
        self._keys = {name: keys[name] for name in sorted(keys)}
        self.ids: list[Id] = list(self._keys)
        self._positions = {name: position for position, name in enumerate(self.ids)}
        self._digest = hashlib.sha256(self.to_bytes()).digest()

    @classmethod
    def of(cls, given: Roster | Mapping[Id, bytes]) -> Roster:
        """One of these keys, or the one that was given."""
        return given if isinstance(given, Roster) else cls(given)

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[Id]:
        return iter(self.ids)

    def __contains__(self, name: object) -> bool:
        try:
            return name in self._positions
        except TypeError:  # a list, say
            return False

    def __getitem__(self, name: Id) -> bytes:
        """The public key of a member."""
        return self._keys[name]

    def position(self, name: Id) -> int:
        """Where a member is in the order. Raises PrivacyError for one that is not in the roster."""
        if name not in self:
            raise PrivacyError(f"roster: {shown(name)} is not one of its {len(self)} members; enrol it first")
        return self._positions[name]

    def public(self, position: int) -> bytes:
        """The public key of the member at a position."""
        return self._keys[self.ids[position]]

    def digest(self) -> bytes:
        """SHA-256 of identifiers and keys, to which the keys of a round are bound."""
        return self._digest

    def to_bytes(self) -> bytes:
        """JSON of [identifier, key in hex] in order."""
        return json.dumps([[name, key.hex()] for name, key in self._keys.items()]).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Roster:
        """What `to_bytes` wrote. Raises PrivacyError."""
        try:
            found = [(name, bytes.fromhex(key)) for name, key in json.loads(data)]
            if len(dict(found)) < len(found):
                raise PrivacyError("roster: names a member twice; each has one key")
            return cls(dict(found))
        except (ValueError, TypeError, RecursionError) as error:
            if isinstance(error, PrivacyError):
                raise
            raise PrivacyError("roster: damaged; expected a list of identifiers with keys in hexadecimal") from None


def _fits(name: Id) -> bool:
    """Whether an identifier can be written to JSON and read again, at a length that a roster has room for."""
    if isinstance(name, int):
        return -(1 << 63) <= name < 1 << 63
    try:
        return len(name) <= MOST_BYTES and len(name.encode()) <= MOST_BYTES
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
