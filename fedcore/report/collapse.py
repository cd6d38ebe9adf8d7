"""Whether noise has taken all that clients learnt: the detector of a run's table, its report and the benchmarks."""

from __future__ import annotations

#: share of the base's held-out loss that an arm has to gain to count as having learnt anything
LEAST_GAIN = 0.001


def collapsed(base: float | None, loss: float | None) -> bool:
    """Whether a model is no better than the base: its held-out loss is above 99.9 % of the base's, or not finite.

    Losses in nats per token, on the same texts. Not so where the base's is not known.
    """
    if base is None:
        return False
    return loss is None or loss > (1 - LEAST_GAIN) * base
