"""Krum and Multi-Krum: the clients that lie closest to most of the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from fedcore.errors import RuleError
from fedcore.numbers import among, got, keep
from fedcore.rules.geometry import Geometry
from fedcore.rules.parameters import check_bool, check_bound, check_count
from fedcore.rules.rule import Coefficients, Rule
from fedcore.rules.selection import Scoring, select

#: how a score counts neighbours: as the paper does, or as ByzFL or Flower do
Neighbors = Literal["paper", "byzfl", "flower"]


def _check_neighbors(rule: str, neighbors: object) -> None:
    if not among(neighbors, ("paper", "byzfl", "flower")):
        raise RuleError(f"{got('neighbors', neighbors, rule)}, expected 'paper', 'byzfl' or 'flower'")


def _check_cohort(rule: str, f: int, neighbors: str, clients: int) -> None:
    """2f + 2 < n for the paper's convention, 2f < n for ByzFL's; Flower checks nothing, here f < n."""
    if neighbors == "paper":
        check_bound(rule, f, clients, "2f + 2 < n", (clients - 3) // 2, least=3)
    elif neighbors == "byzfl":
        check_bound(rule, f, clients, "2f < n", (clients - 1) // 2, least=1)
    else:
        check_bound(rule, f, clients, "f < n", clients - 1, least=1)


def _scoring(f: int, neighbors: str, clients: int) -> Scoring:
    if neighbors == "byzfl":
        return Scoring(clients - f - 1, mean=True)
    least = 0 if neighbors == "paper" else min(1, clients - 1)
    return Scoring(max(least, clients - f - 2), mean=False)


def _selected(geometry: Geometry, f: int, neighbors: str, count: int, weights: np.ndarray | None) -> Coefficients:
    """A coefficient of 1, or its weight, for each selected client; why the others do not count; what was selected."""
    n = geometry.clients
    selection = select(geometry, _scoring(f, neighbors, n), count)
    values = np.zeros(n + geometry.references)
    values[selection.rows] = 1.0 if weights is None else weights[selection.rows]
    last = max(selection.rows, key=lambda row: (selection.scores[row], row))
    reasons = {
        row: _not_selected(selection.scores[row], selection.scores[last], geometry.names[last])
        for row in range(n)
        if values[row] == 0
    }
    details = geometry.redo_report(selection.redone)
    return Coefficients(values, reasons, details, {"scores": selection.scores}, selection.rows)


def _not_selected(score: float, worst: float, last: str) -> str:
    # scores are as sharp as the selection needed, and no more digits are certain
    got, most = f"{score:.4g}", f"{worst:.4g}"
    if score <= worst:
        return f"not selected: score {got} ties with that of {last}, and ties go to the lowest row"
    if got == most:
        return f"not selected: score {got}, above that of all selected in digits that are not shown"
    return f"not selected: score {got}, the selected have at most {most}"


@dataclass(frozen=True)
class Krum(Rule):
    """The one row with the smallest score, as it is: argmin_i s(i), s(i) = Σ of ‖x_i − x_j‖² over its closest others j.

    f is how many clients may be Byzantine; f = 0 asks for the most central row. Conventions, by `neighbors`:

    | neighbors | closest others    | score | needs       |
    | "paper"   | n − f − 2         | sum   | 2f + 2 < n  |
    | "byzfl"   | n − f − 1         | mean  | 2f < n      |
    | "flower"  | max(1, n − f − 2) | sum   | f < n; nothing is guaranteed unless 2f + 2 < n |

    Weights are ignored: what a client says about itself does not move a robust rule. Exact ties go to the lowest row.
    The selection is certified: it is that of distances formed directly in fp64, whatever the backend. Pairs in doubt
    are formed again on the same backend, those of mixtures on NumPy; `redone_on` in the report says where.

    Breakdown point: f of n; needs 2f + 2 < n under the paper's bound. Cost: the Gram matrix, n²d/2 multiply-adds, one
    pass; n² log n in n-space, for a sort of each row's distances, which at thousands of clients of few columns is the
    larger part. Blanchard, El Mhamdi, Guerraoui and Stainer 2017, "Machine Learning with Adversaries: Byzantine
    Tolerant Gradient Descent", NeurIPS, section 4.
    """

    f: int
    neighbors: Neighbors = "paper"
    needs: ClassVar[frozenset[str]] = frozenset({"gram"})

    def __post_init__(self) -> None:
        keep(self, f=check_count("Krum", "f", self.f, 0))
        _check_neighbors("Krum", self.neighbors)

    def check(self, clients: int) -> None:
        """Raise RuleError, with the largest f for this n, if there are too few clients."""
        _check_cohort("Krum", self.f, self.neighbors, clients)

    def decide(self, geometry: Geometry, weights: np.ndarray | None) -> Coefficients:
        """1 for the selected client, 0 for all others; `weights` do not count."""
        self.check(geometry.clients)
        return _selected(geometry, self.f, self.neighbors, 1, None)


@dataclass(frozen=True)
class MultiKrum(Rule):
    """The mean of the m rows with the smallest Krum scores.

    m is n − f where it is not given, and at most that: the mean of more rows holds a Byzantine one. `weighted` asks for
    the mean weighted by the clients' weights, as Flower has it, and then a selected client moves the result by what it
    claims; without it, as in the paper and ByzFL, weights are ignored. They never move the selection. Flower's rule is
    MultiKrum(f, m, neighbors="flower", weighted=True), and ByzFL's MultiKrum(f, neighbors="byzfl"). The rest is as for
    `Krum`: the table of conventions, certified selection, ties to the lowest row.

    Breakdown point: f of n; needs 2f + 2 < n under the paper's bound. Cost: the Gram matrix and one pass over m rows.
    Blanchard et al. 2017, NeurIPS, section 4 and the experiments of section 6.
    """

    f: int
    m: int | None = None
    neighbors: Neighbors = "paper"
    weighted: bool = False
    needs: ClassVar[frozenset[str]] = frozenset({"gram"})

    def __post_init__(self) -> None:
        keep(self, f=check_count("MultiKrum", "f", self.f, 0))
        _check_neighbors("MultiKrum", self.neighbors)
        keep(self, weighted=check_bool("MultiKrum", "weighted", self.weighted))
        if self.m is not None:
            keep(self, m=check_count("MultiKrum", "m", self.m, 1))

    @property
    def uses_weights(self) -> bool:  # type: ignore[override]
        """Only where they were asked for."""
        return self.weighted

    def check(self, clients: int) -> None:
        """Raise RuleError if f is too large for this n, with the largest that fits, or m is above n − f."""
        _check_cohort("MultiKrum", self.f, self.neighbors, clients)
        if self.m is not None and self.m > clients - self.f:
            raise RuleError(
                f"MultiKrum: got m={self.m} with n={clients}, f={self.f}, expected at most n − f = {clients - self.f}"
            )

    def decide(self, geometry: Geometry, weights: np.ndarray | None) -> Coefficients:
        """1, or its weight where that was asked for, for each selected client, and 0 for all others."""
        self.check(geometry.clients)
        count = geometry.clients - self.f if self.m is None else self.m
        return _selected(geometry, self.f, self.neighbors, count, weights if self.weighted else None)
