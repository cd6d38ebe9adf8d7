"""How much of a round's target T clients no longer hold: ‖T − held‖ / ‖T‖ of factors, without forming either.

All norms of one module come from one Gram of its stacked factors, ‖Σ v_k Δ_k‖² = Σ v_k v_l ⟨Δ_k, Δ_l⟩ in fp64, off by
`gram_rounding` P² at most (fedcore/lora/measure.py). A residual whose square is not SURE times that is estimated from
PROBES random vectors x, E ‖(T − held) x‖² = ‖T − held‖² (Hutchinson's estimator, off by a few percent for the rounding
of factors, which has no direction). Where terms are so large that their Gram could be off by more than TOLERANCE ‖T‖²,
QR decides.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fedcore.lora.cohort import Part
from fedcore.lora.measure import TOLERANCE, gram_rounding, product_norm
from fedcore.lora.module import Held, Module, Terms

#: how many times its rounding the square of a residual must be, and from how many vectors a smaller one is estimated
SURE, PROBES = 4.0, 16


def module_report(module: Module, found: Held) -> dict[str, Any]:
    """What became of a module, as `Aggregated.report` has it."""
    target = module.target_terms()
    held = module.starts(found.adapter, found.own)
    beside: Terms = [] if found.side is None else [(1.0, found.side)]
    norms = _Norms([part for _, part in (*target, *held, *beside)], module)
    norm = norms.of(target)

    def residual(terms: Terms) -> float:
        """‖target − terms‖ over ‖target‖; of a target of 0, whether anything is left: 1.0 or 0.0."""
        missed = norms.of([*target, *((-c, part) for c, part in terms)], norm or None)
        return missed / norm if norm else float(missed > 0)

    report: dict[str, Any] = {"rank": found.adapter.rank, "norm": norm, "held": norms.of([*held, *beside])}
    report["residual"] = residual([*held, *beside])
    report["without_side"] = residual(held) if beside else report["residual"]
    report["side_rank"] = 0 if found.side is None else found.side.rank
    if found.own:
        clients = module.clients.cohort.client_ids
        each = {id(part): residual([(1.0, part), *beside]) for _, part in held}
        report["starts"] = {name: each[id(found.own.get(row, found.adapter))] for row, name in enumerate(clients)}
    return report | dict(found.details)


class _Norms:
    """Norms of sums of some parts of one module."""

    def __init__(self, parts: list[Part], module: Module):
        self.module = module
        self.index: dict[int, int] = {}
        distinct: list[Part] = []
        for part in parts:
            if id(part) not in self.index:
                self.index[id(part)] = len(distinct)
                distinct.append(part)
        b, a = np.hstack([part.scale * part.b for part in distinct]), np.vstack([part.a for part in distinct])
        starts = np.cumsum([0, *(part.rank for part in distinct[:-1])])
        gram_b, gram_a = b.T @ b, a @ a.T
        self.inner = np.add.reduceat(np.add.reduceat(gram_b * gram_a, starts, 0), starts, 1)
        self.sizes = np.add.reduceat(np.sqrt(gram_b.diagonal() * gram_a.diagonal()), starts)
        self.rounding = gram_rounding(b, a)

    def of(self, terms: Terms, beside: float | None = None) -> float:
        """‖Σ c · scale · b · a‖, 0 below its rounding; `beside` is the norm to compare it with, by default itself."""
        v = np.zeros(len(self.sizes))
        for c, part in terms:
            v[self.index[id(part)]] += c
        square = float(v @ self.inner @ v)
        error = self.rounding * float(np.abs(v) @ self.sizes) ** 2
        if not error <= TOLERANCE * (square if beside is None else beside**2):
            norm, bound = product_norm(*self.module.stack(terms))
            return norm if norm > bound else 0.0
        if beside is not None and square < SURE * error:
            b, a = self.module.stack(terms)
            vectors = np.random.default_rng(0).standard_normal((a.shape[1], PROBES))
            square = float(np.square(b @ (a @ vectors)).sum()) / PROBES
        return float(np.sqrt(square))
