"""Krum and Multi-Krum: the clients that lie closest to most of the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from fedcore.errors import RuleError
from fedcore.rules.geometry import Geometry
from fedcore.rules.rule import Coefficients, Rule
from fedcore.rules.selection import Scoring, select


def _check_count(rule: str, name: str, value: object, least: int) -> None:
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < least:
        raise RuleError(f"{rule}: got {name}={value!r}, expected an integer of at least {least}")


def _check_neighbors(rule: str, f: object, neighbors: object) -> None:
    _check_count(rule, "f", f, 0)
    if neighbors not in ("paper", "byzfl"):
        raise RuleError(f"{rule}: got neighbors={neighbors!r}, expected 'paper' or 'byzfl'")


def _check_cohort(rule: str, f: int, neighbors: str, clients: int) -> None:
    """2f + 2 < n for the paper's convention, 2f < n for ByzFL's."""
    largest = (clients - 3) // 2 if neighbors == "paper" else (clients - 1) // 2
    if f <= largest:
        return
    bound = "2f + 2 < n" if neighbors == "paper" else "2f < n"
    remedy = (
        f"the largest f for n={clients} is {largest}" if largest >= 0 else "no f fits: even f=0 needs n of at least 3"
    )
    raise RuleError(f"{rule}: got f={f} with n={clients} clients, expected {bound}; {remedy}")


def _scoring(f: int, neighbors: str, clients: int) -> Scoring:
    if neighbors == "paper":
        return Scoring(clients - f - 2, mean=False)
    return Scoring(clients - f - 1, mean=True)


def _selected(geometry: Geometry, f: int, neighbors: str, count: int) -> Coefficients:
    """Coefficient 1 for each selected client; why the others do not count; what was selected."""
    n = geometry.clients
    selection = select(geometry, _scoring(f, neighbors, n), count)
    values = np.zeros(n + geometry.references)
    values[selection.rows] = 1.0
    worst = max(selection.scores[row] for row in selection.rows)
    reasons = {
        row: f"not selected: score {selection.scores[row]:.6g}, the selected have at most {worst:.6g}"
        for row in range(n)
        if values[row] == 0
    }
    details = {"redone_pairs": selection.redone, "redone_on": geometry.redone_on if selection.redone else None}
    return Coefficients(values, reasons, details, {"scores": selection.scores}, selection.rows)


@dataclass(frozen=True)
class Krum(Rule):
    """The one row with the smallest score, as it is: argmin_i s(i), s(i) = Σ of ‖x_i − x_j‖² over its closest others j.

    neighbors="paper": the n − f − 2 closest others, summed; needs 2f + 2 < n. neighbors="byzfl": the n − f − 1 closest
    others, their mean; needs 2f < n. f is how many clients may be Byzantine; f = 0 asks for the most central row.
    Weights are ignored: what a client says about itself does not move a robust rule. Exact ties go to the lowest row.
    The selection is certified: it is that of distances formed directly in fp64, whatever the backend. Pairs in doubt
    are formed again by the C kernels or NumPy, also under backend="triton"; `redone_on` in the report says where.

    Breakdown point: f of n, at most (n − 3)/2 under the paper's bound. Cost: the Gram matrix, n²d/2 multiply-adds, one
    pass. Blanchard, El Mhamdi, Guerraoui and Stainer 2017, "Machine Learning with Adversaries: Byzantine Tolerant
    Gradient Descent", NeurIPS, section 4.
    """

    f: int
    neighbors: Literal["paper", "byzfl"] = "paper"
    needs: ClassVar[frozenset[str]] = frozenset({"gram"})

    def __post_init__(self) -> None:
        _check_neighbors("Krum", self.f, self.neighbors)

    def check(self, clients: int) -> None:
        """Raise RuleError, with the largest f for this n, if there are too few clients."""
        _check_cohort("Krum", self.f, self.neighbors, clients)

    def coefficients(self, geometry: Geometry, weights: np.ndarray | None) -> Coefficients:
        """1 for the selected client, 0 for all others; `weights` do not count."""
        self.check(geometry.clients)
        return _selected(geometry, self.f, self.neighbors, 1)


@dataclass(frozen=True)
class MultiKrum(Rule):
    """The plain mean of the m rows with the smallest Krum scores.

    m is n − f where it is not given, and at most that: the mean of more rows holds a Byzantine one. Weights are
    ignored. The rest is as for `Krum`: conventions, certified selection, ties to the lowest row.

    Breakdown point: f of n, at most (n − 3)/2 under the paper's bound. Cost: the Gram matrix and one pass over m rows.
    Blanchard et al. 2017, NeurIPS, section 4 and the experiments of section 6.
    """

    f: int
    m: int | None = None
    neighbors: Literal["paper", "byzfl"] = "paper"
    needs: ClassVar[frozenset[str]] = frozenset({"gram"})

    def __post_init__(self) -> None:
        _check_neighbors("MultiKrum", self.f, self.neighbors)
        if self.m is not None:
            _check_count("MultiKrum", "m", self.m, 1)

    def check(self, clients: int) -> None:
        """Raise RuleError if f is too large for this n, with the largest that fits, or m is above n − f."""
        _check_cohort("MultiKrum", self.f, self.neighbors, clients)
        if self.m is not None and self.m > clients - self.f:
            raise RuleError(
                f"MultiKrum: got m={self.m} with n={clients}, f={self.f}, expected at most n − f = {clients - self.f}"
            )

    def coefficients(self, geometry: Geometry, weights: np.ndarray | None) -> Coefficients:
        """1 for each selected client, 0 for all others; `weights` do not count."""
        self.check(geometry.clients)
        count = geometry.clients - self.f if self.m is None else self.m
        return _selected(geometry, self.f, self.neighbors, count)
