"""Parts of a number of clients, and lengths that a stream masks, as they are given."""

from __future__ import annotations

from typing import Any

from fedcore.errors import PrivacyError
from fedcore.numbers import as_real, got

#: bytes of each stream under one key: 2^32 blocks
STREAMS = {"chacha20": 1 << 38, "aes256ctr": 1 << 36}


def counted(name: str, part: Any, n: int) -> int:
    """A part of n clients, in [0, 1), rounded down to clients. Raises PrivacyError."""
    share = as_real(part)
    if share is None or not 0 <= share < 1:
        raise PrivacyError(f"{got(name, part)}, expected a part of the clients, from 0 to below 1")
    return int(share * n + 1e-9)


def check_masked(length: int, bits: int, stream: str) -> None:
    """Raise PrivacyError for more coordinates than there are words in a stream, of 32 bits up to 32, else of 64."""
    words = STREAMS[stream] // (4 if bits <= 32 else 8)
    if length > words:
        raise PrivacyError(
            f"length: got {length}, but {stream} masks at most 2^{words.bit_length() - 1} coordinates of {bits} bits; "
            "take stream='chacha20', or sum the vector in parts"
        )
