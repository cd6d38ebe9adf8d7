"""Whether a noise that was reserved, and weights, are what a release needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fedcore.errors import PrivacyError
from fedcore.privacy.accountant import Charge
from fedcore.privacy.budget import Noise


def check_charged(noise: Noise, inputs_digest: str, needed: Charge, of: str, whole_rate: bool = False) -> None:
    """Raise PrivacyError unless `noise` was reserved for these inputs, and charged for at least what is needed.

    of          whose the noise is where it is not: "other inputs"
    whole_rate  what is released has no gain from sampling: whoever is in it is seen
    """
    if not isinstance(noise, Noise):
        raise PrivacyError(
            f"noise: got {type(noise).__name__}, expected what Budget.reserve gives for inputs_digest of these"
        )
    if noise.inputs_digest != inputs_digest:
        raise PrivacyError(
            f"noise: was reserved for {of} or other settings, and one noise on two sums shows their difference; "
            "reserve for inputs_digest of these, which is another charge"
        )
    if noise.stream != needed.stream:
        raise PrivacyError(
            f"noise: charged for stream {noise.stream!r}, and this release draws from {needed.stream!r}; open the "
            "budget with the same"
        )
    if noise.noise_multiplier > needed.noise_multiplier:
        raise PrivacyError(
            f"noise: charged at noise multiplier {noise.noise_multiplier:g}, and this release has "
            f"{needed.noise_multiplier:g}, which costs more; open the budget with the same"
        )
    if whole_rate and noise.sampling_rate != 1:
        raise PrivacyError(
            f"noise: charged at sampling rate {noise.sampling_rate:g}, expected 1: who is in this is seen; open the "
            "budget with it"
        )
    if needed.concentrated and not noise.concentrated:
        raise PrivacyError(
            "noise: charged as a Gaussian's, expected a concentrated charge: sums of discrete Gaussians are known by "
            "ρ-zCDP alone; open the budget with concentrated=True"
        )
    if noise.dimension < needed.dimension:
        raise PrivacyError(
            f"noise: charged for {noise.dimension} samples, and this release draws {needed.dimension}; open the budget "
            f"with dimension={needed.dimension}"
        )


def check_equal(weights: Sequence[float] | Mapping[str, float] | None) -> None:
    """Raise PrivacyError for weights that differ."""
    values = list(weights.values() if isinstance(weights, Mapping) else [] if weights is None else weights)
    if len(set(map(float, values))) > 1:
        raise PrivacyError(
            "weights: got unequal ones, with which one client moves the sum by more than the clip; leave them out: in "
            "a private mean every client counts the same"
        )
