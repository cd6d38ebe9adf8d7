"""The terms of one release: flat vectors, or what a method releases of updates."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from fedcore.errors import PrivacyError, ShapeError
from fedcore.lora import Method
from fedcore.ops.rows import thread_count
from fedcore.privacy.statistic import Statistic, statistic_of
from fedcore.updates import Update

#: the name of the one segment of flat vectors, and of all segments where they are clipped together
WHOLE = ""
#: bytes that are hashed at a time
_PIECE = 1 << 21


@dataclass(frozen=True)
class Terms:
    """Vectors or updates that fit together.

    each       the vectors or updates
    statistic  what of updates is released; None for vectors
    context    what else the release depends on, for the digest
    """

    each: list[Any]
    statistic: Statistic | None
    context: list[Any]

    @classmethod
    def of_vectors(cls, vectors: Iterable[Any]) -> Terms:
        """Flat vectors of one length, at least one. Raises ShapeError, PrivacyError for updates without a reference."""
        each = list(vectors)
        if any(isinstance(vector, Update) for vector in each):
            raise PrivacyError("reference: missing; a clip is of the change, so give what the clients started from")
        if not each:
            raise ShapeError("updates: got none and no reference, expected one of them to know the size from")
        for row, vector in enumerate(each):
            if np.ndim(vector) != 1 or len(vector) != len(each[0]):
                raise ShapeError(
                    f"updates[{row}]: got shape {np.shape(vector)}, expected ({len(each[0])},) like the first"
                )
        return cls(each, None, [])

    @classmethod
    def of_updates(
        cls,
        updates: Iterable[Any],
        reference: Update,
        method: Method | None,
        number: int,
        fixed: Update | None,
        both_factors: bool,
    ) -> Terms:
        """Updates like the reference, any number. Raises as `statistic_of` does, LayoutError naming a client."""
        each = list(updates)
        statistic = statistic_of(reference, method, number, fixed=fixed, both_factors=both_factors)
        for row, update in enumerate(each):
            if not isinstance(update, Update):
                raise PrivacyError(
                    f"updates[{row}]: got {type(update).__name__}, expected an Update like the reference"
                )
        statistic.check(each)
        return cls(each, statistic, [reference.digest(), fixed and fixed.digest(), statistic.factors])

    @cached_property
    def sizes(self) -> dict[str, int]:
        """segment -> its length, in order."""
        return {WHOLE: len(self.each[0])} if self.statistic is None else self.statistic.segments

    def rows(self, start: int, stop: int, segments: list[str]) -> list[Any]:
        """Some segments of some terms, each a flat row."""
        return [self._row(term, segments) for term in self.each[start:stop]]

    def released(self, means: Mapping[str, np.ndarray]) -> Any:
        """What means of segments, or one of all, release: a (d,) array, or the reference moved by them."""
        if self.statistic is None:
            return means[WHOLE]
        if means.keys() != self.sizes.keys():
            pieces = np.split(means[WHOLE], np.cumsum(list(self.sizes.values()))[:-1])
            means = dict(zip(self.sizes, pieces, strict=True))
        return self.statistic.applied(means)

    def digest(self, settings: list[Any]) -> str:
        """SHA-256 (hex) of settings, context and the terms in any order."""
        each = _digests(self.each) if self.statistic is None else [term.digest() for term in self.each]
        text = json.dumps([settings, self.context, sorted(each)], sort_keys=True, default=float)
        return hashlib.sha256(f"fedcore release 2\n{text}".encode()).hexdigest()

    def _row(self, term: Any, segments: list[str]) -> Any:
        if self.statistic is None:
            return term
        parts = [self.statistic.row(term, segment) for segment in segments]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _digests(vectors: list[Any]) -> list[str]:
    """SHA-256 (hex) of each vector's dtype, shape and the SHA-256 of its pieces, which all cores take part in."""
    arrays = [np.ascontiguousarray(vector) for vector in vectors]
    pieces = [(row, start) for row, array in enumerate(arrays) for start in range(0, array.nbytes, _PIECE)]
    found = [hashlib.sha256(f"{array.dtype} {array.shape}\n".encode()) for array in arrays]

    def one(piece: tuple[int, int]) -> bytes:
        row, start = piece
        return hashlib.sha256(arrays[row].view(np.uint8).data[start : start + _PIECE]).digest()

    with ThreadPoolExecutor(thread_count(None)) as pool:  # hashlib lets others run meanwhile
        for (row, _), digest in zip(pieces, pool.map(one, pieces), strict=True):
            found[row].update(digest)
    return [digest.hexdigest() for digest in found]
