"""Cohort: the updates of one round, as rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import pairwise
from typing import SupportsIndex, overload

import numpy as np

from fedcore.dtypes import ROW_DTYPES
from fedcore.encoding import FORMATS, Encoding
from fedcore.errors import LayoutError, ShapeError
from fedcore.numbers import shown
from fedcore.rowtable import RowTable
from fedcore.updates.bases import check_same_base
from fedcore.updates.layout import Layout
from fedcore.updates.update import Update


class Cohort(Sequence[Update]):
    """n updates ordered by client_id (by code point), each id once.

    Raises ShapeError for no update and LayoutError naming a client_id that occurs twice.
    """

    def __init__(self, updates: Iterable[Update]):
        found = list(updates)
        if not found:
            raise ShapeError("cohort: got no update, expected at least one; wait for clients or check the paths")
        for i, update in enumerate(found):
            if not isinstance(update, Update):
                raise LayoutError(
                    f"cohort: got a {type(update).__name__} at {i}, expected Update; use Update.from_peft"
                )
        self._updates = tuple(sorted(found, key=lambda update: update.client_id))
        for one, following in pairwise(self._updates):
            if one.client_id == following.client_id:
                raise LayoutError(
                    f"client {shown(one.client_id)}: sent two updates, expected one; give each its own client_id"
                )

    def __len__(self) -> int:
        return len(self._updates)

    def __repr__(self) -> str:
        ids = [shown(self._updates[row].client_id) for row in sorted({0, len(self) - 1})]
        return f"<Cohort of {len(self)}: client {' to '.join(ids)}>"

    @overload
    def __getitem__(self, index: SupportsIndex) -> Update: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[Update, ...]: ...

    def __getitem__(self, index: SupportsIndex | slice) -> Update | tuple[Update, ...]:
        """The update at an index, or a tuple of them for a slice."""
        return self._updates[index]

    @property
    def client_ids(self) -> tuple[str, ...]:
        """(n,) the clients, in row order."""
        return tuple(update.client_id for update in self._updates)

    @property
    def num_examples(self) -> np.ndarray:
        """(n,) int64: examples by client, in row order."""
        return np.array([update.num_examples for update in self._updates], np.int64)

    @property
    def lacking(self) -> dict[str, list[str]]:
        """client_id -> LoRA modules that others sent and it did not, sorted; of those that lack any."""
        every = {module for update in self._updates for module in update.modules}
        found = {update.client_id: sorted(every - update.modules.keys()) for update in self._updates}
        return {client: modules for client, modules in found.items() if modules}

    def check_same_base(self) -> None:
        """Raise LayoutError naming two clients whose base models are both known and differ."""
        check_same_base((f"client {shown(update.client_id)}", update) for update in self._updates)

    def check_same_layout(self) -> None:
        """Raise LayoutError naming the first client that differs from the first one, and how.

        Compared are base, names, shapes, dtypes and scales. Layouts whose ranks differ, or modules whose scales do, can
        still be aggregated in delta space.
        """
        self.check_same_base()
        first = self._updates[0]
        for update in self._updates[1:]:
            if difference := first.layout.difference(update.layout):
                raise self._differs(update, difference)
            if update.scaling != first.scaling:
                module = next(m for m in first.scaling if update.scaling[m] != first.scaling[m])
                got, expected = update.scaling[module], first.scaling[module]
                raise self._differs(update, f"module {shown(module)} has scale {got:g}, expected {expected:g}")

    def tables(self, names: Iterable[str] | None = None) -> list[tuple[tuple[str, ...], RowTable]]:
        """The tensors as rows, one table per dtype: (names in canonical order, RowTable with a segment for each).

        names: only these; clients must agree on these alone. Nothing is copied. Where a tensor travels in another
        format than its dtype the table's own dtype is what ops see: the format, where all lie as one of the row dtypes,
        else float32. Raises LayoutError naming the first client that lacks one of them or has it in another shape or
        dtype.
        """
        for update in self._updates:
            if not update.mapped:
                raise LayoutError(
                    f"client {shown(update.client_id)}: lies in a file that is not mapped; use fc.aggregate, which "
                    "reads it in tiles, or Update.from_peft"
                )
        layout = self.layout_of(names)
        same = np.array([self._updates[0].layout.index[name] for name in layout.names], np.intp)
        places = [
            same if self._one_layout else np.array([update.layout.index[name] for name in layout.names], np.intp)
            for update in self._updates
        ]
        groups: dict[str, list[int]] = {}
        for k, dtype in enumerate(layout.dtypes):
            groups.setdefault(dtype, []).append(k)
        return [
            (tuple(layout.names[k] for k in group), self._table([p[group] for p in places], layout.sizes[group], dtype))
            for dtype, group in groups.items()
        ]

    def layout_of(self, names: Iterable[str] | None = None) -> Layout:
        """The layout of the tensors, all or those named, that every client has. Raises LayoutError as `tables` does."""
        first = self._updates[0].layout
        chosen = None if names is None else set(names)
        layout = first if chosen is None else first.select(chosen)
        if not self._one_layout:
            self._check_agree_on(layout, chosen)
        return layout

    def _table(self, places: list[np.ndarray], lengths: np.ndarray, source: str) -> RowTable:
        """The table of the tensors at these positions of each update's layout."""
        buffers = [update.buffer for update in self._updates]
        offsets = np.stack([update.offsets[p] for update, p in zip(self._updates, places, strict=True)], axis=1)
        if self._one_layout:
            formats = {self._updates[0].layout.formats[k] for k in places[0]}
        else:
            formats = {u.layout.formats[k] for u, p in zip(self._updates, places, strict=True) for k in p}
        if len(formats) == 1 and (format := formats.pop()) in ROW_DTYPES:
            return RowTable(buffers, offsets, lengths, format, source=source)
        each = zip(self._updates, places, strict=True)
        codes = np.array([[FORMATS[update.layout.formats[k]] for k in p] for update, p in each], np.uint8).T
        scales = np.stack([update.scales[:, p] for update, p in zip(self._updates, places, strict=True)], axis=2)
        encoding = Encoding(codes, scales, np.zeros(codes.shape, np.int64))
        return RowTable(buffers, offsets, lengths, "float32", encoding, source)

    @cached_property
    def _one_layout(self) -> bool:
        """Whether all layouts are equal."""
        return all(update.layout == self._updates[0].layout for update in self._updates)

    def _check_agree_on(self, layout: Layout, names: set[str] | None) -> None:
        """Raise LayoutError naming the first client whose tensors of these names (None: all) are not as in `layout`."""
        for update in self._updates[1:]:
            theirs = update.layout if names is None else update.layout.select(names & update.layout.index.keys())
            if difference := layout.difference(theirs):
                raise self._differs(update, difference)

    def _differs(self, update: Update, how: str) -> LayoutError:
        first = self._updates[0].client_id
        return LayoutError(f"client {shown(update.client_id)}: {how} like client {shown(first)}; send the same adapter")
