"""Central differential privacy: the server adds noise once, to a sum of clipped terms over a fixed denominator."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from typing import Any

import numpy as np

from fedcore.errors import PrivacyError
from fedcore.lora import Method
from fedcore.numbers import keep
from fedcore.ops.clip_round import clip_grid
from fedcore.privacy.accountant import Charge
from fedcore.privacy.adaptive import AdaptiveClip, drawn_shares
from fedcore.privacy.budget import Noise
from fedcore.privacy.charged import check_charged, check_equal
from fedcore.privacy.limits import check_clip, check_deviation, check_multiplier, check_whole
from fedcore.privacy.noise import draw
from fedcore.privacy.release import Release
from fedcore.privacy.seal import derived
from fedcore.privacy.statistic import both_and_b
from fedcore.privacy.sums import noisy_mean
from fedcore.privacy.terms import WHOLE, Terms
from fedcore.updates import Update


@dataclass(frozen=True)
class Central:
    """A noisy mean: (Σ clipped and rounded terms + noise) / expected_clients, exactly integer until it is divided.

    clip              bound C on a term's norm; with per_module of the whole, ΣC_m² = C², or module -> C_m
    noise_multiplier  z: what is charged. Noise has standard deviation z C on each number of the sum
    expected_clients  the fixed denominator, whatever number takes part: the actual count is private
    per_module        clip each module's part (dense tensors count as modules) to its own C_m, C/√M each at first
    adaptive          let the clips follow a quantile of the norms, at a share of the noise multiplier
    both_factors      with a method that sends A and B, clip them jointly; the public record shows what that costs
    stream            of the noise, as in `ops.discrete_gaussian`: "aes256ctr" is faster where processors have it

    Order of a release: a term that is not finite counts as zero; clip, and round to a grid of at most 0.02 C/√d with
    the norm after rounding proven at most C (`ops.clip_round`); sum; add discrete Gaussian noise from the reserved key
    (`fedcore.privacy.noise`); only then back to floating point. McMahan et al. 2018, "Learning Differentially Private
    Recurrent Language Models", ICLR, arXiv 1710.06963 (fixed denominator, per-layer clips); Kairouz et al. 2021.
    """

    clip: float | Mapping[str, float]
    noise_multiplier: float
    expected_clients: int
    per_module: bool = False
    adaptive: AdaptiveClip | None = None
    both_factors: bool = False
    stream: str = "chacha20"

    def __post_init__(self) -> None:
        clips = self.clip.items() if isinstance(self.clip, Mapping) else [(WHOLE, self.clip)]
        found = {name: check_clip(clip, name) for name, clip in clips}
        if isinstance(self.clip, Mapping) and not self.per_module:
            raise PrivacyError("clip: got one for each module, and per_module is False; set it, or give one number")
        keep(self, clip=found if isinstance(self.clip, Mapping) else found[WHOLE])
        keep(self, noise_multiplier=check_multiplier(self.noise_multiplier))
        keep(self, expected_clients=check_whole("expected_clients", self.expected_clients))

    def inputs_digest(
        self,
        updates: Iterable[Any],
        *,
        method: Method | None = None,
        reference: Update | None = None,
        fixed: Update | None = None,
        number: int = 1,
        label: str,
    ) -> str:
        """SHA-256 (hex) of what a release depends on, for `Budget.reserve`; the order of updates does not matter.

        label  names the release, as in `release`: the same inputs in two rounds are two releases and two charges
        """
        return self._digest(self._terms(updates, method, reference, fixed, number), label)

    def dimension(
        self, like: Any, *, method: Method | None = None, fixed: Update | None = None, number: int = 1
    ) -> int:
        """Noise samples of a release for updates like this vector or reference: what `Budget` charges as dimension."""
        updates, reference = ([], like) if isinstance(like, Update) else ([like], None)
        return self._needed(self._terms(updates, method, reference, fixed, number).sizes)

    def release(
        self,
        updates: Iterable[Any],
        noise: Noise,
        *,
        method: Method | None = None,
        reference: Update | None = None,
        fixed: Update | None = None,
        number: int = 1,
        label: str,
        weights: Sequence[float] | Mapping[str, float] | None = None,
    ) -> Release:
        """Release one round.

        updates    flat vectors (d,) of fp32, fp16 or bf16 in main memory, each a change from the round's model; or
                   Updates, with the `reference` that they started from. One a client: two of one client_id are refused,
                   and of vectors, which name nobody, the caller sees to it. All count the same: num_examples are not
                   used
        noise      of `Budget.reserve(self.inputs_digest(updates, ...))`, with the same arguments
        method     the LoRA method, which says what travels in round `number`: that alone is read, clipped and released
        fixed      for fedsb, (B₀, A₀)
        label      names the release among all of one budget, such as run, arm and round: two rounds of the same inputs
                   with one noise would be equal, which tells that their inputs were
        weights    None, or equal ones

        What a method does after its mean (FedSVD's factorisation) and server optimisers come after this. A round with
        fewer clients than expected, or none, is released the same way. Raises PrivacyError where a release would not be
        private or the noise is for something else, LayoutError or ShapeError for updates that do not fit, RangeError
        for a reference whose dtypes might not hold the noise: `inputs_digest` raises each before there is a charge.
        """
        check_equal(weights)
        terms = self._terms(updates, method, reference, fixed, number)
        needed = Charge(self.noise_multiplier, dimension=self._needed(terms.sizes), stream=self.stream)
        check_charged(noise, self._digest(terms, label), needed, "other inputs")
        clips = self._clips(terms.sizes)
        deviation = self._deviation(clips)
        means, norms = self._means(terms, clips, deviation, noise)
        mean = terms.released(means)
        within = {part: norms[part] <= clip**2 for part, clip in clips.items()}
        following = self if self.adaptive is None else self._moved(clips, within, noise.key, terms.sizes)
        public = self._public(terms, clips, deviation / self.expected_clients, mean, noise)
        private = {
            "clients": len(terms.each),
            "inputs": noise.inputs_digest,
            "norms": {part: np.sqrt(squared).tolist() for part, squared in norms.items()},
            "clipped": {part: int(np.count_nonzero(~w & np.isfinite(norms[part]))) for part, w in within.items()},
            "not_finite": int(max(np.count_nonzero(~np.isfinite(squared)) for squared in norms.values())),
        }
        return Release(mean, following, public, private)

    def _means(
        self, terms: Terms, clips: Mapping[str, float], deviation: float, noise: Noise
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """(noisy mean, squared norms) of each clipped part."""
        means, norms = {}, {}
        for part, clip in clips.items():
            segments = list(terms.sizes) if part == WHOLE else [part]
            grid = clip_grid(clip, _size(terms.sizes, part))

            def drawn(start: int, count: int, part: str = part, steps: float = deviation / grid) -> np.ndarray:
                return draw(count, steps, noise.key, f"sum {part}", start, self.stream)

            means[part], norms[part] = noisy_mean(terms, segments, clip, grid, drawn, self.expected_clients)
        return means, norms

    def _public(
        self, terms: Terms, clips: dict[str, float], deviation: float, mean: Any, noise: Noise
    ) -> dict[str, Any]:
        output = mean.digest() if isinstance(mean, Update) else hashlib.sha256(mean).hexdigest()
        found = {
            "charge": noise.number,
            "epsilon": noise.epsilon,
            "expected_clients": self.expected_clients,
            "noise_multiplier": self.noise_multiplier,
            "clip": clips if self.per_module else clips[WHOLE],
            "noise_of_mean": deviation,
            "output": output,
            "inputs": derived(noise.key, f"commitment to {noise.inputs_digest}").hex(),
        }
        if terms.statistic is not None and terms.statistic.factors == ("a", "b"):
            found["error_of_delta"] = both_and_b(terms.statistic.reference, deviation)
        return found

    def _terms(
        self, updates: Iterable[Any], method: Method | None, reference: Any, fixed: Update | None, number: int
    ) -> Terms:
        """What is released, once it is known that it can be."""
        if reference is not None:
            terms = Terms.of_updates(updates, reference, method, number, fixed, self.both_factors)
        elif self.per_module:
            raise PrivacyError("per_module: got flat vectors, which have no modules; give updates, or clip flat")
        else:
            terms = Terms.of_vectors(updates)
        self._check_drawn(terms.sizes)
        clips = self._clips(terms.sizes)
        deviation = self._deviation(clips)
        terms.check_fits(self.expected_clients, {part: (clip, deviation) for part, clip in clips.items()})
        return terms

    def _check_drawn(self, sizes: Mapping[str, int]) -> None:
        """Raise PrivacyError for clips out of range, or noise that no sampler draws."""
        clips = self._clips(sizes)
        deviation = self._deviation(clips)
        for part, clip in clips.items():
            check_clip(clip, part)
            size = _size(sizes, part)
            what = f"noise_multiplier: {self.noise_multiplier:g} at clip {clip:g} of {size} numbers"
            check_deviation(deviation / clip_grid(clip, size), what, "take a larger epsilon, or clip flat")
        if self.adaptive is not None:
            counts = 2 * self.adaptive.deviation(self.expected_clients)
            check_deviation(counts, f"count_noise: {counts / 2:g}", "take less")
            self._shares(sizes)

    def _shares(self, sizes: Mapping[str, int]) -> dict[str, float]:
        clips = self._clips(sizes)
        return drawn_shares({part: _size(sizes, part) for part in clips}, self._multiplier(len(clips)))

    def _deviation(self, clips: Mapping[str, float]) -> float:
        """Of the noise on each number of the sum."""
        return self._multiplier(len(clips)) * math.sqrt(sum(clip**2 for clip in clips.values()))

    def _multiplier(self, clips: int) -> float:
        """Of a sum of so many parts, beside their counts."""
        z = self.noise_multiplier
        return self.adaptive.remaining(z, self.expected_clients, clips) if self.adaptive else z

    def _digest(self, terms: Terms, label: str) -> str:
        clip = dict(self.clip) if isinstance(self.clip, Mapping) else self.clip
        adaptive = self.adaptive and astuple(self.adaptive)
        settings = [clip, self.noise_multiplier, self.expected_clients, self.per_module, adaptive, label]
        return terms.digest([*settings, self.stream])

    def _needed(self, sizes: Mapping[str, int]) -> int:
        """Noise samples of a release."""
        return sum(sizes.values()) + (len(self._clips(sizes)) if self.adaptive else 0)

    def _clips(self, sizes: Mapping[str, int]) -> dict[str, float]:
        """segment -> its clip; one for the whole row unless per_module."""
        if not self.per_module:
            assert not isinstance(self.clip, Mapping)
            return {WHOLE: float(self.clip)}
        if not isinstance(self.clip, Mapping):
            return {name: float(self.clip) / math.sqrt(len(sizes)) for name in sizes}
        if self.clip.keys() != sizes.keys():
            name = min(self.clip.keys() ^ sizes.keys())
            what = "has no clip" if name in sizes else "has a clip, and the updates have no such module"
            raise PrivacyError(f"clip: module {name!r} {what}; give one for each of {', '.join(sizes)}")
        return {name: float(self.clip[name]) for name in sizes}

    def _moved(self, clips: dict[str, float], within: dict[str, Any], key: bytes, sizes: Mapping[str, int]) -> Central:
        """With the clips that noisy counts ask for. Counts are of 2b - 1, so that noise of 2σ_b is on whole numbers."""
        assert self.adaptive is not None
        deviation = 2 * self.adaptive.deviation(self.expected_clients)
        drawn = draw(len(clips), deviation, key, "counts", stream=self.stream)
        doubled = np.array([2 * int(np.count_nonzero(within[part])) - len(within[part]) for part in clips]) + drawn
        moved = self.adaptive.moved(clips, doubled.tolist(), self.expected_clients, self._shares(sizes))
        return replace(self, clip=moved if self.per_module else moved[WHOLE])


def _size(sizes: Mapping[str, int], part: str) -> int:
    return sizes[part] if part in sizes else sum(sizes.values())
