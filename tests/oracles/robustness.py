"""What is published on how far attackers move a rule: for f of n, against the mean of the honest rows.

Two measures of the honest rows S, |S| = n − f, with mean x̄:
  "variance"  ‖R − x̄‖² ≤ κ · V with V = (1/|S|) Σ_S ‖x_i − x̄‖²: (f, κ)-robustness, Allouah, Farhadkhani, Guerraoui,
              Gupta, Pinot and Stephan 2023, "Fixing by Mixing: A Recipe for Optimal Byzantine ML under Heterogeneity",
              AISTATS, definition 2, table 1 and lemma 1 (NNM)
  "diameter"  ‖R − x̄‖ ≤ λ · max_S ‖x_i − x_j‖: (f, λ)-resilience, Farhadkhani, Guerraoui, Gupta, Pinot and Stephan
              2022, "Byzantine Machine Learning Made Easy by Resilient Averaging of Momentums", ICML, table 1
They hold for every S and whatever the others send. They are bounds of a rule that aggregates at its f.

Where nothing of that form is published a bound is derived here, in the docstring that gives it, from what the paper
says of the rule. Two more measures serve those:
  "covariance"  ‖R − x̄‖² ≤ κ · the first eigenvalue of the covariance of S
  "distance"    ‖R − x̄‖ ≤ a length that follows from the honest rows
  "votes"       a coordinate is turned only where the honest rows' lead of votes is at most f
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


def krum_paper(n: int, f: int, d: int) -> float:
    """4 (n − f)(n − f − 2) / ((n − f − 1) h) + 2 (f + 2)/h with h = n − 2f − 2: Krum of the n − f − 2 nearest others.

    The proof of the table's: the least score is at most the honest ones' mean, which is 2 (n − f) V without the
    farthest of n − f − 1 others; at least h of the chosen row's neighbours are honest, and their mean lies within
    (f + 2)/h · V of x̄.
    """
    h = n - 2 * f - 2
    return 4 * (n - f) * (n - f - 2) / ((n - f - 1) * h) + 2 * (f + 2) / h


def bulyan(n: int, f: int, d: int) -> float:
    """8 (n − f).

    The median of the chosen rows lies between honest values, and at least as many honest rows are chosen as values are
    averaged, so each of those lies within the honest range of the median: |R − x̄| ≤ 2 · range in each coordinate, and
    the squared ranges add up to at most 2 (n − f) V.
    """
    return 8.0 * (n - f)


def bucketed(of: Callable[[int, int, int], float], s: int) -> Callable[[int, int, int], float]:
    """(n − f)/h · (√κ + 1)² with h = ⌈n/s⌉ − f and κ that of the rule at f of ⌈n/s⌉.

    Buckets without a Byzantine row: Σ ‖y_b − x̄‖² ≤ Σ_S ‖x_i − x̄‖² over h of them bounds their variance and how far
    their mean is from x̄.
    """

    def limit(n: int, f: int, d: int) -> float:
        rows = -(-n // s)
        return (n - f) / (rows - f) * (np.sqrt(of(rows, f, d)) + 1) ** 2

    return limit


def spectral(n: int, f: int, d: int) -> float:
    """(√(f/w · 2(n − f)/(n − 2f)) + √(2f/w))² with w = n − 3f.

    As long as Byzantine rows hold half of Σ c_i τ_i they lose at least as much weight as honest ones. At the first step
    where they do not, λ Σ c_i ≤ 2 Σ_S c_i τ_i, so λ ≤ 2(n − f)/(n − 2f) λ_S, and the best λ is at most that. Its honest
    weight is at least w, Byzantine weight at most f, and both means lie in proportion to √λ and √λ_S of x̄.
    """
    w = n - 3 * f
    return (np.sqrt(f / w * 2 * (n - f) / (n - 2 * f)) + np.sqrt(2 * f / w)) ** 2


RADIUS = 5.0


def one_clipped_step(honest: np.ndarray, n: int) -> float:
    """One step of centred clipping from zero: (f ‖x̄‖ + Σ_S max(0, ‖x_i‖ − τ) + fτ)/n, by the triangle inequality."""
    f, beyond = n - len(honest), np.maximum(np.linalg.norm(honest, axis=1) - RADIUS, 0)
    return float(f * np.linalg.norm(honest.mean(0)) + beyond.sum() + f * RADIUS) / n


def near_the_server(honest: np.ndarray, n: int) -> float:
    """3 ‖g_0 − x̄‖ + 2 ‖x̄‖, with honest row 0 as the server's."""
    mean = honest.mean(0)
    return float(3 * np.linalg.norm(honest[0] - mean) + 2 * np.linalg.norm(mean))


@dataclass(frozen=True)
class Bound:
    """A rule and what is known of it: `make(f)` the rule, `limit(n, f, d)` its κ or λ, `largest(n)` the f it is for.

    Where `measure` is "distance" the limit is of (honest rows, n). The server's row, for rules that use one, is honest
    row 0.
    """

    name: str
    make: Callable[[int], Any]
    measure: str
    limit: Callable[..., float]
    source: str
    largest: Callable[[int], int] = lambda n: (n - 1) // 2

    def excess(self, result: np.ndarray, honest: np.ndarray, n: int) -> float:
        """How much of the bound the result takes: error / bound, at most 1 where the bound holds."""
        x = np.asarray(honest, np.float64)
        f = n - len(x)
        if self.measure == "votes":
            votes = np.sign(x).sum(0)
            return float(np.abs(np.where(np.sign(result) != np.sign(votes), votes, 0)).max() / f)
        error = float(np.sum((np.asarray(result, np.float64) - x.mean(0)) ** 2))
        if self.measure == "distance":
            return float(np.sqrt(error)) / self.limit(x, n)
        limit = self.limit(n, f, x.shape[1])
        if self.measure == "covariance":
            return error / (limit * float(np.linalg.norm(x - x.mean(0), 2) ** 2 / len(x)))
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
HERE = "derived in tests/oracles/robustness.py from the definition in "
TRUST = "Cao et al. 2021, FLTrust, NDSS, lemma 1"
#: of the n − f nearest rows at most f are not honest, and each lies no farther from the trusted row than an honest one
#: that it displaced: λ = 2f/(n − f), as for MDA
NEAREST = HERE + "Farhadkhani et al. 2023, ICML, section 3"
#: a lead above f cannot be turned by f votes
VOTES = HERE + "Bernstein et al. 2019, ICLR, Algorithm 1"


def third(n: int) -> int:
    return (n - 1) // 3


def quarter(n: int) -> int:
    return (n - 3) // 4


_KNOWN = [
    ("Krum", lambda r, f: r.Krum(f, neighbors="byzfl"), "variance", krum, TABLE),
    ("MultiKrum", lambda r, f: r.MultiKrum(f, neighbors="byzfl"), "variance", krum, KRUM_MEAN),
    ("Krum (paper)", lambda r, f: r.Krum(f), "variance", krum_paper, HERE + "Blanchard et al. 2017",
     lambda n: (n - 3) // 2),
    ("MultiKrum (paper)", lambda r, f: r.MultiKrum(f), "variance", krum_paper, HERE + "Blanchard et al. 2017",
     lambda n: (n - 3) // 2),
    ("Bulyan", lambda r, f: r.Bulyan(f), "variance", bulyan, HERE + "El Mhamdi et al. 2018", quarter),
    ("SpectralFilter", lambda r, f: r.SpectralFilter(f), "covariance", spectral, HERE + "Allouah et al. 2025", third),
    ("CenteredClipping", lambda r, f: r.CenteredClipping(RADIUS), "distance", one_clipped_step,
     HERE + "Karimireddy et al. 2021"),
    ("MoNNA", lambda r, f: r.MoNNA(f), "diameter", diameter, NEAREST),
    ("FLTrust", lambda r, f: r.FLTrust(), "distance", near_the_server, TRUST),
    ("SignMajority", lambda r, f: r.SignMajority(1.0), "votes", lambda n, f, d: float(f), VOTES),
    ("Bucketing, Krum", lambda r, f: r.Bucketing(2, 0).then(r.Krum(f, neighbors="byzfl")), "variance",
     bucketed(krum, 2), HERE + "Karimireddy et al. 2022", lambda n: (-(-n // 2) - 1) // 2),
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
    """Every rule of the library that bounds what f attackers do."""
    return [Bound(name, lambda f, make=make: make(fc.rules, f), *known) for name, make, *known in _KNOWN]
