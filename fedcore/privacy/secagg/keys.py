"""Keys of a round: X25519 (RFC 7748), Ed25519 (RFC 8032), HKDF-SHA256 (RFC 5869), ChaCha20-Poly1305 (RFC 8439).

All come from `cryptography`. A member draws one secret a round; every other key of it is derived under a label of its
own, so that none serves two purposes and a restart finds the same ones again.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from functools import cached_property, lru_cache

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import load_der_public_key

from fedcore.errors import Forged, PrivacyError
from fedcore.numbers import shown
from fedcore.privacy.secagg.uncopied import Uncopied

KEY_BYTES, SIGNATURE_BYTES, TAG_BYTES = 32, 64, 16
#: purposes of keys that are derived
LABELS = (
    "share", "mask", "self", "polynomials", "draw", "noise", "vector",
    "pair", "sealed share", "seed commitment", "chunk",
)  # fmt: skip
_LABELLED = {label: b"fedcore secagg 1 " + label.encode() + b"\x00" for label in LABELS}
_HASH = SHA256()
#: a key seals one message, so that its nonce need not differ
_NONCE = bytes(12)
#: what makes 32 bytes an X25519 public key in DER (RFC 8410 §4), read faster than by X25519PublicKey.from_public_bytes
_X25519 = bytes.fromhex("302a300506032b656e032100")
#: positions of two members
_PAIR = struct.Struct("<HH")
#: the field and the constant of edwards25519 (RFC 8032 §5.1)
_P = (1 << 255) - 19
_D = -121665 * pow(121666, -1, _P) % _P


def hkdf(secret: bytes | bytearray, label: str, binding: bytes, who: bytes = b"") -> bytes:
    """32 bytes for one purpose in one round: HKDF-SHA256 with no salt, info = name ‖ label ‖ 0 ‖ binding ‖ who."""
    return HKDF(_HASH, KEY_BYTES, None, _LABELLED[label] + binding + who).derive(secret)


def round_binding(parameters: bytes, roster: bytes, session: bytes, number: int, context: bytes) -> bytes:
    """SHA-256(parameters ‖ roster ‖ session ‖ round ‖ context), each with its length before it."""
    found = hashlib.sha256(b"fedcore secagg 1 round")
    for part in (parameters, roster, session, number.to_bytes(8, "little"), context):
        found.update(len(part).to_bytes(8, "little") + part)
    return found.digest()


def rooted(binding: bytes, root: bytes) -> bytes:
    """The binding of a round whose keys are committed to."""
    return hashlib.sha256(b"fedcore secagg 1 keys" + binding + root).digest()


def commitment(seed: bytes, binding: bytes) -> bytes:
    """What a member advertises of the seed of its own mask; the seed being random, it tells nothing about it."""
    return hkdf(seed, "seed commitment", binding)


def clamped(secret: bytes) -> bytes:
    """An X25519 secret with the five bits set that X25519 sets itself (RFC 7748 §5): the only one of its public key."""
    return bytes([secret[0] & 248]) + secret[1:31] + bytes([secret[31] & 127 | 64])


class RoundKeys(Uncopied):
    """The keys of one member, from its secret of the round: 32 bytes in a buffer that `wipe` overwrites, or none left.

    All but the two X25519 keys, which OpenSSL keeps, are made when they are used.
    """

    def __init__(self, secret: bytearray, binding: bytes):
        self._secret, self._binding = secret, binding

    @cached_property
    def share(self) -> X25519PrivateKey:
        """For the shares that are sealed to others; it never leaves the member."""
        return X25519PrivateKey.from_private_bytes(self.derived("share"))

    @cached_property
    def mask(self) -> X25519PrivateKey:
        """For the masks between two members; shared, as `mask_bytes`."""
        return X25519PrivateKey.from_private_bytes(self.mask_bytes)

    @property
    def mask_bytes(self) -> bytes:
        return clamped(self.derived("mask"))

    @property
    def seed(self) -> bytes:
        """Of the member's own mask; shared."""
        return self.derived("self")

    def derived(self, label: str) -> bytes:
        """The key for another purpose. Raises PrivacyError once they are wiped: zeros would give keys as well."""
        if not self._secret:
            raise PrivacyError(f"keys of the round: are wiped, got a use for {label!r}")
        return hkdf(self._secret, label, self._binding)

    def wipe(self) -> None:
        """Overwrite the secret, and let OpenSSL do so with its keys."""
        self._secret[:] = bytes(len(self._secret))
        self._secret = bytearray()
        for name in ("share", "mask"):
            vars(self).pop(name, None)

    def advertised(self) -> bytes:
        """Public halves of both pairs, and the commitment to the seed: 96 bytes."""
        public = self.share.public_key().public_bytes_raw() + self.mask.public_key().public_bytes_raw()
        return public + commitment(self.seed, self._binding)


def agreed(private: X25519PrivateKey, public: bytes, whose: str, name: str | int | None = None) -> bytes:
    """The shared secret of X25519. Raises Forged for a public key that gives zeros whatever the private one.

    whose: what errors call the public key, with the stage in which it came; `name`, if it has one, comes after it
    """
    try:
        return private.exchange(load_der_public_key(_X25519 + public))  # type: ignore[arg-type]
    except ValueError:
        whose = whose if name is None else f"{whose} {shown(name)}"
        raise Forged(f"{whose} is of low order, which would make a known secret") from None


def pair_key(
    private: X25519PrivateKey, public: bytes, binding: bytes, mine: int, theirs: int, whose: str, name: str | int
) -> bytes:
    """The key of the mask between two members; both sides find the same."""
    pair = _PAIR.pack(min(mine, theirs), max(mine, theirs))
    return hkdf(agreed(private, public, whose, name), "pair", binding, pair)


def self_key(seed: bytes, binding: bytes) -> bytes:
    """The key of a member's own mask."""
    return hkdf(seed, "self", binding)


class Seals(Uncopied):
    """Seals a member's shares to others and opens theirs: a key is of one pair and direction, so it seals one message.

    whose: what errors call a public key, with the name from `names`, by position, after it. What was agreed on to seal
    is kept, for it opens too where two members hold each other's shares.
    """

    def __init__(self, private: X25519PrivateKey, binding: bytes, me: int, whose: str, names: Sequence[str | int]):
        self._private, self._binding, self._me = private, binding, me
        self._whose, self._names = whose, names
        self._agreed: dict[bytes, bytes] = {}

    def seal(self, to: int, public: bytes, data: bytes | memoryview) -> bytes:
        """Encrypted to the owner of a public key and authenticated: 16 bytes longer. Raises Forged as `agreed`."""
        header = self._binding + _PAIR.pack(self._me, to)
        secret = self._agreed[public] = agreed(self._private, public, self._whose, self._names[to])
        return ChaCha20Poly1305(hkdf(secret, "sealed share", header)).encrypt(_NONCE, data, header)

    def open(self, sender: int, public: bytes, data: bytes) -> bytes | None:
        """What its sender sealed to this member, or None for anything else. Raises Forged as `agreed`."""
        header = self._binding + _PAIR.pack(sender, self._me)
        secret = self._agreed.get(public) or agreed(self._private, public, self._whose, self._names[sender])
        try:
            return ChaCha20Poly1305(hkdf(secret, "sealed share", header)).decrypt(_NONCE, data, header)
        except InvalidTag:
            return None


class ChunkTags(Uncopied):
    """Tags that show a server which member the chunks of a masked vector are from, and that nobody changed them.

    GMAC (NIST SP 800-38D) under a key that the member and its server alone have, by X25519 of the member's signed share
    key and a key of the server: who knows neither secret cannot make a tag, whatever key it puts in the server's place.
    The nonce is the chunk's number; a member masks one vector in a round, so that no number serves for two chunks.
    """

    def __init__(
        self, private: X25519PrivateKey, public: bytes, binding: bytes, member: int, server: bytes, whose: str
    ):
        secret = agreed(private, public, whose)
        self._cipher = AESGCM(hkdf(secret, "chunk", binding, struct.pack("<H", member) + server))

    def tag(self, number: int, packed: bytes | memoryview) -> bytes:
        """16 bytes for the chunk of this number."""
        return self._cipher.encrypt(number.to_bytes(12, "little"), b"", packed)

    def fits(self, number: int, packed: bytes | memoryview, tag: bytes) -> bool:
        """Whether a tag is that of a chunk."""
        try:
            self._cipher.decrypt(number.to_bytes(12, "little"), tag, packed)
        except InvalidTag:
            return False
        return True


def signing_key(key: bytes | Ed25519PrivateKey) -> Ed25519PrivateKey:
    """A member's long-term key, from its 32 bytes if it is not one already. Raises PrivacyError."""
    if isinstance(key, Ed25519PrivateKey):
        return key
    if not isinstance(key, bytes) or len(key) != KEY_BYTES:
        got = f"{len(key)} bytes" if isinstance(key, bytes) else type(key).__name__
        raise PrivacyError(f"signing_key: got {got}, expected an Ed25519 private key or its 32 bytes")
    return Ed25519PrivateKey.from_private_bytes(key)


@lru_cache(maxsize=1 << 16)
def public_fault(public: bytes) -> str | None:
    """Why 32 bytes are no Ed25519 public key to trust (RFC 8032 §5.1.3), or None; that of each key is remembered.

    A point (x, y) of −x² + y² = 1 + d x² y² whose order is 8 or less has a y of 0 or ±1 or with d y⁴ + 2 y² = 1. Under
    such a key there are signatures that fit any text, made without a secret.
    """
    y = int.from_bytes(public, "little") & ((1 << 255) - 1)
    square = y * y % _P
    if y >= _P:
        return "is not in canonical form"
    if y in (0, 1, _P - 1) or (_D * square * square + 2 * square - 1) % _P == 0:
        return "is of low order: anyone could sign under it"
    if pow((square - 1) * (_D * square + 1), (_P - 1) // 2, _P) != 1:
        return "is no point of the curve"
    return None


def signed_text(label: str, binding: bytes, sender: int, body: bytes | memoryview, told: bytes = b"") -> bytes:
    """What a signature covers: its label, the round, who signs, the hash of the body, and of shares what their member
    was told (`transcript`)."""
    head = b"fedcore secagg 1 signed " + label.encode() + b"\x00" + binding + struct.pack("<H", sender)
    return head + hashlib.sha256(body).digest() + told


def verified(public: bytes, signature: bytes, text: bytes) -> bool:
    """Whether an Ed25519 signature is that of the key's owner."""
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, text)
    except (InvalidSignature, ValueError):
        return False
    return True
