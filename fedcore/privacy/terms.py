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
from fedcore.numbers import shown
from fedcore.ops.rows import as_rows, thread_count
from fedcore.privacy.statistic import FARTHEST, Statistic, statistic_of
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
        """Flat vectors of one length and dtype in main memory, at least one, as `ops.rows.as_rows` takes them.

        Raises ShapeError, DTypeError, PrivacyError for updates without a reference.
        """
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
        if (rows := as_rows(each)).on_gpu:
            raise ShapeError(f"updates: on {rows.device}, expected main memory, where noise is drawn; pass .cpu()")
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
        """Updates like the reference, any number, one a client. Raises as `statistic_of` does, LayoutError by client.

        Updates without a client_id count as different clients'.
        """
        each, named = list(updates), set[str]()
        statistic = statistic_of(reference, method, number, fixed=fixed, both_factors=both_factors)
        for row, update in enumerate(each):
            if not isinstance(update, Update):
                raise PrivacyError(
                    f"updates[{row}]: got {type(update).__name__}, expected an Update like the reference"
                )
            if update.client_id in named:
                raise PrivacyError(
                    f"client {shown(update.client_id)}: sent two updates, expected one; each is clipped for itself, so "
                    "that two move the sum by twice what the noise hides"
                )
            named |= {update.client_id} - {""}
        statistic.check(each)
        return cls(each, statistic, [reference.digest(), fixed and fixed.digest(), statistic.factors])

    @cached_property
    def sizes(self) -> dict[str, int]:
        """segment -> its length, in order."""
        return {WHOLE: len(self.each[0])} if self.statistic is None else self.statistic.segments

    @cached_property
    def _cores(self) -> list[dict[str, np.ndarray]]:
        """segment -> row of each term that is a product around a core, made once; none of other terms.

        Which core a product has is for a linear algebra library to say, and another one says it in other bits: so noise
        belongs to the cores that are summed, and not to the products that they are of.
        """
        if self.statistic is None or self.statistic.factors != ("core",):
            return []
        return [{segment: self.statistic.row(term, segment) for segment in self.sizes} for term in self.each]

    def rows(self, start: int, stop: int, segments: list[str]) -> list[Any]:
        """Some segments of some terms, each a flat row."""
        if self._cores:
            return [np.concatenate([core[segment] for segment in segments]) for core in self._cores[start:stop]]
        return [self._row(term, segments) for term in self.each[start:stop]]

    def released(self, means: Mapping[str, np.ndarray]) -> Any:
        """What means of segments, or one of all, release: a (d,) array, or the reference moved by them."""
        if self.statistic is None:
            return means[WHOLE]
        if means.keys() != self.sizes.keys():
            pieces = np.split(means[WHOLE], np.cumsum(list(self.sizes.values()))[:-1])
            means = dict(zip(self.sizes, pieces, strict=True))
        return self.statistic.applied(means)

    def check_fits(self, expected: int, bounds: Mapping[str, tuple[float, float]]) -> None:
        """Raise RangeError for a reference whose dtypes might not hold what it becomes, before anything is charged.

        expected  the fixed denominator
        bounds    clipped part, or "" for all -> (clip, standard deviation of the noise on each number of the sum)
        """
        if self.statistic is None:
            return
        share, reach = max(1.0, len(self.each) / expected), {}
        for segment in self.sizes:
            clip, deviation = bounds[segment if segment in bounds else WHOLE]
            reach[segment] = clip * share + FARTHEST * deviation / expected
        self.statistic.check_fits(reach)

    def digest(self, settings: list[Any]) -> str:
        """SHA-256 (hex) of settings, context and the terms in any order."""
        each = _digests(self.each) if self.statistic is None else [term.digest() for term in self.each]
        if self._cores:
            cores = _digests(self.rows(0, len(each), list(self.sizes)))
            each = [f"{one} {core}" for one, core in zip(each, cores, strict=True)]
        text = json.dumps([settings, self.context, sorted(each)], sort_keys=True, default=float)
        return hashlib.sha256(f"fedcore release 2\n{text}".encode()).hexdigest()

    def _row(self, term: Any, segments: list[str]) -> Any:
        if self.statistic is None:
            return term
        parts = [self.statistic.row(term, segment) for segment in segments]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _digests(vectors: list[Any]) -> list[str]:
    """SHA-256 (hex) of each vector's dtype, shape and the SHA-256 of its pieces, which all cores take part in."""
    rows = as_rows(vectors)
    assert rows.table is not None
    arrays = [rows.table.columns(row, 0, rows.d) for row in range(rows.n)]
    pieces = [(row, start) for row, array in enumerate(arrays) for start in range(0, array.nbytes, _PIECE)]
    found = [hashlib.sha256(f"{rows.dtype} {array.shape}\n".encode()) for array in arrays]

    def one(piece: tuple[int, int]) -> bytes:
        row, start = piece
        return hashlib.sha256(arrays[row].view(np.uint8).data[start : start + _PIECE]).digest()

    with ThreadPoolExecutor(thread_count(None)) as pool:  # hashlib lets others run meanwhile
        for (row, _), digest in zip(pieces, pool.map(one, pieces), strict=True):
            found[row].update(digest)
    return [digest.hexdigest() for digest in found]
