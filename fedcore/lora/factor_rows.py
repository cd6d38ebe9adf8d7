"""The rows of a cohort of adapters as passes read them: clients, and after them the references that are given.

A row that lacks a module left it as it was: its Δ there is that of the adapter that the round started from, or 0 where
nobody gave one. So Δ − Δ_ref is 0 there, norms and distances are defined, and every rule sees the same n clients in
every module. Counting such a client, and not leaving it out, is what keeps a rule's promise: f Byzantine clients of n
stay f of n. Over those alone who trained a module they could be most of them. The price: a module that less than half
of the clients trained stays where it was under a median.

Modules are those of the start adapter, where there is one, and else of all rows together. A result has those that a row
which counts has: nothing is left of a module that only a client which was not chosen sent.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np

from fedcore.errors import LayoutError, NonFiniteError
from fedcore.lora.measure import Measure, broken_factors, measure, rebuild
from fedcore.lora.stacks import Stack, check_factors, read_factors, read_plain, read_stack
from fedcore.numbers import shown
from fedcore.updates import LoraPair, Update
from fedcore.updates.taken import taken_from_base


class Row(NamedTuple):
    """What passes read of one row.

    modules, tensors  of its update, and of what stands in for modules that it lacks
    zero              modules in which it is 0, by factors of zeros that are no adapter
    """

    modules: Mapping[str, LoraPair]
    tensors: Mapping[str, np.ndarray]
    zero: frozenset[str]


class FactorRows:
    """Checked rows, read module by module.

    updates   (rows,) as passes see them; ranks and scales may differ
    names     what messages call each of them
    clients   how many of them are clients
    like      module -> the first update that has it: what dtype and scale results have

    progress  called as progress(work, done, total): modules of one pass

    Raises LayoutError naming the client, module or tensor that does not fit, and NonFiniteError for a start adapter
    with NaN or Inf in a module that a client lacks.
    """

    def __init__(
        self,
        updates: Sequence[Update],
        names: Sequence[str],
        clients: int,
        start: Update | None = None,
        progress: Callable[[str, int, int], object] | None = None,
    ):
        known = [(start, "the reference")] if start is not None else []
        both = [*zip(updates, names, strict=True), *known]
        check_factors([update for update, _ in both], [who for _, who in both], clients, dense=len(updates))
        if any(update.modules for update in updates):
            for update, who in zip(updates, names, strict=True):
                _check_modules(update, who, start)
        if start is None:
            _check_zero(updates, names)
        self.like: dict[str, Update] = {}
        for update, _ in both:
            for module in update.modules:
                self.like.setdefault(module, update)
        self.modules = tuple(sorted(self.like))
        self._given = updates
        self.updates = [self._row(update, start) for update in updates]
        self.names, self.clients, self.progress = list(names), clients, progress

    def _row(self, update: Update, start: Update | None) -> Row:
        lacking = [module for module in self.modules if module not in update.modules]
        if not lacking:
            return Row(update.modules, update.tensors, frozenset())
        modules, tensors = dict(update.modules), [update.tensors]
        if start is not None:
            tensors.append(start.tensors)
        held = {} if start is None else start.modules
        for module in lacking:
            if start is not None and module in held:
                modules[module] = held[module]
                read_plain(start, module, -1, "the reference")
            else:
                modules[module], zeros = self._zeros[module]
                tensors.append(zeros)
        return Row(modules, ChainMap(*tensors), frozenset(lacking).difference(held))  # type: ignore[arg-type]

    def held(self, rows: Sequence[int]) -> frozenset[str]:
        """Modules that one of these rows has, of its own or as the start adapter does; of no row: all modules."""
        lacking = [self.updates[row].zero for row in rows] or [frozenset()]
        return frozenset(self.modules) - frozenset.intersection(*lacking)

    @cached_property
    def _zeros(self) -> dict[str, tuple[LoraPair, dict[str, np.ndarray]]]:
        """module -> a pair with B = 0, of the highest rank that a row has there, and its tensors."""
        found = {}
        for module, update in self.like.items():
            rank = max((given.modules[module].rank for given in self._given if module in given.modules), default=1)
            pair = update.modules[module]._replace(rank=rank)
            # rows of length 1, as a truncation leaves them where Δ is 0: a result can be trained from there
            tensors = {pair.b: np.zeros((pair.d_out, rank), np.float32), pair.a: np.eye(rank, pair.d_in, dtype="f4")}
            found[module] = pair, tensors
        return found

    @cached_property
    def sizes(self) -> Measure:
        """What every row's factors measure: made once, before anything else is made of them. Raises NonFiniteError."""
        return measure(self.updates, self.modules, self.names, self.clients, self._told("factors"))

    def broken(self) -> dict[int, NonFiniteError]:
        """row -> why its factors are of no use, of all rows of a cohort without references, in one pass."""
        return broken_factors(self.updates, self.modules, self.names, self._told("exclusion"))

    def _told(self, work: str) -> Iterator[str]:
        """The modules, one after the other; progress is told of each that is done."""
        for done, module in enumerate(self.modules, 1):
            yield module
            if self.progress is not None:
                self.progress(work, done, len(self.modules))

    def _factors(self, update: Row, module: str, row: int, who: str) -> tuple[np.ndarray, np.ndarray]:
        """(b, a) of one row, rebuilt where those that were sent hide their product."""
        b, a = read_factors(update, module, row if row < self.clients else -1, who)
        return rebuild(b, a) if self.sizes.rebuilt[self.modules.index(module), row] else (b, a)

    def _stacks(self, work: str, rows: np.ndarray | None = None) -> Iterator[tuple[str, Stack]]:
        """Each module's stack, over all rows or some of them."""
        index = range(len(self.updates)) if rows is None else [int(row) for row in rows]
        for module in self._told(work):
            yield module, read_stack(self.updates, module, index, self.names, self._factors)

    def as_sent(self, work: str) -> Iterator[tuple[str, tuple[list[np.ndarray], list[np.ndarray], list[float]]]]:
        """Each module's (b, a, scales), read in place but for rows that are rebuilt, whose scale is in b, in fp64."""
        sizes = self.sizes
        for m, module in enumerate(self._told(work)):
            b, a, scales = [], [], []
            for row, update in enumerate(self.updates):
                pair, rebuilt = update.modules[module], sizes.rebuilt[m, row]
                if rebuilt:
                    factors = self._factors(update, module, row, self.names[row])
                else:
                    factors = update.tensors[pair.b], update.tensors[pair.a]
                b.append(np.ascontiguousarray(factors[0]))
                a.append(np.ascontiguousarray(factors[1]))
                scales.append(1.0 if rebuilt else pair.scale)
            yield module, (b, a, scales)


def _check_zero(updates: Sequence[Update], names: Sequence[str]) -> None:
    """Raise LayoutError where a row lacks a module, and adapters do not start at 0 there."""
    every = sorted({module for update in updates for module in update.modules})
    for update, who in zip(updates, names, strict=True):
        lacking = [module for module in every if module not in update.modules]
        if lacking and (begun := taken_from_base(update.adapter_config)):
            raise LayoutError(
                f"{who}: lacks module {shown(lacking[0])}, where an adapter begun by {begun!r} is not 0 but a part of "
                "the base; give the adapter that was broadcast as the reference"
            )


def _check_modules(update: Update, who: str, start: Update | None) -> None:
    """Raise LayoutError for an update without a module, or with one that the start adapter lacks."""
    if not update.modules:
        raise LayoutError(f"{who}: has no LoRA factors, expected <module>.lora_A.weight and .lora_B.weight")
    for module in update.modules if start is not None else ():
        assert start is not None
        if module not in start.modules:
            raise LayoutError(
                f"{who}: module {shown(module)} is extra, the reference has none; send the adapter that was broadcast, "
                "or part of it"
            )
