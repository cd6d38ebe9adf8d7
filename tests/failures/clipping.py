"""Zero, NaN and the caller's own rows under clipping and selection."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import fedcore as fc
from failures.central import smoothed_median
from failures.finding import Finding, squared
from fedcore.errors import NonFiniteError


def clip(rows: list[np.ndarray], norm: float) -> list[np.ndarray]:
    """min(1, C / ‖x‖) · x with Python's numbers."""
    length = float(np.sqrt(sum(float(np.linalg.norm(row)) ** 2 for row in rows)))
    return [row * min(1, norm / length) for row in rows]


def zero_there(clipped: Callable[..., Any] = clip) -> Finding:
    try:
        clipped([np.zeros(4, np.float32)], 1.0)
    except ZeroDivisionError as error:
        return f"ZeroDivisionError: {error}", True
    return "zero", False


def zero_here() -> Finding:
    found = fc.rules.NormClipping(1.0)(np.zeros((2, 4), np.float32))
    return "zero", bool(found.any())


def nan_clip_there(clipped: Callable[..., Any] = clip) -> Finding:
    rows = [np.array([np.nan, 1], np.float32)]
    found = clipped(rows, 1.0)
    sent = rows[0] if found is None else found[0]
    return f"passes: {np.asarray(sent).tolist()}", bool(np.isnan(sent).any())


def refused(work: Callable[[], Any]) -> Finding:
    """A refusal that names the row."""
    try:
        found = work()
    except NonFiniteError as error:
        return f"refused: row {error.row}", error.row < 0
    return f"gave {np.asarray(found).ravel()[:2]}", True


NANS = np.vstack([np.random.default_rng(0).normal(0, 1, (9, 6)), np.full(6, np.nan)]).astype(np.float32)


def nan_rules_there(rules: dict[str, Callable[[np.ndarray], np.ndarray]] | None = None) -> Finding:
    """One client's NaN in the median, Krum's choice and the geometric median, as NumPy gives them."""
    if rules is None:
        rules = {
            "median": lambda x: np.median(x, axis=0),
            "Krum": lambda x: x[int(np.sort(squared(x), axis=1)[:, :8].mean(1).argmin())],
            "geometric median": lambda x: smoothed_median(x, 0.1, 3),
        }
    ruined = [name for name, rule in rules.items() if np.isnan(np.asarray(rule(NANS))).any()]
    return f"NaN from {', '.join(ruined) or 'none'}", bool(ruined)


def nan_rules_here() -> Finding:
    rules = [fc.rules.Median(), fc.rules.Krum(2), fc.rules.GeometricMedian()]
    found = [refused(lambda rule=rule: rule(NANS)) for rule in rules]
    return found[0][0], any(wrong for _, wrong in found) or len({said for said, _ in found}) > 1


def clipped_in_place(rows: np.ndarray) -> None:
    for i in range(len(rows)):
        rows[i] *= min(1, 1.0 / float(np.linalg.norm(rows[i])))


def mutation(work: Callable[[np.ndarray], Any]) -> Finding:
    rows = np.random.default_rng(0).normal(0, 5, (4, 8)).astype(np.float32)
    before = rows.copy()
    work(rows)
    changed = bool((rows != before).any())
    return f"the caller's rows {'are changed' if changed else 'stay'}", changed
