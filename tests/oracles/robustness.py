"""What is published on how far attackers move a rule: for f of n, against the mean of the honest rows.

Two measures of the honest rows S, |S| = n − f, with mean x̄:
  "variance"  ‖R − x̄‖² ≤ κ · V with V = (1/|S|) Σ_S ‖x_i − x̄‖²: (f, κ)-robustness, Allouah, Farhadkhani, Guerraoui,
              Gupta, Pinot and Stephan 2023, "Fixing by Mixing: A Recipe for Optimal Byzantine ML under Heterogeneity",
              AISTATS, definition 2, table 1 and lemma 1 (NNM)
  "diameter"  ‖R − x̄‖ ≤ λ · max_S ‖x_i − x_j‖: (f, λ)-resilience, Farhadkhani, Guerraoui, Gupta, Pinot and Stephan
              2022, "Byzantine Machine Learning Made Easy by Resilient Averaging of Momentums", ICML, table 1
They hold for every S and whatever the others send. They are bounds of a rule that aggregates at its f; Krum's is of the
convention with the n − f − 1 nearest others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

import fedcore as fc


def krum(n: int, f: int, d: int) -> float:
    """6 (1 + f/(n − 2f))."""
    return 6 * (1 + f / (n - 2 * f))


def median(n: int, f: int, d: int) -> float:
    """4 (1 + f/(n − 2f))², of the geometric median and of the coordinate-wise one."""
    return 4 * (1 + f / (n - 2 * f)) ** 2


def trimmed_mean(n: int, f: int, d: int) -> float:
    """6f/(n − 2f) · (1 + f/(n − 2f))."""
    return 6 * f / (n - 2 * f) * (1 + f / (n - 2 * f))


def mixed(of: Callable[[int, int, int], float]) -> Callable[[int, int, int], float]:
    """8f/(n − f) · (κ + 1): what nearest-neighbour mixing makes of a rule's κ."""
    return lambda n, f, d: 8 * f / (n - f) * (of(n, f, d) + 1)


def clipped(of: Callable[[int, int, int], float]) -> Callable[[int, int, int], float]:
    """κ + 2f/(n − 2f): what adaptive clipping leaves of a rule's κ."""
    return lambda n, f, d: of(n, f, d) + 2 * f / (n - 2 * f)


def diameter(n: int, f: int, d: int) -> float:
    """λ = 2f/(n − f)."""
    return 2 * f / (n - f)


def coordinates(n: int, f: int, d: int) -> float:
    """λ = 2f/(n − f) · min(√d, 2 √(n − f)), of a rule that goes coordinate by coordinate."""
    return diameter(n, f, d) * min(np.sqrt(d), 2 * np.sqrt(n - f))


@dataclass(frozen=True)
class Bound:
    """A rule and what is known of it: `make(f)` the rule, `limit(n, f, d)` its κ or λ, `largest(n)` the f it takes."""

    name: str
    make: Callable[[int], Any]
    measure: str
    limit: Callable[[int, int, int], float]
    source: str

    def excess(self, result: np.ndarray, honest: np.ndarray, n: int) -> float:
        """How much of the bound the result takes: error / bound, at most 1 where the bound holds."""
        x = np.asarray(honest, np.float64)
        error = float(np.sum((np.asarray(result, np.float64) - x.mean(0)) ** 2))
        limit = self.limit(n, n - len(x), x.shape[1])
        if self.measure == "variance":
            return error / (limit * float(np.mean(np.sum((x - x.mean(0)) ** 2, axis=1))))
        return float(np.sqrt(error) / limit) / (max(float(np.linalg.norm(x - row, axis=1).max()) for row in x))


TABLE = "Allouah et al. 2023, table 1"
MIXED = "Allouah et al. 2023, table 1 and lemma 1"
ARC = "Allouah et al. 2025, Adaptive Gradient Clipping for Robust Federated Learning, ICLR, theorem 3.2"
RESILIENT = "Farhadkhani et al. 2022, table 1"
#: the mean of the m rows of the least scores s_k: Σ s_k ≤ (m/(n − f)) Σ_S s_i ≤ 2m(n − f)V, and at least n − 2f of a
#: row's neighbours are honest, so the mean of ‖x_k − x̄‖² is at most 4(1 + f/(n − 2f))V + 2f/(n − 2f)V
KRUM_MEAN = "as Krum, never worse: Bareilles et al. 2026, arXiv:2602.03899"

_KNOWN = [
    ("Krum", lambda r, f: r.Krum(f, neighbors="byzfl"), "variance", krum, TABLE),
    ("MultiKrum", lambda r, f: r.MultiKrum(f, neighbors="byzfl"), "variance", krum, KRUM_MEAN),
    ("GeometricMedian", lambda r, f: r.GeometricMedian(), "variance", median, TABLE),
    ("Median", lambda r, f: r.Median(), "variance", median, TABLE),
    ("TrimmedMean", lambda r, f: r.TrimmedMean(f), "variance", trimmed_mean, TABLE),
    ("MeanAroundMedian", lambda r, f: r.MeanAroundMedian(f), "diameter", coordinates, RESILIENT),
    ("MinimumDiameterAveraging", lambda r, f: r.MinimumDiameterAveraging(f), "diameter", diameter, RESILIENT),
    ("ARC, Krum", lambda r, f: r.ARC(f).then(r.Krum(f, neighbors="byzfl")), "variance", clipped(krum), ARC),
    ("ARC, Median", lambda r, f: r.ARC(f).then(r.Median()), "variance", clipped(median), ARC),
    *[
        (f"NearestNeighborMixing, {name}", lambda r, f, after=after: r.NearestNeighborMixing(f).then(after(r, f)),
         "variance", mixed(limit), MIXED)
        for name, after, limit in [
            ("Krum", lambda r, f: r.Krum(f, neighbors="byzfl"), krum),
            ("GeometricMedian", lambda r, f: r.GeometricMedian(), median),
            ("Median", lambda r, f: r.Median(), median),
            ("TrimmedMean", lambda r, f: r.TrimmedMean(f), trimmed_mean),
        ]
    ],
]  # fmt: skip


def bounds() -> list[Bound]:
    """Every rule of the library that has a published bound."""
    found = []
    for name, make, measure, limit, source in _KNOWN:
        if all(hasattr(fc.rules, part) for part in name.split(", ")):
            found.append(Bound(name, lambda f, make=make: make(fc.rules, f), measure, limit, source))
    return found
