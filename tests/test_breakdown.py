"""With f attackers of each kind the result stays within the rule's bound of the honest mean.

The bounds and their sources are in oracles/robustness.py; benchmarks/breakdown.py plots the same over f.
"""

from __future__ import annotations

import numpy as np
import pytest
from oracles.robustness import Bound, bounds

import fedcore as fc
from fedcore.attacks import ALIE, ATTACKS, IPM, Gaussian, Inf, Mimic, MinMax, MinSum, SignFlip
from fedcore.errors import NonFiniteError, RuleError
from fedcore.federation.rule_names import rule_classes

ATTACKERS = [
    *(SignFlip(scale) for scale in (1.0, 1e3, 1e6, 1e12, 1e30)),
    ALIE(),
    ALIE(z=-1.0),
    ALIE(z=4.0),
    IPM(0.1),
    IPM(10.0),
    Mimic(),
    Gaussian(sigma=0.5),
    Gaussian(sigma=200.0),
    *(attack(p) for attack in (MinMax, MinSum) for p in ("std", "unit", "sign")),
]
N, D = 17, 60
BOUNDS = bounds()


def alike(seed: int, n: int) -> np.ndarray:
    """Clients that differ by noise alone."""
    draw = np.random.default_rng(seed)
    return (draw.normal(0, 1, D) + draw.normal(0, 0.3, (n, D))).astype(np.float32)


def apart(seed: int, n: int) -> np.ndarray:
    """Clients of three kinds, and one far out: heterogeneous data."""
    draw = np.random.default_rng(seed)
    rows = draw.normal(0, 2, (3, D))[draw.integers(0, 3, n)] + draw.normal(0, 0.1, (n, D))
    rows[0] *= 4
    return rows.astype(np.float32)


def heavy(seed: int, n: int) -> np.ndarray:
    """Clients with tails: Student's t with two degrees of freedom."""
    return np.random.default_rng(seed).standard_t(2, (n, D)).astype(np.float32)


def cohort(honest: np.ndarray, attack, f: int, seed: int = 0) -> np.ndarray:
    """The attackers are spread over the cohort: ties go to the lowest row, which is neither side's by right."""
    rows = np.concatenate((honest, attack(honest, f, seed=seed)))
    return rows[np.random.default_rng(seed).permutation(len(rows))]


def can_attack(attack, f: int) -> bool:
    """Of one attacker among N the paper's z for ALIE is 0, which is refused."""
    return attack != ALIE() or f > 1


@pytest.mark.parametrize("bound", BOUNDS, ids=lambda b: b.name)
@pytest.mark.parametrize("attack", ATTACKERS, ids=repr)
def test_the_result_stays_within_the_bound(bound: Bound, attack):
    for f in sorted({1, 3, bound.largest(N)}):
        if not can_attack(attack, f):
            continue
        rule = bound.make(f)
        for made in (alike, apart, heavy):
            honest = made(f, N - f)
            excess = bound.excess(rule(cohort(honest, attack, f, f), server=honest[0]), honest, N)
            assert excess <= 1 + 1e-6, f"f={f}, {made.__name__}: {excess:.3g} times the bound ({bound.source})"


@pytest.mark.parametrize("bound", BOUNDS, ids=lambda b: b.name)
def test_each_rule_is_tried_with_as_many_attackers_as_it_takes(bound: Bound):
    largest = max(f for f in range((N + 1) // 2) if _takes(bound.make(f), N))
    assert bound.largest(N) == (5 if bound.name == "SpectralFilter" else largest)


def _takes(rule, n: int) -> bool:
    try:
        rule.check(n)
    except RuleError:
        return False
    return True


def test_every_robust_rule_is_tried():
    tried = {name for bound in BOUNDS for name in bound.name.removesuffix(" (paper)").split(", ")}
    assert tried | {"Mean", "NormClipping"} == {rule.__name__ for rule in rule_classes().values()}


@pytest.mark.parametrize("bound", BOUNDS, ids=lambda b: b.name)
def test_the_mean_breaks_every_bound_that_the_rules_keep(bound: Bound):
    """What the tests above would say of a rule that is not robust."""
    honest = alike(0, N - 3)
    for attack in (SignFlip(1000.0), IPM(1000.0)):
        assert bound.excess(fc.rules.Mean()(cohort(honest, attack, 3)), honest, N) > 2


@pytest.mark.parametrize("bound", BOUNDS, ids=lambda b: b.name)
def test_infinity_is_refused_by_row_and_never_averaged(bound: Bound):
    honest = alike(0, 14)
    rows = np.concatenate((honest, Inf()(honest, 3)))
    with pytest.raises(NonFiniteError) as caught:
        bound.make(3)(rows, server=honest[0])
    assert caught.value.row in (14, 15, 16)


def test_an_infinite_client_is_left_out_and_the_bound_holds_for_the_rest():
    honest = alike(0, 14)
    rows = np.concatenate((honest, Inf()(honest, 1), SignFlip(50.0)(honest, 2)))
    updates = [fc.Update.from_tensors({"w": row}, client_id=f"c{i:02d}") for i, row in enumerate(rows)]
    bound = next(b for b in BOUNDS if b.name == "Krum")
    result = fc.aggregate(updates, bound.make(3), "parameters", on_nonfinite="exclude")
    assert list(result.excluded) == ["c14"]
    assert bound.excess(result.update.tensors["w"], honest, N) <= 1


def test_every_attack_of_the_library_is_tried():
    assert {type(attack) for attack in ATTACKERS} | {Inf} == set(ATTACKS.values())
