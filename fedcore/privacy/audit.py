"""Lower bounds on ε from what a mechanism gives out: an implementation that claims less than these is broken."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from fedcore.errors import PrivacyError
from fedcore.numbers import as_real, shown


def neighbours_epsilon(
    without: np.ndarray, present: np.ndarray, thresholds: Iterable[float], delta: float, confidence: float = 0.999
) -> float:
    """What ε is at least, from many runs on two neighbouring inputs; 0.0 where they tell nothing.

    without, present  (n,) and (m,) outputs of runs without one record and with it, larger where it is there
    thresholds        fixed before: a run above one is taken for `present`
    confidence        chance that the bound holds, over the runs

    ln((TPR - δ) / FPR) at the best threshold, rates taken at their worst by Bernstein's inequality, whose chances of
    failing share 1 - confidence. From TPR <= e^ε FPR + δ (Jagielski, Ullman and Oprea 2020, "Auditing Differentially
    Private Machine Learning", NeurIPS, arXiv 2006.07709). Raises PrivacyError for no outputs or thresholds, NaN among
    them, outputs of another shape, and a delta or confidence that is no share.
    """
    _check_shares(delta, confidence)
    without, present = _outputs("without", without), _outputs("present", present)
    cuts, best = list(thresholds), 0.0
    if not cuts:
        raise PrivacyError("thresholds: got none, expected at least one; fix them before the runs")
    if any((value := as_real(cut)) is None or math.isnan(value) for cut in cuts):
        raise PrivacyError("thresholds: got NaN, expected numbers; fix them before the runs")
    log_share = math.log(2 * len(cuts) / (1 - confidence))
    n, m = len(without), len(present)
    for cut in cuts:
        caught, wrong = np.count_nonzero(present > cut) / m, np.count_nonzero(without > cut) / n
        caught -= math.sqrt(2 * caught * log_share / m) + log_share / (3 * m)
        wrong += math.sqrt(2 * wrong * log_share / n) + 2 * log_share / n
        if caught > delta:
            best = max(best, math.log((caught - delta) / wrong))
    return best


def guesses(scores: np.ndarray, count: int) -> np.ndarray:
    """(m,) int8: 1 for the ⌈count/2⌉ highest scores, guessed to be in, -1 for the ⌊count/2⌋ lowest, 0 for no guess.

    Raises PrivacyError for more guesses than scores.
    """
    if not 0 < count <= len(scores):
        raise PrivacyError(f"count: got {count} guesses of {len(scores)} scores, expected at least 1 and at most all")
    order, found = np.argsort(scores, kind="stable"), np.zeros(len(scores), np.int8)
    found[order[: count // 2]] = -1
    found[order[len(order) - (count + 1) // 2 :]] = 1
    return found


def one_run_epsilon(canaries: int, guessed: int, correct: int, delta: float, confidence: float = 0.95) -> float:
    """What ε is at least, from one run in which each canary was there or not by a fair coin; 0.0 for no sign of any.

    canaries  m records whose coins are guessed from the output, however they are scored
    guessed   how many were guessed, a number fixed before; no guess on the others
    correct   how many of the guesses were right

    If the mechanism is (ε, δ) private, then P(correct >= v) <= β + 2 m δ α with W binomial of `guessed` at e^ε/(1 +
    e^ε), β = P(W >= v) and α = max over i of P(v > W >= v - i)/i. The bound is the largest ε at which this is at most
    1 - confidence. Steinke, Nasr and Jagielski 2023, "Privacy Auditing with One (1) Training Run", NeurIPS, arXiv
    2305.08846, Theorem 5.2 and appendix D. Raises PrivacyError for numbers that do not fit.
    """
    if not 0 <= correct <= guessed <= canaries or guessed < 1:
        raise PrivacyError(
            f"guesses: got {correct} correct of {guessed} of {canaries} canaries, expected each at most the next"
        )
    _check_shares(delta, confidence)
    low, high = 0.0, 40.0
    if _chance(canaries, guessed, correct, low, delta) > 1 - confidence:
        return 0.0
    while high - low > 1e-6:  # the chance grows with ε until it is 1
        middle = (low + high) / 2
        if _chance(canaries, guessed, correct, middle, delta) <= 1 - confidence:
            low = middle
        else:
            high = middle
    return low


def _check_shares(delta: float, confidence: float) -> None:
    if (share := as_real(delta)) is None or not 0 <= share < 1:
        raise PrivacyError(f"delta: got {shown(delta)}, expected at least 0 and below 1; give the δ that is claimed")
    if (share := as_real(confidence)) is None or not 0 < share < 1:
        raise PrivacyError(
            f"confidence: got {shown(confidence)}, expected above 0 and below 1; 0.999 fails once in a thousand audits"
        )


def _outputs(name: str, given: np.ndarray) -> np.ndarray:
    """Outputs of runs, which are counted: of none there is no rate, and NaN would stand on no side of a threshold."""
    found = np.asarray(given)
    if found.ndim != 1:
        raise PrivacyError(f"{name}: got shape {found.shape}, expected (n,), an output a run; flatten it")
    if not len(found):
        raise PrivacyError(f"{name}: got none, expected at least one output; run the mechanism first")
    if np.isnan(found).any():
        raise PrivacyError(f"{name}: got NaN, expected numbers that thresholds can be held against; repair those runs")
    return found


def _chance(canaries: int, guessed: int, correct: int, epsilon: float, delta: float) -> float:
    """Bound on the chance of so many correct guesses under (ε, δ)."""
    counts = np.arange(guessed + 1)
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, guessed + 1)))])
    log_right, log_wrong = -math.log1p(math.exp(-epsilon)), -epsilon - math.log1p(math.exp(-epsilon))
    choose = logs[guessed] - logs - logs[::-1]
    chances = np.exp(choose + counts * log_right + (guessed - counts) * log_wrong)
    beta = float(chances[correct:].sum())
    below = np.cumsum(chances[:correct][::-1]) / np.arange(1, correct + 1)
    alpha = float(below.max()) if correct else 0.0
    return min(1.0, beta + 2 * canaries * delta * alpha)
