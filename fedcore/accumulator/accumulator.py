"""The public class of aggregation on arrival: checks of what arrives, and what is done with it."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any, Protocol

from fedcore.accumulator.stored import StoredRows
from fedcore.accumulator.streamed import StreamedSums
from fedcore.backends import requested
from fedcore.engine.combination import Clock
from fedcore.engine.run import Aggregate, check_rule
from fedcore.errors import LayoutError, RuleError, ShapeError, StorageError
from fedcore.lock import Lock
from fedcore.numbers import got, shown, shown_bytes
from fedcore.ops.rows import thread_count
from fedcore.rules.alike import check_same_parameters
from fedcore.rules.budget import DEFAULT, parse_memory
from fedcore.rules.files import Progress
from fedcore.rules.rule import Rule, check_weights, chosen_references
from fedcore.updates import Cohort, Update
from fedcore.updates.bases import BaseIdentity, check_same_base


class _Kept(Protocol):
    """What becomes of updates that fit."""

    #: client_id -> its update as it is kept, in the order of arrival: it comes in, in one step, when it has been taken
    updates: dict[str, Update]

    def add(self, who: str, update: Update, weight: float) -> None:
        """Take an update. After an error nothing of it has been taken."""

    def result(self, cohort: Cohort) -> Aggregate:
        """The aggregate of all that were taken, which are `cohort` as they are kept."""

    @property
    def nbytes(self) -> int:
        """Bytes of memory that what was taken holds."""

    def close(self) -> None:
        """Take nothing any more, where it is kept in a directory, and let others have that."""

    def copied(self) -> _Kept:
        """The same as it is now, whatever is taken afterwards."""


class Accumulator:
    """The aggregate of updates that arrive one by one, in "parameters" space.

    rule        any rule of fedcore.rules
    directory   where updates are kept until the result, one file each, for a rule that has to see all of them before it
                can weigh one. Made if it is not there; updates that an earlier Accumulator left in it have been added,
                so that a server that was killed goes on where it was. One holds it at a time: until `close`, until it
                is forgotten or until its process ends. Copies and forked children tell their result and add nothing.
                Mean() and NormClipping(max_norm) weigh each client on its own: they take no directory and keep no
                update.
    reference, server, center   as for `fedcore.aggregate`
    memory      what adding files and the result may take, as for `fedcore.aggregate`
    progress, backend, threads  as for `fedcore.aggregate`; exact sums have no Triton backend

    Without a directory an update is checked, measured, added to an exact sum (fedcore/expansion.py) and forgotten.
    Memory: the sums, typically 8 to 16 bytes a parameter, the reference, and a few numbers for each client. The result
    has the same bits in every order of arrival: coefficients, who counts and the report are those of `aggregate` over
    the same updates; values are the exact sum of the weighted updates rounded to fp64 once, divided, and rounded once,
    where `aggregate` rounds each addition in fp64.

    With a directory, what `add` returns from is on disk, checked and flushed. A rule that needs a Gram has it made
    meanwhile: batches of new rows, a quarter of those before, are multiplied with them tile by tile, so that n rows are
    read some five times by the time the last one is there, and at the end the last batch is left. The Gram is centred
    at the first reference that is given, or else at the first client that came: that moves its error bound, never a
    decision, and where the centre turns out to be far from the clients the Gram is made again about a better one. The
    update and the coefficients are those of `aggregate` over the same updates, bit for bit, with two exceptions, equal
    within their bound: coefficients that come from the Gram without a selection (GeometricMedian unless a client is the
    median, CenteredClipping, SpectralFilter, FLTrust), and clips of mixed rows, whose norms come with a bound from the
    Gram (NearestNeighborMixing(f).then(ARC(f))). Numbers that a report gives, scores and distances among them, may
    differ in their last digits.

    `add` and `result` may be called from several threads: each waits until the one before is done with this
    accumulator, and with no other. Updates that come at the same time are taken in some order, which moves nothing that
    the order of arrival does not. A copy or a pickle is of one moment, and goes on by itself.

    Where a signal handler raises in the middle of a call, as for Ctrl+C or a timeout, the update is taken whole or not
    at all, which `client_ids` says, and a result leaves nothing behind. StorageError is raised once that cannot be had,
    since another interruption came while the update was taken away; for a call that a handler makes in the middle of
    another; and in a forked child if another thread was in a call when it was forked.

    Raises RuleError, also for a directory that is missing or that the rule has no use for, BudgetError, BackendError,
    StorageError, also where another Accumulator holds the directory, and what `add` raises for files that are there
    already.
    """

    def __init__(
        self,
        rule: Rule,
        directory: str | os.PathLike[str] | None = None,
        reference: Update | None = None,
        *,
        server: Update | None = None,
        center: Update | None = None,
        memory: int | str = DEFAULT,
        progress: Progress | None = None,
        backend: str | None = None,
        threads: int | None = None,
    ):
        if not isinstance(rule, Rule):
            raise RuleError(f"{got('rule', rule)}, expected an instance of a rule such as fedcore.rules.Mean()")
        requested(backend)
        parse_memory(memory)
        folder = _folder(rule, directory)
        references = chosen_references(rule, reference=reference, server=server, center=center)
        passes: dict[str, Any] = {"backend": backend, "threads": thread_count(threads)}
        files: dict[str, Any] = {"memory": memory, "progress": progress}
        self.rule = rule
        #: what every update has to agree with, else it is the first client
        self._point = next(((name, update) for name, update in references.items() if update is not None), None)
        self._bases: dict[BaseIdentity, tuple[str, Update]] = {}
        if self._point is not None:
            self._bases[BaseIdentity.of(self._point[1])] = self._point
        self._clock = Clock()
        #: held while an update is taken and while a result is made: kernels let other threads run
        self._lock = Lock()
        self._kept: _Kept
        if folder is None:
            self._kept = StreamedSums(rule, references, passes, files)
            return
        self._kept = stored = StoredRows(rule, folder, references, passes, files)
        try:
            for update, weight in stored.found():
                self._take(update, weight, stored.known)
        except BaseException:
            stored.close()  # what was raised keeps this object
            raise

    def __repr__(self) -> str:
        return f"<Accumulator by {self.rule!r}, n = {len(self._updates)}: {shown_bytes(self.nbytes)} of memory>"

    def close(self) -> None:
        """Let another Accumulator have the directory: nothing is added to this one any more. Without one, nothing.

        Leaving a `with` does so as well.
        """
        with self._lock.alone("close"):
            self._kept.close()

    def __enter__(self) -> Accumulator:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        with self._lock.alone("copying"):
            own = {"_kept": self._kept.copied(), "_bases": dict(self._bases), "_clock": copy.deepcopy(self._clock)}
            return self.__dict__ | own | {"_lock": Lock()}

    def __deepcopy__(self, memo: dict[int, Any]) -> Accumulator:
        return copy.copy(self)  # what __getstate__ gives is nobody else's, and the rest does not change

    @property
    def _updates(self) -> dict[str, Update]:
        return self._kept.updates

    @property
    def client_ids(self) -> tuple[str, ...]:
        """The clients that have been added, in canonical order."""
        return tuple(sorted(self._updates))

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the sums take, or the Gram."""
        return self._kept.nbytes

    def add(self, update: Update, weight: float | None = None) -> None:
        """Take one client's update, in memory or in a file; what holds it may be changed or freed afterwards.

        May be called from several threads, each with its updates.

        weight   None takes its num_examples; a rule that ignores weights ignores this too

        An update made by `Update.open` is read in tiles under the memory budget, never whole. Raises LayoutError (a
        client that was added before; names, shapes, dtypes, ranks, scales or a base that differ), WeightError and
        NonFiniteError, naming the client and the tensor, and of files FormatError, MissingError and StorageError; after
        an error nothing of it has been added. After an interruption `client_ids` says whether all of it has.
        """
        with self._lock.alone("add"):
            self._take(update, weight, self._kept.add)

    def _take(self, update: Update, weight: float | None, keep: Any) -> None:
        with self._clock.step("check"):
            who, share = self._checked(update, weight)
        with self._clock.step("add"):
            keep(who, update, share)

    def _checked(self, update: Update, weight: float | None) -> tuple[str, float]:
        """Who sent it, and its weight. Raises LayoutError where it does not fit to those before it, and WeightError."""
        before = self._updates.get(getattr(update, "client_id", ""))
        Cohort([update] if before is None else [before, update])  # refuses the second of a client, and no update
        who = _name(update)
        share = update.num_examples if weight is None or not self.rule.uses_weights else weight
        if self.rule.uses_weights:
            check_weights([share], [who])
        like = self._point
        if self._updates:
            first, last = next(iter(self._updates.values())), next(reversed(self._updates.values()))
            like = like or (_name(first), first)
            # now and not when it was taken, which is one step: an interruption could come after that
            self._bases.setdefault(BaseIdentity.of(last), (_name(last), last))
        check_same_base([*self._bases.values(), (who, update)])
        if like is not None:
            name, point = like
            check_same_parameters(Cohort([point]), [(who, update)], [name])
            if difference := point.layout.difference(update.layout):
                raise LayoutError(f"{who}: {difference} like {name}; send the same adapter")
        return who, float(share)

    def result(self) -> Aggregate:
        """The aggregate of the updates so far, as `fedcore.aggregate` returns it; adding may go on afterwards.

        Without a directory, and for rules that select, clip the clients' own norms or order, the bits of the update
        depend on which updates were added and not on their order; with one, coefficients of an iteration
        (GeometricMedian unless a client is the median, CenteredClipping, SpectralFilter, FLTrust) and clips of mixed
        rows are equal within their bound, for the Gram is centred at who came first.

        Raises ShapeError where none was added, and what `fedcore.aggregate` raises, a file in the directory that was
        changed or removed since included, needed for the result or not.
        """
        with self._lock.alone("result"):
            if not self._updates:
                raise ShapeError("accumulator: got no update, expected at least one; add what clients send")
            cohort = Cohort(self._updates.values())
            check_rule(self.rule, cohort, {})
            found = self._kept.result(cohort)
            seconds = found.report["seconds"]
            for step, spent in self._clock.seconds.items():
                seconds[step] = seconds.get(step, 0.0) + spent
            return found


def _name(update: Update) -> str:
    return f"client {shown(update.client_id)}"


def _folder(rule: Rule, directory: str | os.PathLike[str] | None) -> Path | None:
    """Where updates are kept; None for a rule that keeps none."""
    if rule.streams:
        if directory is not None:
            raise RuleError(
                f"{rule!r}: it keeps no update, so it has no use for directory={shown(str(directory))}; leave it out"
            )
        return None
    if directory is None:
        raise RuleError(
            f"{rule!r}: it has to see all updates before it can weigh one, so it keeps updates on disk; give directory="
        )
    folder = Path(directory)
    if folder.exists() and not folder.is_dir():
        raise StorageError(
            f"{folder}: is a file, expected a directory to keep updates in; give another directory=", filename=folder
        )
    return folder
