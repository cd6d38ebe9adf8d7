"""Parts of a number of clients, as they are given."""

from __future__ import annotations

from typing import Any

from fedcore.errors import PrivacyError
from fedcore.numbers import as_real, got


def counted(name: str, part: Any, n: int) -> int:
    """A part of n clients, in [0, 1), rounded down to clients. Raises PrivacyError."""
    share = as_real(part)
    if share is None or not 0 <= share < 1:
        raise PrivacyError(f"{got(name, part)}, expected a part of the clients, from 0 to below 1")
    return int(share * n + 1e-9)
