"""Krum on distances that fp32 cannot tell."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

import fedcore as fc
from failures.finding import Finding, krum_choice, oracle_choice, squared, worst_error


def weights_rows(seed: int, spread: float, n: int = 12, d: int = 100_000, away: float = 0.0, f: int = 0) -> np.ndarray:
    """Full weights of standard deviation 0.02, clients differ by `spread`; the last f are `away` times farther out."""
    draw = np.random.default_rng(seed)
    base = draw.normal(0, 0.02, d)
    changes = draw.normal(0, spread, (n, d))
    changes[n - f :] *= away
    return (base + changes).astype(np.float32)


def uncentred(rows: np.ndarray) -> np.ndarray:
    """‖x‖² + ‖y‖² − 2⟨x, y⟩ in the wire's dtype."""
    norms = np.square(rows).sum(axis=1)
    return norms[:, None] + norms[None, :] - 2 * rows @ rows.T


CLOSE = weights_rows(0, 1e-5)


def distances_there(found: Callable[[np.ndarray], np.ndarray] = uncentred) -> Finding:
    error = worst_error(found(CLOSE), squared(CLOSE))
    return f"relative error {error:.2g}", error > 1e-2


def distances_here() -> Finding:
    gram = fc.ops.gram(CLOSE, center=CLOSE[0])
    square = gram.diagonal()
    error = worst_error(square[:, None] + square - 2 * gram, squared(CLOSE))
    return f"relative error {error:.2g}", error > 1e-5


DRAWS = [weights_rows(seed, 1e-4) for seed in range(10)]


def selections(choose: Callable[[np.ndarray, int], int]) -> Finding:
    """In how many draws Krum with f = 2 selects another client than in fp64."""
    other = sum(choose(rows, 2) != oracle_choice(rows, 2) for rows in DRAWS)
    return f"{other} of {len(DRAWS)} selections differ from fp64", other > 0


def krum_of(distances: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray, int], int]:
    return lambda rows, f: krum_choice(distances(rows), f)


def krum_here(rows: np.ndarray, f: int) -> int:
    chosen = fc.rules.Krum(f)(rows)
    return int(np.flatnonzero((rows == chosen).all(axis=1))[0])


#: malicious clients lie half as far out again as honest ones, all of them closer than fp32 norms resolve
MALICIOUS = [weights_rows(seed, 1e-6, away=1.5, f=2) for seed in range(20)]


def malicious(choose: Callable[[np.ndarray, int], int]) -> Finding:
    taken = sum(choose(rows, 2) >= len(rows) - 2 for rows in MALICIOUS)
    return f"a malicious client selected in {taken} of {len(MALICIOUS)} draws", taken > 0


def not_first(found: Callable[[np.ndarray], np.ndarray] = uncentred) -> Finding:
    """How many clients are not the nearest to themselves, so that dropping the nearest drops another."""
    rows = np.concatenate(MALICIOUS)
    count = sum(
        int((found(rows[k : k + 12]).argsort(axis=1)[:, 0] != np.arange(12)).sum()) for k in range(0, len(rows), 12)
    )
    return f"{count} of {len(rows)} clients are not their own nearest", count > 0


def self_here() -> Finding:
    """Duplicates, where every client has a twin: the scores leave each client's own distance out."""
    rows = np.repeat(DRAWS[0][:6], 2, axis=0)
    updates = [fc.Update.from_tensors({"w": row}, client_id=f"{i:02d}") for i, row in enumerate(rows)]
    report = fc.aggregate(updates, fc.rules.MultiKrum(2), "parameters").report
    distances = squared(rows)
    exact = np.array([np.sort(np.delete(distances[i], i))[: len(rows) - 4].sum() for i in range(len(rows))])
    error = float(np.abs(np.array(list(report["scores"].values())) - exact).max() / exact.max())
    return f"scores of others alone, relative error {error:.2g}", error > 1e-5


def many_rows() -> np.ndarray:
    """Thirty clients of size 10 that differ by 1e-3."""
    draw = np.random.default_rng(0)
    return (draw.normal(0, 10, 4096) + draw.normal(0, 1e-3, (30, 4096))).astype(np.float32)


def many_there(found: Callable[[np.ndarray], np.ndarray] = uncentred) -> Finding:
    rows = many_rows()
    pairs = np.triu_indices(len(rows), 1)
    ratios = np.maximum(found(rows), 0)[pairs] / squared(rows)[pairs]
    return f"{ratios.min():.2g} to {ratios.max():.2g} times the true ones", bool(ratios.max() > 1.01)


def many_here() -> Finding:
    rows = many_rows()
    updates = [fc.Update.from_tensors({"w": row}, client_id=f"{i:02d}") for i, row in enumerate(rows)]
    scores = fc.aggregate(updates, fc.rules.MultiKrum(2), "parameters").report["scores"]
    distances = squared(rows)
    exact = [np.sort(np.delete(distances[i], i))[: len(rows) - 4].sum() for i in range(len(rows))]
    ratios = np.array(list(scores.values())) / exact
    return f"{ratios.min():.7g} to {ratios.max():.7g} times the true ones", bool(np.abs(ratios - 1).max() > 1e-5)
