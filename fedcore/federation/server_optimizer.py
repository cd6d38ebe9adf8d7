"""Server optimisers: how the global adapter moves by a round's pseudo-gradient Δ = aggregate − global.

Hsu, Qi and Brown 2019, "Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification",
arXiv:1909.06335 (FedAvgM); Reddi et al. 2021, "Adaptive Federated Optimization", ICLR, Algorithm 2 (the other three).

Settings are frozen, state is explicit: `step` takes a state and gives the next one, and touches neither. All arithmetic
is element by element in fp64, without a sum, so that it has the same bits on every machine; each tensor is rounded once
to its dtype. The moments are those of the tensors as parameters: they mean nothing for factors of a truncated Δ, whose
gauge (B, A) ~ (BM, M⁻¹A) is another one in each round.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np

from fedcore.dtypes import name_of, rounded, to_float64
from fedcore.errors import ConfigError, LayoutError, NonFiniteError
from fedcore.federation.server_state import ServerState
from fedcore.numbers import as_real, got, keep
from fedcore.updates import Update


@dataclass(frozen=True)
class ServerOptimizer:
    """What the optimisers share. A subclass says its `moments` and how one tensor `moves`.

    moments   names of the fp64 arrays that it keeps for each tensor
    """

    moments: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            number = as_real(value)
            decay = field.name in ("momentum", "beta1", "beta2")
            if number is None or not math.isfinite(number) or not (0 <= number < 1 if decay else number > 0):
                expected = "a number of at least 0 and below 1" if decay else "a finite number above 0"
                raise ConfigError(f"{got(field.name, value, type(self).__name__)}, expected {expected}")
            keep(self, **{field.name: number})

    def start(self, update: Update) -> ServerState:
        """The state before the first round: moments for tensors of this layout (v starts at τ², m at 0)."""
        shapes = dict(zip(update.layout.names, update.layout.shapes, strict=True))
        made = {m: {name: np.full(shape, self.first(m)) for name, shape in shapes.items()} for m in self.moments}
        return ServerState(type(self).__name__, 0, made)

    def first(self, moment: str) -> float:
        """What every element of a moment is before the first round."""
        return 0.0

    def step(self, current: Update, aggregate: Update, state: ServerState) -> tuple[Update, ServerState]:
        """(the next global update, the state after this round).

        current     the global update of the round, what clients moved from
        aggregate   what the rule made of theirs, in parameters space: tensors of the same layout and scales
        state       of the round before, or `start(current)`

        Identity and example count are the aggregate's. Raises LayoutError where layouts, scales or the state differ,
        NonFiniteError or RangeError naming a tensor that is not finite or does not fit its dtype.
        """
        if difference := current.layout.difference(aggregate.layout):
            raise LayoutError(f"server optimiser: {difference} like the global update; aggregate in parameters space")
        if current.scaling != aggregate.scaling:
            raise LayoutError(
                "server optimiser: scales differ between aggregate and global update, expected the same; keep alpha"
            )
        state.check(type(self).__name__, self.moments, current.layout)
        tensors: dict[str, np.ndarray] = {}
        moments: dict[str, dict[str, np.ndarray]] = {moment: {} for moment in self.moments}
        for name, tensor in current.tensors.items():
            x, goal = to_float64(tensor), to_float64(aggregate.tensors[name])
            before = {moment: state.moments[moment][name] for moment in self.moments}
            with np.errstate(over="ignore", invalid="ignore"):
                change, after = self.move(goal - x, before)
                tensors[name] = _rounded(x + change, tensor, goal, name)
            for moment, values in after.items():
                moments[moment][name] = values
        return aggregate.with_tensors(tensors), ServerState(state.optimizer, state.round + 1, moments)

    def move(self, delta: np.ndarray, before: Mapping[str, np.ndarray]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """(what is added to one tensor, its moments after): all fp64 arrays of the tensor's shape."""
        raise TypeError(f"{type(self).__name__}: a server optimiser defines `move`")


@dataclass(frozen=True)
class FedAvgM(ServerOptimizer):
    """Momentum on the server: m ← β m + Δ, x ← x + η m (Hsu et al. 2019). With β = 0 and η = 1 it is FedAvg.

    learning_rate   η; 1 in the paper
    momentum        β; the paper tries 0 to 0.997
    """

    learning_rate: float = 1.0
    momentum: float = 0.9
    moments: ClassVar[tuple[str, ...]] = ("m",)

    def move(self, delta: np.ndarray, before: Mapping[str, np.ndarray]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """η m and m."""
        m = self.momentum * before["m"] + delta
        return self.learning_rate * m, {"m": m}


@dataclass(frozen=True)
class Adaptive(ServerOptimizer):
    """m ← β₁ m + (1 − β₁) Δ, v by the subclass, x ← x + η m / (√v + τ), with v at τ² to start with.

    Reddi et al. 2021, Algorithm 2. There is no bias correction, as in the paper.

    learning_rate   η, the scale of a step; the paper tunes it for each task. Under a steady Δ far above τ an element's
                    steps come to η in FedAdam and FedYogi, and are up to 2.1 η on the way there with the default β
                    (round 13 or 12), since m gathers Δ faster than √v; in FedAdagrad they are at most η, and shrink
    beta1           β₁, 0.9 in the paper, 0 for FedAdagrad
    tau             τ, the degree of adaptivity; 10⁻³ in the paper
    """

    learning_rate: float = 0.01
    beta1: float = 0.9
    tau: float = 1e-3
    moments: ClassVar[tuple[str, ...]] = ("m", "v")

    def first(self, moment: str) -> float:
        """v starts at τ², as small as the algorithm allows."""
        return self.tau * self.tau if moment == "v" else 0.0

    def second(self, v: np.ndarray, square: np.ndarray) -> np.ndarray:
        """v after this round; `square` is Δ²."""
        raise TypeError(f"{type(self).__name__}: an adaptive server optimiser defines `second`")

    def move(self, delta: np.ndarray, before: Mapping[str, np.ndarray]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """η m / (√v + τ); m and v."""
        m = self.beta1 * before["m"] + (1 - self.beta1) * delta
        v = self.second(before["v"], delta * delta)
        return self.learning_rate * m / (np.sqrt(v) + self.tau), {"m": m, "v": v}


@dataclass(frozen=True)
class FedAdagrad(Adaptive):
    """m ← β₁ m + (1 − β₁) Δ, v ← v + Δ², x ← x + η m / (√v + τ), Δ = aggregate − current, v = τ² at first.

    Reddi et al. 2021, Algorithm 2. β₁ is 0 unless given: Adagrad as it is known has no momentum (section 5).
    learning_rate is η, beta1 β₁ and tau τ: see `FedAdam`.
    """

    beta1: float = 0.0

    def second(self, v: np.ndarray, square: np.ndarray) -> np.ndarray:
        """v + Δ²."""
        return v + square


@dataclass(frozen=True)
class FedAdam(Adaptive):
    """m ← β₁ m + (1 − β₁) Δ, v ← β₂ v + (1 − β₂) Δ², x ← x + η m / (√v + τ), Δ = aggregate − current, v = τ² at first.

    Reddi et al. 2021, Algorithm 2, without bias correction, as in the paper.

    learning_rate   η, the scale of a step, above 0
    beta1, beta2    β₁ and β₂, at least 0 and below 1; 0.9 and 0.99 in the paper
    tau             τ, the degree of adaptivity, above 0; 10⁻³ in the paper

    Raises ConfigError for others.
    """

    beta2: float = 0.99

    def second(self, v: np.ndarray, square: np.ndarray) -> np.ndarray:
        """β₂ v + (1 − β₂) Δ²."""
        return self.beta2 * v + (1 - self.beta2) * square


@dataclass(frozen=True)
class FedYogi(Adaptive):
    """m ← β₁ m + (1 − β₁) Δ, v ← v − (1 − β₂) Δ² sign(v − Δ²), x ← x + η m / (√v + τ): v falls no faster than it rises.

    Reddi et al. 2021, Algorithm 2. Δ, v at first, the parameters and their ranges are `FedAdam`'s.
    """

    beta2: float = 0.99

    def second(self, v: np.ndarray, square: np.ndarray) -> np.ndarray:
        """v − (1 − β₂) Δ² sign(v − Δ²)."""
        return v - (1 - self.beta2) * square * np.sign(v - square)


#: name in a configuration -> class
OPTIMIZERS: dict[str, type[ServerOptimizer]] = {
    "fedavgm": FedAvgM,
    "fedadagrad": FedAdagrad,
    "fedadam": FedAdam,
    "fedyogi": FedYogi,
}


def make_optimizer(name: str, settings: Mapping[str, Any]) -> ServerOptimizer | None:
    """The optimiser `name` with these settings, its own defaults where they are silent; None for "none".

    Raises ConfigError naming a setting that it does not take or a value out of range.
    """
    taken = [] if name == "none" else [field.name for field in fields(OPTIMIZERS[name])]
    for setting in settings:
        if setting not in taken:
            known = f"it takes {', '.join(taken)}" if taken else "name an optimizer or leave it out"
            raise ConfigError(f'{setting}: not known to optimizer = "{name}"; {known}')
    return None if name == "none" else OPTIMIZERS[name](**settings)


def _rounded(values: np.ndarray, like: np.ndarray, goal: np.ndarray, name: str) -> np.ndarray:
    """`values` in the dtype of `like`. Raises NonFiniteError for a goal that is not finite, RangeError for overflow."""
    if not np.isfinite(goal).all():
        raise NonFiniteError(f"server optimiser: tensor {name!r} of the aggregate holds NaN or Inf; exclude its client")
    dtype = name_of(like.dtype)
    return rounded(values, dtype, f"server optimiser: tensor {name!r} does not fit {dtype}; lower server.learning_rate")
