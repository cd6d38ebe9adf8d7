"""One module of a round: what a method gets of it, and what it says becomes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fedcore.dtypes import to_float64
from fedcore.errors import LayoutError
from fedcore.lora.cohort import Clients, Part, stacked
from fedcore.numbers import shown
from fedcore.updates import LoraPair

#: a sum of (coefficient, factors)
Terms = list[tuple[float, Part]]


@dataclass(frozen=True)
class Module:
    """One module of a round, as `Method._module` gets it.

    name        of the module
    parts       (n,) the clients' factors, None where a client did not train it
    clients     the cohort, for means of tensors as they were sent
    d_out, d_in the size of Δ
    number      the round, from 1
    reference   the factors that clients started from; None if no reference was given or it lacks the module
    side        the factors that lie beside the adapter already; None for nothing
    """

    name: str
    parts: tuple[Part | None, ...]
    clients: Clients
    d_out: int
    d_in: int
    number: int
    reference: Part | None
    side: Part | None

    @property
    def present(self) -> dict[int, Part]:
        """row -> factors, of the clients that trained this module."""
        return {row: part for row, part in enumerate(self.parts) if part is not None}

    @property
    def first(self) -> Part:
        """The factors of the first client that has them: what its scale is, the result's is."""
        return next(iter(self.present.values()))

    @property
    def widest(self) -> Part:
        """The first client's factors of the highest rank, or the reference's where that is higher still."""
        known = [] if self.reference is None else [self.reference]
        return max([*self.present.values(), *known], key=lambda part: part.rank)

    @property
    def rank(self) -> int:
        """The highest rank among the clients and the reference: that of the global adapter."""
        return self.widest.rank

    @property
    def absent(self) -> float:
        """The share of the clients that did not train this module."""
        return float(sum(self.clients.shares[row] for row, part in enumerate(self.parts) if part is None))

    def terms(self) -> Terms:
        """(coefficient, factors) whose sum is Σ p_i Δ_i; a client without the module counts with the reference's Δ."""
        shares = self.clients.shares
        found = [(float(shares[row]), part) for row, part in self.present.items()]
        absent = [] if self.reference is None or not self.absent else [(self.absent, self.reference)]
        return found + absent

    def starts(self, adapter: Part, own: Mapping[int, Part]) -> Terms:
        """(coefficient, factors) of the mean start: a client's own or `adapter`, which one without the module has."""
        if not own:
            return [(1.0, adapter)]
        shares = self.clients.shares
        found = [(float(shares[row]), own.get(row, adapter)) for row in self.present]
        return found + ([(self.absent, adapter)] if self.absent else [])

    def beside(self) -> Terms:
        """What lies beside the adapter already, as terms."""
        return [] if self.side is None else [(1.0, self.side)]

    def target_terms(self) -> Terms:
        """Terms of T = side + Σ p_i Δ_i."""
        return [*self.terms(), *self.beside()]

    def target(self) -> tuple[np.ndarray, np.ndarray]:
        """Stacked factors of T."""
        return self.stack(self.target_terms())

    def stack(self, terms: Terms) -> tuple[np.ndarray, np.ndarray]:
        """Factors of a sum of (coefficient, factors)."""
        return stacked(terms, self.d_out, self.d_in)

    def mean(self, factor: str) -> np.ndarray:
        """The weighted mean of one factor ("a" or "b") over the clients, rounded once to their dtype, in fp64."""
        rows = list(self.present)
        names = [getattr(self.clients.cohort[row].modules[self.name], factor) for row in rows]
        return to_float64(self.clients.mean(names, rows, self.clients.dtype(names[0])))

    def as_sent(self, part: Part) -> Part:
        """The part with its factors rounded once to the clients' dtype."""
        return self.clients.as_sent(self.name, part)


@dataclass(frozen=True)
class Held:
    """What becomes of one module.

    adapter    the factors that clients start from
    side       what lies beside it from now on, scale 1
    own        row -> factors of that client, where they are not `adapter`
    side_rank  rank of what has to travel for `side` this round
    details    more to report, JSON-able
    """

    adapter: Part
    side: Part | None = None
    own: Mapping[int, Part] = field(default_factory=dict)
    side_rank: int = 0
    details: Mapping[str, Any] = field(default_factory=dict)


def check_stands(method: str, module: str, held: Held, like: LoraPair, begun: str) -> None:
    """Raise LayoutError where clients begun by PiSSA and its like would hold an adapter that their base does not fit.

    PEFT takes a part of the adapter's rank and scale out of the base, which an adapter of zeros does not put back.
    """
    for part in (held.adapter, *held.own.values()):
        for what in ("rank", "scale"):
            if (got := getattr(part, what)) != (expected := getattr(like, what)):
                raise LayoutError(
                    f"{method}: module {shown(module)} gets {what} {got:g}, expected {expected:g} like the clients, "
                    f"which are begun by {begun!r}; keep it, or train adapters with init_lora_weights=True"
                )
    if held.side is None and not held.adapter.b.any():
        raise LayoutError(
            f"{method}: module {shown(module)} gets B = 0, not the base where adapters are begun by {begun!r}; "
            "train adapters with init_lora_weights=True"
        )
