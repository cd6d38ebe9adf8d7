"""Whole numbers, parts of a number of clients, and lengths that a stream masks, as they are given."""

from __future__ import annotations

import operator
from typing import Any

from fedcore.errors import PrivacyError

#: bytes of each stream under one key: 2^32 blocks
STREAMS = {"chacha20": 1 << 38, "aes256ctr": 1 << 36}


def counted(name: str, part: float, n: int) -> int:
    """A part of n clients, in [0, 1), rounded down to clients. Raises PrivacyError."""
    if not isinstance(part, (int, float)) or not 0 <= part < 1:
        raise PrivacyError(f"{name}: got {part!r}, expected a part of the clients, from 0 to below 1")
    return int(part * n + 1e-9)


def whole(name: str, value: Any, least: int, most: int) -> int:
    """The value as Python's int, whoever's it was. Raises PrivacyError unless it is from `least` to `most`."""
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    if isinstance(value, bool) or not least <= number <= most:
        raise PrivacyError(f"{name}: got {value!r}, expected a whole number from {least} to {most}")
    return number


def check_masked(length: int, bits: int, stream: str) -> None:
    """Raise PrivacyError for more coordinates than there are words in a stream, of 32 bits up to 32, else of 64."""
    words = STREAMS[stream] // (4 if bits <= 32 else 8)
    if length > words:
        raise PrivacyError(
            f"length: got {length}, but {stream} masks at most 2^{words.bit_length() - 1} coordinates of {bits} bits; "
            "take stream='chacha20', or sum the vector in parts"
        )
