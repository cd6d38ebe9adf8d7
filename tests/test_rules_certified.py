"""Near-ties, as close as fp32 gets, with an attacker far away, are decided as in fp64 on every backend.

Each rule that selects gets cohorts in which its decision hangs on one bit of one row: the path from a cohort to one
with another decision is bisected until two neighbouring fp32 steps decide differently in the oracle.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fedcore import backends
from fedcore.rules import Bucketing, Bulyan, Krum, MinimumDiameterAveraging, MoNNA, MultiKrum
from fedcore.rules import NearestNeighborMixing as NNM
from fedcore.rules.geometry import Geometry
from fedcore.rules.statistics import Statistics
from tests.cohorts import WrongWithinBound
from tests.oracles import rules as oracle
from tests.oracles import selecting

N, D, SEEDS = 11, 48, 50
#: what a rule is, what its selection is in fp64, and what it is as decided; where f rows drop out, one more than there
#: are attackers, so that honest rows compete
RULES: dict[str, tuple[Any, Callable[[np.ndarray], Any], Callable[[Any], Any]]] = {
    "Krum": (Krum(2), lambda rows: oracle.multi_krum_rows(rows, 2, 1), lambda found: found.selected),
    "Krum byzfl": (
        Krum(2, "byzfl"),
        lambda rows: oracle.multi_krum_rows(rows, 2, 1, "byzfl"),
        lambda found: found.selected,
    ),
    "MultiKrum": (MultiKrum(2, 4), lambda rows: oracle.multi_krum_rows(rows, 2, 4), lambda found: found.selected),
    "Bulyan": (Bulyan(2), lambda rows: sorted(selecting.bulyan_rows(rows, 2)), lambda found: found.selected),
    "NearestNeighborMixing": (
        NNM(3),
        lambda rows: selecting.neighborhoods(rows, 3),
        lambda found: [np.flatnonzero(row).tolist() for row in found.matrix],
    ),
    "MinimumDiameterAveraging": (
        MinimumDiameterAveraging(3),
        lambda rows: selecting.least_diameter_rows(rows, 3),
        lambda found: found.selected,
    ),
    "MoNNA": (MoNNA(3), lambda rows: selecting.nearest_rows(rows, rows[0], 3), lambda found: found.selected),
    "NearestNeighborMixing then Krum": (
        NNM(3).then(Krum(3)),
        lambda rows: oracle.multi_krum_rows(selecting.mixed(rows, 3), 3, 1),
        lambda found: found.details["mixed_rows"]["selected"],
    ),
    "NearestNeighborMixing then MoNNA": (
        NNM(3).then(MoNNA(3, 0)),
        lambda rows: selecting.nearest_rows(selecting.mixed(rows, 3), selecting.mixed(rows, 3)[0], 3),
        lambda found: found.details["mixed_rows"]["selected"],
    ),
    "Bucketing then MultiKrum": (
        Bucketing(2, seed=1).then(MultiKrum(1, 2)),
        lambda rows: oracle.multi_krum_rows(selecting.bucketed(rows, Bucketing(2, seed=1).order(N), 2), 1, 2),
        lambda found: found.details["mixed_rows"]["selected"],
    ),
    "MoNNA pivot": (MoNNA(3, 0), lambda rows: selecting.nearest_rows(rows, rows[0], 3), lambda found: found.selected),
}


def cohort(seed: int) -> np.ndarray:
    """Rows close together beside what they have in common, one attacker at +50 and one at 1e6."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal(D) + 1e-2 * rng.standard_normal((N, D))
    rows[N - 1] += 50
    rows[N - 2] += 1e6
    return rows.astype(np.float32)


def near_tie(seed: int, select: Callable[[np.ndarray], Any]) -> list[np.ndarray]:
    """Two cohorts that differ by the last bits of one row and that the oracle decides differently."""
    rows, rng = cohort(seed), np.random.default_rng(seed + 1000)
    for _ in range(100):
        row = int(rng.integers(N - 2))
        towards = rows[row] + (rng.standard_normal(D) * 0.02).astype(np.float32)

        def moved(t: np.float32, row: int = row, towards: np.ndarray = towards) -> np.ndarray:
            result = rows.copy()
            result[row] = rows[row] + t * (towards - rows[row])
            return result

        low, high = np.float32(0), np.float32(1)
        start = select(moved(low))
        if select(moved(high)) != start:
            break
    else:
        raise AssertionError("no path with another decision at its end was found")
    while (middle := np.float32((low + high) / 2)) not in (low, high):
        low, high = (middle, high) if select(moved(middle)) == start else (low, middle)
    return [moved(low), moved(high)]


@pytest.fixture(scope="module")
def near_ties() -> dict[str, list[tuple[np.ndarray, Any]]]:
    """name -> 100 cohorts and what the oracle decides."""
    found = {}
    for name, (_, select, _) in RULES.items():
        pairs = [rows for seed in range(SEEDS) for rows in near_tie(seed, select)]
        found[name] = [(rows, select(rows)) for rows in pairs]
    return found


def backends_to_force() -> list[Any]:
    """Each with every how manyth tie it decides: an interpreted kernel takes a second where a compiled one takes a
    millisecond, so of Triton's ties the default run has a few and the slow proofs have all."""
    implementations = ["reference"]
    if not backends.unavailable("c"):
        from fedcore.native import isa_available

        implementations += [f"c-{isa}" for isa in isa_available()]
    forced: list[Any] = [(name, 1) for name in implementations]
    if backends.unavailable("triton"):
        return forced
    return [*forced, ("triton", 25), pytest.param(("triton", 1), marks=pytest.mark.slow)]


def decide(rule: Any, rows: np.ndarray, backend: str) -> tuple[Any, int]:
    """(decision, pairs redone) from distances that are as wrong as their bounds allow."""
    given: Any = rows
    if backend == "triton":
        import torch

        given = torch.from_numpy(rows)
    references = {"server": given[0]} if rule.uses else {}
    executor = WrongWithinBound.from_rows(given, references=references, backend=backend, threads=1)
    statistics = Statistics(executor)
    act = rule.mixing if isinstance(rule, NNM) else rule.decide
    return act(Geometry(statistics), None), statistics.redone


@pytest.mark.parametrize("forced", backends_to_force(), ids=lambda forced: f"{forced[0]}-{forced[1]}")
@pytest.mark.parametrize("name", RULES)
def test_near_ties_are_decided_as_in_fp64(name, forced, near_ties, monkeypatch):
    backend, every = forced
    if backend.startswith("c-"):
        monkeypatch.setenv("FEDCORE_ISA", backend.removeprefix("c-"))
    rule, _, outcome = RULES[name]
    agreed = doubted = 0
    ties = near_ties[name][::every]
    for rows, expected in ties:
        decision, redone = decide(rule, rows, backend.partition("-")[0])
        agreed += outcome(decision) == expected
        doubted += redone > 0
    assert agreed == len(ties) == 2 * SEEDS // every
    assert doubted > 0.8 * len(ties) - 1, "the ties are not near enough to be in doubt"
