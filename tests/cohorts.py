"""Cohorts that tests of rules share: ties and duplicates, values from subnormal to huge, and decisions made of them."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from fedcore import ops
from fedcore.rules.geometry import Geometry
from fedcore.rules.rows import RowExecutor
from fedcore.rules.statistics import Gram, Statistics


@st.composite
def cohorts(draw, least: int = 3, most: int = 9):
    """(n, d) fp32 small integers times a scale, so that ties, duplicates and both zeros are common."""
    n, d = draw(st.integers(least, most)), draw(st.integers(1, 12))
    values = draw(st.lists(st.integers(-3, 3), min_size=n * d, max_size=n * d))
    rows = np.array(values, np.float32).reshape(n, d)
    for i in range(draw(st.integers(0, 3))):
        rows[draw(st.integers(0, n - 1))] = rows[i % n]
    if draw(st.booleans()):
        rows[draw(st.integers(0, n - 1))] += np.float32(draw(st.sampled_from([50, 1e6])))
    rows[draw(st.integers(0, n - 1))][rows[0] == 0] = -0.0
    return rows * np.float32(draw(st.sampled_from([1.0, 1e-3, 1e20, 1e30, 2.0**-148])))


class WrongWithinBound(RowExecutor):
    """Distances from the Gram that are off by as much as is documented, in a direction of its own choice."""

    def gram(self, origin: int | None = None) -> Gram:
        gram = super().gram(origin)
        square = gram.matrix.diagonal()
        sign = np.random.default_rng(0).choice([-1.0, 1.0], gram.matrix.shape)
        error = np.triu(sign * ops.gram_epsilon() / 4 * (square[:, None] + square[None, :]), 1) * 0.99
        return gram.__class__(gram.matrix + error + error.T, gram.error, gram.offset, gram.rounding)


def executor_of(rows: Any, kind: type[RowExecutor] = RowExecutor) -> RowExecutor:
    """Of plain rows, without references, by one thread."""
    return kind.from_rows(rows, references={}, backend=None, threads=1)


def decided(
    rule: Any, rows: Any, *, kind: type[RowExecutor] = RowExecutor, backend: str | None = None, **references: Any
) -> Any:
    """What a rule decides on plain rows."""
    found = {name: references.get(name) for name in rule.uses}
    executor = kind.from_rows(rows, references=found, backend=backend, threads=1)
    return rule.decide(Geometry(Statistics(executor)), None)


def check_reasons(decision: Any, clients: int) -> None:
    """A client has a reason exactly where it does not count."""
    assert set(decision.reasons) == set(range(clients)) - set(decision.selected)
    assert all(decision.reasons.values())
