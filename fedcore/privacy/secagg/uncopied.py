"""What there is one of: a copy of it would be a second one with the same keys."""

from __future__ import annotations

from typing import NoReturn

from fedcore.errors import PrivacyError


class Uncopied:
    """A party of a round, or what holds its secrets: copy.copy, copy.deepcopy and pickle raise PrivacyError."""

    def __reduce__(self) -> NoReturn:
        kept = " and its to_bytes on a disk" if hasattr(self, "to_bytes") else ""
        raise PrivacyError(
            f"{type(self).__name__}: is not copied or pickled: a second one could say something else under the same "
            f"keys; keep this one{kept}"
        )
