"""The executor over rows in memory, in mapped files or on a GPU: what rules ask of the data, by the ops."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from fedcore import ops
from fedcore.backends import default, requested
from fedcore.errors import LayoutError, NonFiniteError
from fedcore.ops.rows import Rows, as_rows, raise_first_nonfinite
from fedcore.rowtable import RowTable
from fedcore.rules.given_rows import (
    checked_reference,
    columns,
    flat,
    in_main_memory,
    repair,
    row_like,
    row_of,
    take,
    zero_like,
    zero_row,
)
from fedcore.rules.order_statistic import OrderStatistic, column_statistic
from fedcore.rules.pivot import Blocks, choose_pivot
from fedcore.rules.statistics import UNIT, Gram
from fedcore.rules.tiles import Tile
from fedcore.updates import Cohort, Update

#: what to do about a client's NaN
RETRAIN = "exclude that client or have it trained again"


class Part(NamedTuple):
    """Rows of one dtype, clients and then references: as they were given, as ops see them, and their tensors."""

    given: Any
    data: Rows
    tensors: tuple[str, ...]

    @property
    def d(self) -> int:
        """Columns."""
        return self.data.d

    @property
    def dtype(self) -> str:
        """The dtype of all rows."""
        return self.data.dtype

    @property
    def starts(self) -> np.ndarray:
        """(s + 1,) the column at which each tensor starts, and the end."""
        assert self.data.table is not None
        return self.data.table.starts


class RowExecutor:
    """Passes over rows that are cut into parts of one dtype each; a cohort of one dtype has one part.

    clients, references   how many rows; `names` (clients,) is what messages call each client
    parts                 each with clients + references rows, references last
    reference_names       what messages call each reference
    zero                  rows that are zero: they are seen by the statistics and left out of sums
    """

    #: what mixtures of rows before an order statistic may take at a time; None where nobody counts
    mixed_bytes: int | None = None

    def __init__(
        self,
        parts: Sequence[Part],
        names: Sequence[str],
        references: Mapping[str, Any],
        *,
        backend: str | None = None,
        threads: int | None = None,
    ):
        self.parts = list(parts)
        self.names = tuple(names)
        self.clients, self.references = len(self.names), len(references)
        self.reference_names = tuple(f"the {name}" for name in references)
        self.zero = frozenset(self.clients + k for k, row in enumerate(references.values()) if row is None)
        self.backend, self.threads = backend, threads

    @classmethod
    def from_rows(
        cls, rows: Any, *, references: Mapping[str, Any], backend: str | None, threads: int | None
    ) -> RowExecutor:
        """Plain rows, and reference rows by name; None is the zero row."""
        data = as_rows(rows)
        names = tuple(f"row {i}" for i in range(data.n))
        if not references:
            return cls([Part(rows, data, ())], names, {}, backend=backend, threads=threads)
        checked = [None if row is None else checked_reference(name, row, data) for name, row in references.items()]
        extended: Any
        if isinstance(rows, RowTable):
            extended = rows
            for row in checked:
                extended = extended.extend(zero_row(rows) if row is None else row_like(rows, row))
        else:
            extended = [*rows, *(zero_like(rows[0]) if row is None else flat(row, data) for row in checked)]
        part = Part(extended, as_rows(extended), ())
        return cls([part], names, references, backend=backend, threads=threads)

    @classmethod
    def from_cohort(
        cls,
        cohort: Cohort,
        references: Mapping[str, Update | None],
        names: Sequence[str],
        tensors: Sequence[str] | None = None,
        *,
        backend: str | None,
        threads: int | None,
    ) -> RowExecutor:
        """The tensors of a cohort, all or those named, and reference updates by name; None is zero.

        Raises LayoutError naming the client, or the reference, and the tensor that differs.
        """
        tables = cohort.tables(tensors)
        rows = [table for _, table in tables]
        for name, reference in references.items():
            if reference is None:
                found = [zero_row(table) for _, table in tables]
            else:
                layouts = [u.layout if tensors is None else u.layout.select(tensors) for u in (cohort[0], reference)]
                if difference := layouts[0].difference(layouts[1]):
                    raise LayoutError(f"{name}: {difference} like {names[0]}; convert it or send the same adapter")
                found = [row for _, row in Cohort([reference]).tables(tensors)]
            rows = [table.extend(row) for table, row in zip(rows, found, strict=True)]
        parts = [Part(table, as_rows(table), part) for (part, _), table in zip(tables, rows, strict=True)]
        return cls(parts, names, references, backend=backend, threads=threads)

    @contextmanager
    def tiles(self, part: Any, rows: Sequence[int], work: str) -> Iterator[Iterable[Tile]]:
        """Some rows of a part, in tiles of columns from the first to the last: of rows in memory, one of all columns.

        `work` says in one word what the pass is for. The last tile may have any width, the others multiples of 8192.
        """
        yield [Tile(0, _some(part, rows))]

    @contextmanager
    def sample(self, part: Any) -> Iterator[Callable[[int, Blocks], np.ndarray]]:
        """A function of a row and blocks (start, stop) that gives those columns of a part, joined, in fp64."""
        yield partial(columns, part.data)

    def squared_norms(self) -> tuple[np.ndarray, np.ndarray]:
        """(clients,) squared distances to the first reference, the centre of the pass, summed in fp64; no bounds: 0."""
        total, n = np.zeros(self.clients), self.clients
        read = range(n if n in self.zero else n + 1)
        for part in self.parts:
            found: np.ndarray | None = None
            with self.tiles(part, read, "norms") as tiles:
                for tile in tiles:
                    center = None if n in self.zero else row_of(tile.rows, n)
                    clients = take(tile.rows, range(n))
                    found = self.statistic(part, tile, read, ops.squared_norms, clients, center, found)
            assert found is not None
            total += found
        return total, np.zeros(self.clients)

    def gram(self, origin: int | None = None) -> Gram:
        """The Gram of all rows: of each part, centred at `origin` or at its own pivot, in order of the parts."""
        rows = self.clients + self.references
        matrix, offset = np.zeros((rows, rows)), 0.0
        for part in self.parts:
            pivot = origin
            if pivot is None:
                with self.sample(part) as columns:
                    pivot = choose_pivot(rows, part.d, columns)
            found: np.ndarray | None = None
            square: np.ndarray | None = None
            with self.tiles(part, range(rows), "gram") as tiles:
                for tile in tiles:
                    center = take(tile.rows, [pivot])
                    found = self.statistic(
                        part, tile, range(rows), ops.gram, tile.rows, row_of(tile.rows, pivot), found
                    )
                    square = self.statistic(part, tile, range(rows), ops.squared_norms, center, None, square)
            assert found is not None
            assert square is not None
            matrix += found
            offset += float(square[0])
        rounding = (sum(part.d for part in self.parts) + 4) * UNIT
        epsilon = ops.gram_epsilon(self.backend)
        return Gram(matrix, epsilon * matrix.diagonal(), float(np.sqrt(offset)), rounding)

    def exact(self, pairs: np.ndarray, mix: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Squared distances in fp64, and bounds of 0: these values are the oracle.

        Order: within a part (one dtype) columns in order, and the sums of the parts in order of the parts.
        """
        total = np.zeros(len(pairs))
        if not len(pairs):
            return total, total
        used, index = np.unique(pairs, return_inverse=True)
        options: dict[str, Any] = {"backend": self.backend, "threads": self.threads}
        if mix is not None:
            mixtures = mix[used]
            # zero rows add nothing, and what all mixtures hold alike cancels
            used = np.array(self._summed((mixtures != mixtures[0]).any(axis=0)))
            options |= {"mix": mixtures[:, used], "backend": self.redone_on(True)}
        for part in self.parts:
            found = np.zeros(len(pairs))
            with self.tiles(part, used.tolist(), "pairs") as tiles:
                for tile in tiles:
                    rows = tile.rows if mix is None else in_main_memory(tile.rows)
                    with self.naming(part, used.tolist(), tile.start):
                        ops.squared_distances(rows, index.reshape(pairs.shape), total=found, **options)
            total += found
        return total, np.zeros(len(pairs))

    def redone_on(self, mixed: bool) -> str:
        """The backend of `exact`; mixtures are formed in fp64, on the host."""
        on_gpu = any(as_rows(part.given).on_gpu for part in self.parts if isinstance(part, Part))
        name = requested(self.backend) or default(on_gpu and not mixed)
        return default(False) if mixed and name == "triton" else name

    def weighted_sum(self, coefficients: np.ndarray, divisor: float, out_dtype: str | None = None) -> list[Any]:
        """Σ c_k x_k / divisor of each part, rounded once to `out_dtype` or to the part's own dtype."""
        options: dict[str, Any] = {"backend": self.backend, "threads": self.threads}
        kept = self._summed(coefficients)

        def of_tile(tile: Tile, dtype: str) -> Any:
            return ops.weighted_sum(tile.rows, coefficients[kept], divisor, out_dtype=dtype, **options)

        return [self._combined(part, kept, of_tile, out_dtype) for part in self.parts]

    @property
    def tensors(self) -> list[tuple[str, ...]]:
        """The tensors of each part, one after the other."""
        return [part.tensors for part in self.parts]

    def order_statistic(self, decided: OrderStatistic, out_dtype: str | None = None) -> list[Any]:
        """The statistic of each part, coordinate by coordinate, rounded once to `out_dtype` or the part's own dtype."""
        mixed, n = decided.rounded(), self.clients
        kept = list(decided.rows or range(n)) if mixed is None else self._summed(mixed[0].any(axis=0).reshape(-1))
        centered = decided.statistic == "sign_majority" and self.references and n not in self.zero
        read = [*kept, n] if centered else kept
        used = None if mixed is None else (mixed[0][:, kept], mixed[1])
        options: dict[str, Any] = {"backend": self.backend, "threads": self.threads}

        def of_tile(tile: Tile, dtype: str) -> Any:
            center = row_of(tile.rows, len(kept)) if centered else None
            rows = take(tile.rows, range(len(kept)))
            return column_statistic(decided, rows, used, center, self.mixed_bytes, out_dtype=dtype, **options)

        return [self._combined(part, read, of_tile, out_dtype) for part in self.parts]

    def _combined(self, part: Any, read: list[int], of_tile: Callable[[Tile, str], Any], out_dtype: str | None) -> Any:
        """What `of_tile` makes of each tile of the rows `read`, side by side."""
        dtype, whole = out_dtype or part.dtype, None
        with self.tiles(part, read, "combination") as tiles:
            for tile in tiles:
                with self.found_again(part, read, tile):
                    found = of_tile(tile, dtype)
                if len(found) == part.d:
                    whole = found
                    continue
                if whole is None:
                    whole = np.empty(part.d, found.dtype)
                whole[tile.start : tile.start + len(found)] = found
        return whole

    def _summed(self, used: np.ndarray) -> list[int]:
        """The rows that are read for a sum: those that are used, but not zero rows; one row where none is left."""
        return [int(row) for row in np.flatnonzero(used) if row not in self.zero] or [0]

    @contextmanager
    def naming(self, part: Any, rows: Sequence[int], start: int = 0) -> Iterator[None]:
        """NonFiniteError of an op over columns of `rows` from `start` on, in the words of the caller."""
        try:
            yield
        except NonFiniteError as error:
            if error.row < 0:
                raise
            found = self._named(NonFiniteError(str(error), rows[error.row], start + error.column), part)
            found.read = tuple(rows)
            raise found from None

    @contextmanager
    def found_again(self, part: Any, read: Sequence[int], tile: Tile) -> Iterator[None]:
        """NonFiniteError of ops over some rows and columns of a tile of the rows `read`, in the words of the caller.

        An op counts rows and columns of what it gets, and a bad centre is a row of the part too: the tile says which.
        """
        try:
            yield
        except NonFiniteError:
            with self.naming(part, read, tile.start):
                raise_first_nonfinite(as_rows(tile.rows))
            raise

    def statistic(
        self, part: Any, tile: Tile, read: Sequence[int], op: Any, rows: Any, center: Any, total: np.ndarray | None
    ) -> np.ndarray:
        """A statistic of `rows` about `center`, both of the tile of the rows `read`, added to those before."""
        with self.found_again(part, read, tile):
            result = op(rows, center, total=total, backend=self.backend, threads=self.threads)
        return result.cpu().numpy() if hasattr(result, "cpu") else result

    def _named(self, error: NonFiniteError, part: Any) -> NonFiniteError:
        """The error in the words of the caller: which client, which tensor."""
        names = (*self.names, *self.reference_names)
        who = names[error.row]
        reference = error.row >= self.clients
        if not part.tensors:
            remedy = repair(who) if reference else "drop that row or repair it"
            return NonFiniteError(
                f"{who}: holds NaN or Inf at column {error.column}; {remedy}", error.row, error.column
            )
        starts = part.starts
        tensor = int(np.searchsorted(starts, error.column, side="right")) - 1
        remedy = repair(who) if reference else RETRAIN
        return not_finite(who, part.tensors[tensor], error.column - int(starts[tensor]), error.row, remedy)


def not_finite(who: str, tensor: str, element: int, row: int, remedy: str = RETRAIN) -> NonFiniteError:
    """The error that names the client, the tensor and the element (0-based, row-major) that is NaN or Inf."""
    return NonFiniteError(f"{who}: tensor {tensor!r} holds NaN or Inf at element {element}; {remedy}", row, element)


def _some(part: Part, rows: Sequence[int]) -> Any:
    """Some rows of a part as they were given."""
    return part.given if len(rows) == part.data.n else take(part.given, rows)
