"""Updates that are kept on disk until the result, for rules that have to see all of them."""

from __future__ import annotations

import copy
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fedcore.accumulator.growing_gram import GrowingGram
from fedcore.engine.run import Aggregate, room_for, run
from fedcore.errors import FedcoreError, FormatError, StorageError
from fedcore.numbers import shown
from fedcore.rules.files import FileExecutor, budget_for
from fedcore.rules.rows import RowExecutor
from fedcore.rules.rule import Rule
from fedcore.updates import Cohort, Update
from fedcore.updates.atomic import is_left, make_parents, refused, remove_left, write_atomically
from fedcore.updates.file import File
from fedcore.updates.file_lock import FileLock

#: what follows a client's name on disk: its update, and the weight that it was given beside its own count
UPDATE, WEIGHT = ".safetensors", ".weight"
#: the file by which one process holds the directory
LOCK = ".lock"


class StoredRows:
    """Updates in one directory, a file each, and the Gram of those that a rule needs one of.

    It holds the directory, made if need be, until `close`; copies and forked children do not. Raises StorageError.
    """

    def __init__(
        self,
        rule: Rule,
        directory: Path,
        references: dict[str, Update | None],
        passes: dict[str, Any],
        files: dict[str, Any],
    ):
        self.rule, self.directory, self.references, self.passes = rule, directory, references, passes | files
        self._backend, self._memory = passes, files["memory"]
        #: client_id -> its update as it lies on disk, in the order of arrival
        self.updates: dict[str, Update] = {}
        self._weights: dict[str, float] = {}
        #: how many clients there were when the Gram was last to grow
        self._tried = 0
        self._grown = GrowingGram(references, self.passes, rule.origin) if "gram" in rule.needs else None
        lock = directory / LOCK
        try:
            make_parents(lock)
        except OSError as error:
            raise refused(directory, error) from error
        taken = f"{directory}: another Accumulator keeps its updates in it; wait for it, close it, or give another one"
        self._lock = FileLock(lock, mode=0o666, busy=taken)

    def close(self) -> None:
        """Let others have the directory."""
        self._lock.close()

    @property
    def nbytes(self) -> int:
        """Bytes of the Gram."""
        return 0 if self._grown is None else self._grown.nbytes

    def found(self) -> Iterator[tuple[Update, float | None]]:
        """The updates that lie in the directory, with the weights they were given; what killed adds left is removed."""
        try:
            names = sorted(os.listdir(self.directory))
        except OSError as error:
            raise StorageError(
                f"{self.directory}: cannot be read ({error.strerror}); check its permissions and its disk",
                errno=error.errno,
                filename=self.directory,
            ) from error
        remove_left(self.directory / name for name in names if is_left(name))
        for name in names:
            if name.endswith(UPDATE):
                path = self.directory / name
                yield Update.open(path), _weight_in(path.with_suffix(WEIGHT))

    def copied(self) -> StoredRows:
        """The same, which does not hold the directory."""
        twin = copy.copy(self)
        twin.updates, twin._weights = dict(self.updates), dict(self._weights)
        twin._grown, twin._lock = copy.copy(self._grown), copy.deepcopy(self._lock)
        return twin

    def add(self, who: str, update: Update, weight: float) -> None:
        """Write an update to disk. Raises as `Accumulator.add` does."""
        if not self._lock.held:
            raise StorageError(
                f"{self.directory}: this Accumulator does not hold it, being closed, a copy or in a forked process; "
                "open it with a new Accumulator, which goes on with what is there",
                filename=self.directory,
            )
        rows = [*self.updates.values(), update, *self.references.values()]
        room = room_for(self.rule, len(rows) - len(self.references))
        budget = budget_for(update.layout, rows, self._memory, threads=self._backend["threads"], **room)
        budget.check(f"{len(self.updates) + 1} clients")
        # NaN is refused now, by a pass for norms, while the client is still there to be asked again
        alone, zero = Cohort([update]), {"zero": None}
        if update.mapped:
            RowExecutor.from_cohort(alone, zero, [who], **self._backend).squared_norms()
        else:
            FileExecutor.from_files(alone, zero, [who], matrices=0, **self.passes).squared_norms()
        path = self.directory / (hashlib.sha256(update.client_id.encode()).hexdigest()[:32] + UPDATE)
        try:
            # the weight first: an update that lies there has been added
            if weight != update.num_examples:
                write_atomically(path.with_suffix(WEIGHT), float(weight).hex().encode())
            else:  # what a crash between the two files left
                try:
                    path.with_suffix(WEIGHT).unlink(missing_ok=True)
                except OSError as error:
                    raise refused(path, error) from error
            write_atomically(path, update.parts())
            self.known(who, Update.open(path), weight)
        except BaseException:  # an interruption, too
            if update.client_id not in self.updates:
                for left in (path, path.with_suffix(WEIGHT)):
                    with suppress(OSError):
                        left.unlink(missing_ok=True)
            raise

    def known(self, who: str, update: Update, weight: float) -> None:
        """Take an update that lies in the directory."""
        self._weights[update.client_id] = weight
        self.updates[update.client_id] = update
        clients = len(self.updates)
        if self._grown is not None and clients - max(self._grown.clients, self._tried) >= self._grown.batch:
            # where a file is rotten the next try comes with the next batch, and not with each client
            self._tried = clients
            with suppress(FedcoreError):  # the update has been added; what is wrong with another's file the result says
                self._grown.grow(list(self.updates.values()))

    def result(self, cohort: Cohort) -> Aggregate:
        """The aggregate of all of them, from the Gram as it has grown."""
        gram = None
        if self._grown is not None:
            self._grown.grow(list(self.updates.values()))
            arrived = list(self.updates)
            gram = self._grown.gram([arrived.index(client) for client in cohort.client_ids])
        found = run(cohort, self.rule, "parameters", self.references, self._weights, {}, self.passes, gram)
        for client, update in self.updates.items():  # the result may have needed no byte of some of them
            if update.file is not None:
                with _naming(client), update.file.opened():
                    pass
        return found


@contextmanager
def _naming(client: str) -> Iterator[None]:
    try:
        yield
    except FedcoreError as error:
        raise error.with_message(f"client {shown(client)}: {error}") from None


def _weight_in(path: Path) -> float | None:
    """The weight that was written to a file; None where there is none. Raises as `Update.open` does."""
    if not os.path.lexists(path):
        return None
    file = File.at(path)
    try:
        return float.fromhex(file.read(0, file.size).tobytes().decode())
    except (ValueError, OverflowError):
        raise FormatError(f"{path}: holds no weight; remove it, and the client is weighed by its examples") from None
