"""How messages call a row that holds NaN or Inf: whose it is, which tensor, which element, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from fedcore.errors import NonFiniteError
from fedcore.ops.rows import as_rows, raise_first_nonfinite
from fedcore.rules.given_rows import repair
from fedcore.rules.tiles import Tile

#: what to do about a client's NaN
RETRAIN = "exclude that client or have it trained again"


class NamedRows:
    """Rows of clients and then of references, of which errors of ops are told in the words of the caller.

    names            what messages call each client
    reference_names  what they call each reference
    """

    def __init__(self, names: Sequence[str], references: Iterable[str]):
        self.names = tuple(names)
        self.reference_names = tuple(f"the {name}" for name in references)

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

    def _named(self, error: NonFiniteError, part: Any) -> NonFiniteError:
        """The error in the words of the caller: which client, which tensor."""
        who = (*self.names, *self.reference_names)[error.row]
        reference = error.row >= len(self.names)
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
