"""Central privacy over many rounds at once: noise that later rounds partly take back, so that their sums have less."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from fedcore.errors import PrivacyError
from fedcore.lora import Method
from fedcore.numbers import keep, shown
from fedcore.privacy.accountant import Charge
from fedcore.privacy.budget import Noise
from fedcore.privacy.chain import Head
from fedcore.privacy.charged import check_charged
from fedcore.privacy.combination import not_summed
from fedcore.privacy.factorization import UNIT, Factor, best_factor
from fedcore.privacy.limits import check_clip, check_deviation, check_multiplier, check_whole
from fedcore.privacy.noise_rows import NoiseRows
from fedcore.privacy.participation import Rounds, round_number
from fedcore.privacy.release import Release
from fedcore.privacy.seal import derived
from fedcore.privacy.sums import noisy_mean
from fedcore.privacy.terms import WHOLE, Terms
from fedcore.updates import Update


@dataclass(frozen=True)
class Correlated:
    """Noisy means of T rounds, charged once: the banded matrix mechanism for their prefix sums, in whole numbers.

    clip              bound C on a term's norm, in every round
    noise_multiplier  z of the whole run, as one Gaussian mechanism: z · sensitivity · C is the noise's deviation
    expected_clients  the fixed denominator
    rounds            T, planned
    separation        a client's rounds are at least so many apart: after round t it may be in t + separation
    participations    rounds that a client is in at most; None takes what the separation allows, ⌈T / separation⌉
    bands             of C, at most the separation; None takes the least error (`best_factor`). A round needs bands − 1
                      rows of int64 in memory; after a restart they are drawn again from their counters
    stream            of the noise, as in `ops.discrete_gaussian`: "aes256ctr" is faster where processors have it

    What is released, and why it is private in floating point. Let q_t be round t's sum of clipped terms in whole
    steps of a grid (`ops.clip_round`), c the whole coefficients (`fedcore.privacy.factorization`) and z_t rows of
    discrete Gaussians, each row from a key of its own. The mechanism is

        y_t = Σ_k c_k q_{t−k} + z_t,

    whole numbers in which a client moves Σ ‖·‖² over all rounds by at most (C/grid)² · squared_sensitivity. Since
    both parts are whole, y is a randomised rounding of the real sums with continuous Gaussian noise
    (`fedcore.privacy.noise`), so one Gaussian mechanism accounts for all rounds, also where clients' terms depend on
    earlier releases (Denisov et al. 2022, "Improved Differential Privacy for SGD via Optimal Private Linear Operators
    on Adaptive Streams", NeurIPS, arXiv 2202.08312, Theorem 2.1). From y alone anybody can then estimate, in this
    order of rounds,

        x_t = ⌊(y_t − Σ_{k≥1} c_k x_{t−k}) / c_0 + ½⌋,

    C⁻¹ y rounded to whole steps, which costs nothing more. ⌊q + ·⌋ = q + ⌊·⌋ for whole q, so this is x_t = q_t + e_t
    with

        e_t = ⌊(z_t − Σ_{k≥1} c_k e_{t−k}) / c_0 + ½⌋,

    noise alone, in whole numbers: what is computed here, exactly, the same on every backend. No earlier sum is kept.
    Noise C⁻¹ z in floating point, or z on a lattice that C q is not on, would not be a function of y: low bits would
    tell of q.

    No amplification: the schema alone is accounted, whoever sees who took part, so open the Budget with sampling_rate
    1. The neighbour relation is the budget's: a client's terms there or not (in any rounds of the schema), or
    replaced. Choquette-Choo et al. 2023, "(Amplified) Banded Matrix Factorization", NeurIPS, arXiv 2306.08153;
    Kalinin and Lampert 2024, arXiv 2405.13763, for the coefficients. Raises PrivacyError naming the parameter.
    """

    clip: float
    noise_multiplier: float
    expected_clients: int
    rounds: int
    separation: int
    participations: int | None = None
    bands: int | None = None
    stream: str = "chacha20"

    def __post_init__(self) -> None:
        keep(self, clip=check_clip(self.clip), noise_multiplier=check_multiplier(self.noise_multiplier))
        for name in ("expected_clients", "rounds", "separation"):
            keep(self, **{name: check_whole(name, getattr(self, name))})
        for name in ("participations", "bands"):
            if getattr(self, name) is not None:
                keep(self, **{name: check_whole(name, getattr(self, name))})
        if self.separation > self.rounds:
            raise PrivacyError(
                f"separation: got {self.separation} of {self.rounds} rounds, expected at most all, with which "
                "every client is in one round"
            )
        if self.bands is not None and self.bands > self.separation:
            raise PrivacyError(
                f"bands: got {self.bands}, expected at most the separation {self.separation}, within which a "
                "client's rounds share no row and the sensitivity is exact"
            )

    @cached_property
    def factor(self) -> Factor:
        """C, with its sensitivity and errors in clips at noise multiplier 1."""
        most = -(-self.rounds // self.separation)
        participations = min(most, self.participations or most)
        if self.bands is None:
            return best_factor(self.rounds, self.separation, participations)
        return Factor(self.rounds, self.separation, participations, self.bands)

    def size(self, like: Any, *, method: Method | None = None, fixed: Update | None = None) -> int:
        """Numbers of a term like this vector or reference. RangeError for dtypes that may not hold the noise."""
        updates, reference = ([], like) if isinstance(like, Update) else ([like], None)
        return sum(self._terms(updates, method, reference, fixed).sizes.values())

    def dimension(self, size: int) -> int:
        """Noise samples of the whole run for terms of so many numbers: what `Budget` charges as dimension."""
        return self.rounds * size

    def deviation(self, size: int) -> float:
        """Of the rows' noise in grid steps, for terms of so many numbers. Raises PrivacyError where none is drawn."""
        from fedcore.ops.clip_round import clip_grid

        found = self.noise_multiplier * self.clip / clip_grid(self.clip, size)
        found *= math.sqrt(self.factor.squared_sensitivity)
        often = f"{size} numbers and {self.factor.participations} participations"
        what = f"noise_multiplier: {self.noise_multiplier:g} for {often}"
        check_deviation(found, what, "take fewer rounds or numbers, a larger separation or a larger epsilon")
        return found

    def inputs_digest(self, rounds: Rounds) -> str:
        """SHA-256 (hex) of this run, for `Budget.reserve`: one charge for all rounds. Raises as `deviation` does."""
        self.deviation(rounds.size)
        return rounds.inputs_digest(
            ["correlated", self.clip, self.noise_multiplier, self.expected_clients, self.stream]
        )

    def release(
        self,
        updates: Iterable[Any],
        noise: Noise,
        rounds: Rounds,
        number: int,
        *,
        clients: Sequence[str],
        method: Method | None = None,
        reference: Update | None = None,
        fixed: Update | None = None,
    ) -> Release:
        """Release round `number`, from 1 to T, each in its turn; a round again, with the same inputs, gives the same.

        updates    as in `Central.release`; with `method`, one that sends the same factors in every round
        noise      of `Budget.reserve(self.inputs_digest(rounds))`
        rounds     `Rounds(path, mechanism.factor, mechanism.size(like), sealing_key=...)`
        clients    who sent which update, in order; nobody is in `rounds` sooner or more often than the schema says

        A round that was entered and not published stays part of the noise that later rounds take back: release it again
        with the same inputs. Sum the means to get the model; a mean alone is noisier than without correlation. Raises
        PrivacyError where a release would not be private or noise and rounds are for something else, LayoutError or
        ShapeError for updates that do not fit.
        """
        from fedcore.ops.clip_round import clip_grid

        number, terms = round_number(number), self._terms(updates, method, reference, fixed)
        size = sum(terms.sizes.values())
        self._check(noise, rounds, size)
        if len(clients) != len(terms.each):
            raise PrivacyError(f"clients: got {len(clients)} names of {len(terms.each)} updates, expected one for each")
        for name, term in zip(clients, terms.each, strict=True):
            if isinstance(term, Update) and term.client_id not in ("", name):
                raise PrivacyError(
                    f"clients: {shown(name)} stands where the update is of client {shown(term.client_id)}; name them "
                    "in the order of the updates, or the schema is kept for somebody else"
                )
        inputs = terms.digest([self.clip, self.expected_clients, number])
        deviation = self.deviation(size)  # before the round is entered
        head = rounds.enter(number, inputs, clients)
        grid = clip_grid(self.clip, size)
        drawn = _rows_of(rounds, noise.key, deviation, self.stream).row(number - 1, rounds.inputs_until(number))
        mean, squared = noisy_mean(terms, list(terms.sizes), self.clip, grid, drawn, self.expected_clients)
        released = terms.released({"": mean})
        private = {
            "clients": len(terms.each),
            "inputs": inputs,
            "norms": {WHOLE: np.sqrt(squared).tolist()},
            "clipped": int(np.count_nonzero((squared > self.clip**2) & np.isfinite(squared))),
            "not_finite": int(np.count_nonzero(~np.isfinite(squared))),
        }
        return Release(released, self, self._public(number, released, inputs, noise, head), private)

    def _terms(
        self, updates: Iterable[Any], method: Method | None, reference: Update | None, fixed: Update | None
    ) -> Terms:
        """What is released, once it is known that it can be."""
        if reference is None:
            return Terms.of_vectors(updates)
        if method is not None and (found := not_summed(method)):
            raise PrivacyError(found[0])
        terms = Terms.of_updates(updates, reference, method, 1, fixed, both_factors=False)
        deviation = self.noise_multiplier * self.clip * float(self.factor.noise_of_rounds.max())
        terms.check_fits(self.expected_clients, {WHOLE: (self.clip, deviation)})
        return terms

    def _check(self, noise: Noise, rounds: Rounds, size: int) -> None:
        if rounds.factor != self.factor or rounds.size != size:
            raise PrivacyError(
                f"rounds: those at {rounds.path} are for terms of {rounds.size} numbers and {rounds.factor}, and this "
                f"release has {size} and {self.factor}; open them for this mechanism"
            )
        needed = Charge(self.noise_multiplier, dimension=self.dimension(size), stream=self.stream)
        check_charged(noise, self.inputs_digest(rounds), needed, "another run", whole_rate=True)

    def _public(self, number: int, released: Any, inputs: str, noise: Noise, head: Head) -> dict[str, Any]:
        output = released.digest() if isinstance(released, Update) else hashlib.sha256(released).hexdigest()
        scale = self.noise_multiplier * self.clip / self.expected_clients
        return {
            "charge": noise.number,
            "epsilon": noise.epsilon,
            "round": number,
            "rounds": self.rounds,
            "separation": self.factor.separation,
            "participations": self.factor.participations,
            "coefficients": [c / UNIT for c in self.factor.coefficients],
            "expected_clients": self.expected_clients,
            "noise_multiplier": self.noise_multiplier,
            "clip": self.clip,
            "noise_of_mean": scale * float(self.factor.noise_of_rounds[number - 1]),
            "noise_of_sum_of_means": scale * float(self.factor.noise_of_prefixes[number - 1]),
            "output": output,
            "inputs": derived(noise.key, f"commitment to {inputs}").hex(),
            "head": {"number": head.number, "mac": head.mac},
        }


def _rows_of(rounds: Rounds, key: bytes, deviation: float, stream: str) -> NoiseRows:
    """The rows of a run, kept with its rounds so that each is drawn once."""
    if rounds.noise_rows is None or rounds.noise_rows.made_from != (deviation, key, stream):
        rounds.noise_rows = NoiseRows(rounds.factor, rounds.size, deviation, key, stream)
    return rounds.noise_rows
