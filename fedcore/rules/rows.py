"""The executor over rows in memory, in mapped files or on a GPU: what rules ask of the data, by the ops."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

from fedcore import ops
from fedcore.backends import default, requested
from fedcore.ops.rows import as_rows
from fedcore.rules.given_rows import columns, in_main_memory, row_of, take
from fedcore.rules.naming import NamedRows
from fedcore.rules.order_statistic import OrderStatistic, column_statistic
from fedcore.rules.parts import Part, part_of_rows, parts_of_cohort
from fedcore.rules.pivot import Blocks, choose_pivot
from fedcore.rules.statistics import UNIT, Gram
from fedcore.rules.tiles import Tile
from fedcore.updates import Cohort, Update


class RowExecutor(NamedRows):
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
        super().__init__(names, references)
        self.parts = list(parts)
        self.clients, self.references = len(self.names), len(references)
        self.zero = frozenset(self.clients + k for k, row in enumerate(references.values()) if row is None)
        self.backend, self.threads = backend, threads

    @classmethod
    def from_rows(
        cls, rows: Any, *, references: Mapping[str, Any], backend: str | None, threads: int | None
    ) -> RowExecutor:
        """Plain rows, and reference rows by name; None is the zero row."""
        part = part_of_rows(rows, references)
        names = tuple(f"row {i}" for i in range(part.data.n - len(references)))
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
        parts = parts_of_cohort(cohort, references, names, tensors)
        return cls(parts, names, references, backend=backend, threads=threads)

    @contextmanager
    def tiles(self, part: Any, rows: Sequence[int], work: str) -> Iterator[Iterable[Tile]]:
        """Some rows of a part, in tiles of columns from the first to the last: of rows in memory, one of all columns.

        `work` says in one word what the pass is for. The last tile may have any width, the others multiples of 8192.
        """
        yield [Tile(0, _some(part, rows))]

    @contextmanager
    def sample(self, part: Any) -> Iterator[Callable[[Blocks], np.ndarray]]:
        """A function of blocks (start, stop) that gives those columns of all rows of a part, joined, in fp64."""
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

    def statistic(
        self, part: Any, tile: Tile, read: Sequence[int], op: Any, rows: Any, center: Any, total: np.ndarray | None
    ) -> np.ndarray:
        """A statistic of `rows` about `center`, both of the tile of the rows `read`, added to those before."""
        with self.found_again(part, read, tile):
            result = op(rows, center, total=total, backend=self.backend, threads=self.threads)
        return result.cpu().numpy() if hasattr(result, "cpu") else result


def _some(part: Part, rows: Sequence[int]) -> Any:
    """Some rows of a part as they were given."""
    return part.given if len(rows) == part.data.n else take(part.given, rows)
