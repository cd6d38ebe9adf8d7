"""Noise keys on disk: sealed under the operator's key, and destroyable after an audit."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import itertools
import os
from collections.abc import Iterable
from pathlib import Path

from fedcore.errors import FormatError, PrivacyError, StorageError
from fedcore.privacy.files import read
from fedcore.updates.atomic import refused, sync, write_atomically

#: bytes of a sealing key and of a noise key
KEY_BYTES = 32
_NONCE_BYTES = 12
#: crashes between a key and its charge that are believed of one charge
_CRASHES = 2
_SEALED, _DESTROYED = ".sealed", ".destroyed"


def check_sealing_key(key: object) -> None:
    """Raise PrivacyError, which never shows a key, for what is not 32 bytes."""
    if not isinstance(key, bytes) or len(key) != KEY_BYTES:
        got = f"{len(key)} bytes" if isinstance(key, bytes) else type(key).__name__
        raise PrivacyError(f"sealing_key: got {got}, expected {KEY_BYTES} random bytes; make them with os.urandom")


def derived(secret: bytes, purpose: str) -> bytes:
    """A key for one purpose, so that none serves two (HMAC-SHA256 as a pseudorandom function)."""
    return hmac.digest(secret, f"fedcore privacy 1 {purpose}".encode(), "sha256")


def same_text(found: object, expected: str) -> bool:
    """Whether what a file has is this text, in constant time; anything may be in a file, and what is no text is not."""
    given = found.encode("utf-8", "surrogatepass") if isinstance(found, str) else b""
    return hmac.compare_digest(given, expected.encode())


def commitment(key: bytes) -> str:
    """SHA-256 (hex) that tells a noise key from any other and, the key being random, tells nothing about it."""
    return hashlib.sha256(b"fedcore noise key 1" + key).hexdigest()


def sealed(key: bytes, secret: bytes, context: str) -> bytes:
    """A fresh nonce and ChaCha20-Poly1305 (RFC 8439) of a secret, bound to a text."""
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

    nonce = os.urandom(_NONCE_BYTES)
    return nonce + ChaCha20Poly1305(key).encrypt(nonce, secret, context.encode())


def unsealed(key: bytes, data: bytes, context: str) -> bytes | None:
    """What `sealed` sealed; None where it was changed, or sealed under another key or for another text."""
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

    try:
        return ChaCha20Poly1305(key).decrypt(data[:_NONCE_BYTES], data[_NONCE_BYTES:], context.encode())
    except (InvalidTag, ValueError):
        return None


class SealedKeys:
    """One file per charge in a folder of mode 0700: the `sealed` key, mode 0600, or an empty one where it was."""

    def __init__(self, folder: Path, sealing_key: bytes):
        check_sealing_key(sealing_key)
        self.folder, self._key = folder, derived(sealing_key, "seal of noise keys")

    def write(self, number: int, bound: str, key: bytes) -> None:
        """Seal a key to charge `number` and the text `bound`; when this returns it is on disk.

        Raises StorageError, and then leaves none.
        """
        path = self._path(number)
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._put_aside(path)
        except OSError as error:
            raise refused(self.folder, error) from error
        try:
            write_atomically(path, sealed(self._key, key, _context(number, bound)))
            os.chmod(path, 0o600)
        except OSError as error:
            self.take_back(number)
            raise error if isinstance(error, StorageError) else refused(path, error) from error

    def take_back(self, number: int) -> None:
        """Delete a key that nobody drew from, of a charge that is not in the file; where it stays it is put aside."""
        with contextlib.suppress(OSError):
            self._path(number).unlink()

    def read(self, number: int, bound: str, expected: str) -> bytes:
        """The key of a charge with its commitment.

        Raises FormatError where it is missing or was changed, StorageError where it cannot be read.
        """
        path = self._path(number)
        data = None if path.is_dir() else read(path)
        key = None if data is None else unsealed(self._key, data, _context(number, bound))
        if key is None:
            what = "is missing" if data is None else "does not open: changed, or another key"
            raise FormatError(f"{path}: the sealed key of charge {number} {what}; its release cannot be repeated")
        if commitment(key) != expected:
            raise FormatError(f"{path}: holds another key than charge {number} was made with; restore the file")
        return key

    @property
    def records(self) -> int:
        """How many records the charges' file has had at least.

        A crash may leave a key before its charge; a key is destroyed after its charge and a record that says so. One
        that was put aside tells as much as the one that took its place, which a full disk may take back.
        """
        kept = max(self._newest(_SEALED), self._newest("-aside"))
        return max(kept - 1, self._newest(_DESTROYED) + 1 if self._newest(_DESTROYED) else 0)

    def put_aside_often(self) -> list[Path]:
        """The keys put aside for one number, of the first that has more of them than crashes explain, else none."""
        found: dict[str, list[Path]] = {}
        for path in self.folder.glob("*-aside"):
            if path.stem.isdecimal():  # others are not of this folder
                found.setdefault(path.stem, []).append(path)
        return next((found[stem] for stem in sorted(found) if len(found[stem]) > _CRASHES), [])

    def destroy(self, numbers: Iterable[int]) -> int:
        """Delete the keys of these charges, so that their noise cannot be drawn again; how many there were.

        An empty file stays for each, so that a charge that is put back shows after its key is gone. The deletion is
        final as far as the file system's is. On media that keep old blocks only the loss of the sealing key is: destroy
        that too where no later charge needs it. Raises StorageError where some may be left.
        """
        gone: list[Path] = []
        try:
            for number in numbers:
                paths = [path for path in self.folder.glob(f"{number:08d}.*") if path.suffix != _DESTROYED]
                if paths:
                    write_atomically(self._path(number).with_suffix(_DESTROYED), b"")
                for path in paths:
                    path.unlink()
                gone += paths
            if gone:
                sync(self.folder)
        except OSError as error:
            raise error if isinstance(error, StorageError) else refused(self.folder, error) from error
        return sum(path.suffix == _SEALED for path in gone)

    def _newest(self, suffix: str) -> int:
        """The highest number that has such a file, 0 if there is none."""
        names = [path.stem for path in self.folder.glob(f"*{suffix}")] if self.folder.is_dir() else []
        return max((int(name) for name in names if name.isdecimal()), default=0)

    def _put_aside(self, path: Path) -> None:
        """Keep what is there already under another name.

        It is of a process that died before it charged, or of a charge that was rolled back, and then the trace of it.
        """
        if path.exists():
            name = next(
                name for count in itertools.count(1) if not (name := path.with_suffix(f".{count}-aside")).exists()
            )
            os.rename(path, name)

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:08d}{_SEALED}"


def _context(number: int, bound: str) -> str:
    return f"{number} {bound}"
