"""What a case is, and the oracles in fp64 that findings are measured by."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from fedcore.dtypes import to_float64
from fedcore.errors import FedcoreError

#: (what was measured, whether it is wrong)
Finding = tuple[str, bool]


class Case(NamedTuple):
    """peer, what fails there; `there` the peer's formula on the inputs, `here` fedcore on the same ones."""

    name: str
    peer: str
    what: str
    there: Callable[[], Finding]
    here: Callable[[], Finding]


def squared(rows: Any) -> np.ndarray:
    """Squared distances formed directly in fp64: the oracle."""
    x = to_float64(np.asarray(rows))
    return np.array([np.sum((x - row) ** 2, axis=1) for row in x])


def krum_choice(distances: np.ndarray, f: int, first: int = 1) -> int:
    """argmin of the sums over the n − f − 2 nearest others, by an argsort from which the first is dropped."""
    near = np.sort(distances, axis=1)[:, first : first + len(distances) - f - 2]
    return int(near.sum(1).argmin())


def oracle_choice(rows: np.ndarray, f: int) -> int:
    distances = squared(rows)
    np.fill_diagonal(distances, -1.0)
    return krum_choice(distances, f)


def worst_error(found: np.ndarray, exact: np.ndarray) -> float:
    """Largest relative error over pairs."""
    pairs = np.triu_indices(len(exact), 1)
    return float((np.abs(found - exact)[pairs] / exact[pairs]).max())


def guarded(finding: Callable[[], Finding]) -> Finding:
    """A finding; an error that fedcore raises is told, and is wrong where the finding did not expect it."""
    try:
        return finding()
    except FedcoreError as error:
        return f"{type(error).__name__}: {error}", True
