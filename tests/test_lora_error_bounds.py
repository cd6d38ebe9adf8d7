"""What delta space says of its own rounding holds: against exact products of the factors that were sent."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from fedcore import Update, aggregate
from fedcore.lora import FactorPasses
from fedcore.rules import Krum
from tests.delta_cohorts import mixed_cohort

#: a module's sides
D = 16
#: an array of floats as exact numbers
fractions = np.vectorize(Fraction, otypes=[object])


def one_module(client: str, b: np.ndarray, a: np.ndarray) -> Update:
    tensors = {"m.lora_A.weight": np.float32(a), "m.lora_B.weight": np.float32(b)}
    return Update.from_tensors(tensors, client_id=client, scaling={"m": 1.0})


def exact_rows(updates: list[Update]) -> np.ndarray:
    """(n, columns) of Fractions: s · B · A of all modules."""
    rows = []
    for update in updates:
        parts = []
        for pair in update.modules.values():
            b, a = (fractions(update.tensors[name].astype(np.float64)) for name in (pair.b, pair.a))
            parts.append((Fraction(pair.scale) * b @ a).ravel())
        rows.append(np.concatenate(parts))
    return np.stack(rows)


def passes_over(updates: list[Update], clients: int) -> FactorPasses:
    return FactorPasses(updates, [update.client_id for update in updates], clients)


@pytest.mark.parametrize("seed", range(3))
def test_distances_of_a_gram_of_factors_are_within_their_bound(seed):
    updates = mixed_cohort(seed, head=False)
    matrix, error = passes_over(updates, len(updates)).gram()
    rows, most = exact_rows(updates), Fraction(0)
    for i in range(len(updates)):
        for j in range(i):
            found = Fraction(matrix[i, i]) + Fraction(matrix[j, j]) - 2 * Fraction(matrix[i, j])
            true = sum((rows[i] - rows[j]) ** 2)
            most = max(most, abs(found - true))
            assert abs(found - true) <= error[i] + error[j] < 1e-11 * true
    assert most > 0


@pytest.mark.parametrize("exponent", [0, 12, 24])
def test_distances_of_rebuilt_factors_are_within_a_bound_that_grows_with_them(exponent):
    """Against exact products of what each was rebuilt to, which is its update from then on."""
    rng = np.random.default_rng(exponent)
    updates = []
    for i in range(4):
        b, a, p, q = (rng.standard_normal(shape) for shape in ((D, 3), (3, D), (D, 1), (1, D)))
        p = 64 * p.astype(np.float32)
        updates.append(one_module(f"row {i}", 2.0**exponent * np.hstack((b, p, -p)), np.vstack((a, q, q))))
    passes = passes_over(updates, 4)
    assert passes.sizes.rebuilt.all()
    matrix, error = passes.gram()
    _, (left, right, _) = next(passes.as_sent("gram"))
    rows = [fractions(b) @ fractions(a) for b, a in zip(left, right, strict=True)]
    for i in range(4):
        for j in range(i):
            found = Fraction(matrix[i, i]) + Fraction(matrix[j, j]) - 2 * Fraction(matrix[i, j])
            true = ((rows[i] - rows[j]) ** 2).sum()
            assert 0 < abs(found - true) <= error[i] + error[j] < 1e-11 * true


@pytest.mark.parametrize(("step", "redone"), [(1, True), (8, False)])
def test_a_score_that_is_less_by_no_more_than_the_grams_bound_is_redone(step, redone):
    """Each has a column and a row of its own, and a product of p² there but for client 2: (p − c)(p + c) = p² − c²."""
    p = 2**24 - 8
    clients = []
    for i in range(6):
        c = step if i == 2 else 0
        clients.append(one_module(f"c{i}", np.eye(D)[:, [i]] * (p - c), np.eye(D)[[i]] * (p + c)))
    report = aggregate(clients, Krum(1)).report
    assert (report["redone_pairs"] > 0) == redone
    assert redone or report["selected"] == ["c2"]


@pytest.mark.parametrize("exponent", [8, 11])
@pytest.mark.parametrize("hides", ["the reference", "clients"])
def test_norms_of_changes_count_what_rebuilt_factors_round(hides, exponent):
    """They hide a product beside (M p)(M q) − (M p)(M q), which is 0; the others are no larger than what they say."""
    rng = np.random.default_rng(exponent)

    def whole(*shape: int) -> np.ndarray:
        return rng.integers(-8, 9, shape).astype(np.float64)

    def hidden(b: np.ndarray, a: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        p, q = whole(D, 1) * 2.0**exponent, whole(1, D) * 2.0**exponent
        return np.hstack((b, p, -p)), np.vstack((a, q, q))

    b, a = whole(D, 3), whole(3, D)
    factors = [(b + 0.01 * rng.standard_normal(b.shape), a) for _ in range(4)]
    if hides == "clients":
        factors = [hidden(*pair) for pair in factors]
    reference = hidden(b, a) if hides == "the reference" else (b, a)
    updates = [one_module(f"row {i}", *pair) for i, pair in enumerate([*factors, reference])]
    value, error = passes_over(updates, 4).squared_norms()
    rows = exact_rows(updates)
    off = [abs(Fraction(found) - sum((row - rows[-1]) ** 2)) for found, row in zip(value, rows, strict=False)]
    assert all(0 < one <= bound for one, bound in zip(off, error, strict=True))
    assert (error < 1e-3 * value).all()
