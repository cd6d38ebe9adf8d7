"""Clips that follow a quantile of the clients' norms, privately."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fedcore.errors import PrivacyError


@dataclass(frozen=True)
class AdaptiveClip:
    """C ← C · exp(-η (b̃ - γ)), b̃ the noisy share of clients whose norm was at most C: one such count a segment.

    quantile       γ, the share of norms that the clip is to be above
    learning_rate  η
    count_noise    σ_b, standard deviation of the noise on a count; None takes expected_clients / 20

    A count is of b - ½ with b in {0, 1}, so that one client moves it by ½. Andrew, Thakkar, McMahan and Ramaswamy 2021,
    "Differentially Private Learning with Adaptive Clipping", NeurIPS, arXiv 1905.03871, Algorithm 1 and Theorem 1.
    """

    quantile: float = 0.5
    learning_rate: float = 0.2
    count_noise: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.quantile < 1:
            raise PrivacyError(f"quantile: got {self.quantile!r}, expected a share of the norms in (0, 1)")
        if not 0 < self.learning_rate < math.inf:
            raise PrivacyError(f"learning_rate: got {self.learning_rate!r}, expected a number above 0, such as 0.2")
        if self.count_noise is not None and not 0 < self.count_noise < math.inf:
            raise PrivacyError(f"count_noise: got {self.count_noise!r}, expected a number above 0")

    def deviation(self, expected_clients: int) -> float:
        """σ_b."""
        return expected_clients / 20 if self.count_noise is None else self.count_noise

    def remaining(self, noise_multiplier: float, expected_clients: int, counts: int) -> float:
        """z_Δ = (z⁻² - counts · (2σ_b)⁻²)^(-1/2): what is left for the sum, so that all together cost what z does.

        Raises PrivacyError where the counts alone cost more.
        """
        left = noise_multiplier**-2 - counts * (2 * self.deviation(expected_clients)) ** -2
        if left <= 0:
            least = noise_multiplier * math.sqrt(counts) / 2
            raise PrivacyError(
                f"count_noise: {self.deviation(expected_clients):g} on {counts} counts costs more than the noise "
                f"multiplier {noise_multiplier:g} allows, expected above {least:.4g}; raise it"
            )
        return left**-0.5

    def moved(self, clip: float, doubled_count: int, expected_clients: int) -> float:
        """The next clip from the noisy Σ (2b - 1)."""
        share = doubled_count / 2 / expected_clients + 0.5
        return clip * math.exp(-self.learning_rate * (share - self.quantile))
