"""Noise keys on disk: sealed under the operator's key, and destroyable after an audit."""

from __future__ import annotations

import hashlib
import hmac
import os
from pathlib import Path

from fedcore.errors import FormatError, PrivacyError
from fedcore.updates.atomic import refused, sync, write_atomically

#: bytes of a sealing key and of a noise key
KEY_BYTES = 32
_NONCE_BYTES = 12


def derived(secret: bytes, purpose: str) -> bytes:
    """A key for one purpose, so that none serves two (HMAC-SHA256 as a pseudorandom function)."""
    return hmac.digest(secret, f"fedcore privacy 1 {purpose}".encode(), "sha256")


def commitment(key: bytes) -> str:
    """SHA-256 (hex) that tells a noise key from any other and, the key being random, tells nothing about it."""
    return hashlib.sha256(b"fedcore noise key 1" + key).hexdigest()


class SealedKeys:
    """One file per charge in a folder of mode 0700: nonce and ChaCha20-Poly1305 (RFC 8439) of the key, mode 0600."""

    def __init__(self, folder: Path, sealing_key: bytes):
        if not isinstance(sealing_key, bytes) or len(sealing_key) != KEY_BYTES:
            got = f"{len(sealing_key)} bytes" if isinstance(sealing_key, bytes) else type(sealing_key).__name__
            raise PrivacyError(f"sealing_key: got {got}, expected {KEY_BYTES} random bytes; make them with os.urandom")
        self.folder, self._key = folder, derived(sealing_key, "seal of noise keys")

    def write(self, number: int, bound: str, key: bytes) -> None:
        """Seal a key to charge `number` and the text `bound`; when this returns it is on disk. Raises StorageError."""
        from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

        nonce = os.urandom(_NONCE_BYTES)
        sealed = ChaCha20Poly1305(self._key).encrypt(nonce, key, _context(number, bound))
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise refused(self.folder, error) from error
        write_atomically(self._path(number), nonce + sealed)
        os.chmod(self._path(number), 0o600)

    def read(self, number: int, bound: str, expected: str) -> bytes:
        """The key of a charge with its commitment. Raises FormatError where it is missing or was changed."""
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

        path = self._path(number)
        try:
            data = path.read_bytes()
            key = ChaCha20Poly1305(self._key).decrypt(data[:_NONCE_BYTES], data[_NONCE_BYTES:], _context(number, bound))
        except (FileNotFoundError, InvalidTag, ValueError) as error:
            what = "is missing" if isinstance(error, FileNotFoundError) else "does not open: changed, or another key"
            raise FormatError(
                f"{path}: the sealed key of charge {number} {what}; its release cannot be repeated"
            ) from None
        if commitment(key) != expected:
            raise FormatError(f"{path}: holds another key than charge {number} was made with; restore the file")
        return key

    def destroy(self) -> int:
        """Delete all keys, so that no noise can be drawn again; how many there were.

        The deletion is final as far as the file system's is. On media that keep old blocks only the loss of the sealing
        key is: destroy that too where no later charge needs it.
        """
        paths = sorted(self.folder.glob("*.sealed")) if self.folder.is_dir() else []
        for path in paths:
            path.unlink()
        if paths:
            sync(self.folder)
        return len(paths)

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:08d}.sealed"


def _context(number: int, bound: str) -> bytes:
    return f"{number} {bound}".encode()
