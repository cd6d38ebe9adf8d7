"""What a round of a private mean gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Release:
    """What a round may publish, and what stays in a private journal.

    mean     the noisy mean: (d,) fp32 for vectors; for updates the reference moved by it, as the next Update
    next     the mechanism of the next round: the same, or with the clips that adaptive clipping moved
    public   for a public ledger: charge, ε so far, fixed denominator, noise multiplier, clip, noise of the mean
             (standard deviation a number), SHA-256 of the output, a commitment to the inputs salted by the noise key
    private  for the operator alone: clients, their norms, how many were clipped or not finite. No noise covers these
    """

    mean: Any
    next: Any
    public: dict[str, Any]
    private: dict[str, Any]
