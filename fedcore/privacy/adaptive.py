"""Clips that follow a quantile of the clients' norms, privately."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedcore.errors import PrivacyError
from fedcore.gaussian_table import MOST
from fedcore.numbers import as_real, got, keep, positive
from fedcore.privacy.limits import (
    LARGEST_CLIP,
    LEAST_CLIP,
    LEAST_COUNT_NOISE,
    MOST_COUNT_NOISE,
    check_deviation,
)

#: of the largest clip that another may be
LEAST_SHARE = 2.0**-10


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
        quantile, noise = as_real(self.quantile), as_real(self.count_noise)
        if quantile is None or not 0 < quantile < 1:
            raise PrivacyError(f"{got('quantile', self.quantile)}, expected a share of the norms in (0, 1)")
        rate = positive("learning_rate", self.learning_rate, error=PrivacyError)
        if self.count_noise is not None and (noise is None or not LEAST_COUNT_NOISE <= noise <= MOST_COUNT_NOISE):
            raise PrivacyError(
                f"{got('count_noise', self.count_noise)}, expected a number from {LEAST_COUNT_NOISE:.3g} to "
                f"{MOST_COUNT_NOISE:g}, or None for expected_clients / 20"
            )
        keep(self, quantile=quantile, learning_rate=rate, count_noise=noise)

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

    def moved(
        self,
        clips: Mapping[str, float],
        doubled: Sequence[int],
        expected_clients: int,
        drawn: Mapping[str, float] | None = None,
    ) -> dict[str, float]:
        """The next clip of each part from its noisy Σ (2b - 1), within what a mechanism takes.

        drawn  part -> the least share of √ΣC² at which noise for all clips is drawn in steps of this part's grid, with
               Σ share² < 1; None for 0

        None falls below LEAST_SHARE of the largest: the noise on each part is that of all clips together, in which
        smaller ones drown. Nor below its share s of what they then are together: with T² = ΣC² / (1 - Σs²) and clips
        raised to at least sT, their squares come to at most ΣC² + T² Σs² = T².
        """
        found = {}
        for (part, clip), count in zip(clips.items(), doubled, strict=True):
            share = count / 2 / expected_clients + 0.5
            exponent = min(max(-self.learning_rate * (share - self.quantile), -200.0), 200.0)
            found[part] = min(max(clip * math.exp(exponent), LEAST_CLIP), LARGEST_CLIP)
        least = LEAST_SHARE * max(found.values())
        found = {part: max(clip, least) for part, clip in found.items()}
        if drawn is None:
            return found
        free = 1 - sum(share**2 for share in drawn.values())
        together = math.sqrt(sum(clip**2 for clip in found.values()) / free)
        return {part: max(clip, drawn[part] * together) for part, clip in found.items()}


def drawn_shares(sizes: Mapping[str, int], multiplier: float) -> dict[str, float]:
    """part -> the least share of √ΣC² that its clip C may have, so that its noise is drawn wherever clips move.

    A grid is above 0.01 C/√d, so that noise of z √ΣC² is fewer than 100 z √d √ΣC²/C steps of it. Raises PrivacyError
    where Σ share² passes ½: above that, one clip of all would have to move for its own noise.
    """
    total = sum(sizes.values())
    what = f"noise_multiplier: {multiplier:g} on the sum of {total} numbers"
    check_deviation(100 * multiplier * math.sqrt(2 * total), what, "take a larger epsilon, or no adaptive clips")
    return {part: 100 * multiplier * math.sqrt(size) / float(MOST) for part, size in sizes.items()}
