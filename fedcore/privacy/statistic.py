"""The linear statistic that a round releases: what of an update is summed, clipped and noised, in its own space.

A clip of Δ = s B A with noise on the factors is not private: (tB, A/t) has the same Δ for every t, so a client moves
the noised factor as far as it likes. What is clipped must be what is summed: B where A is frozen, the core of Fed-SB, A
where that alone travels, or the whole vector.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fedcore.dtypes import round_from_float64, rounded, to_float64
from fedcore.errors import LayoutError, PrivacyError, RangeError
from fedcore.lora import Method
from fedcore.numbers import shown
from fedcore.updates import Update

#: methods whose A stays as it is, so that its rows can be orthonormal
_FROZEN_A = ("ffa_lora", "fedsvd")
#: standard deviations beyond which there are 2^-107 of a Gaussian's samples
FARTHEST = 12
#: the largest number of each dtype
_LARGEST = {"float16": 65504.0, "bfloat16": (2 - 2.0**-7) * 2.0**127, "float32": (2 - 2.0**-23) * 2.0**127}
#: how far A Aᵀ may be from the identity: bf16 rounds by 2^-9 a number
_TOLERANCE = 2e-2


@dataclass(frozen=True)
class Statistic:
    """How updates become flat rows and back.

    reference  the adapter or model that clients started from; a row is what an update has beyond it
    factors    what of each LoRA pair is summed: ("b",), ("a",), ("core",) or ("a", "b"); () if there is no pair
    fixed      the factors B₀ and A₀ around a core, else None
    """

    reference: Update
    factors: tuple[str, ...]
    fixed: Update | None = None

    @cached_property
    def segments(self) -> dict[str, int]:
        """module or dense tensor -> elements of its part of a row, in order."""
        found = {}
        for module, pair in self.reference.modules.items():
            sizes = {"a": pair.rank * pair.d_in, "b": pair.rank * pair.d_out, "core": pair.rank**2}
            found[module] = sum(sizes[factor] for factor in self.factors)
        layout = self.reference.layout
        return found | {name: int(layout.sizes[layout.index[name]]) for name in self.reference.dense}

    def row(self, update: Update, segment: str) -> np.ndarray:
        """One segment of an update less the reference's, flat fp32. NaN and Inf stay, and make the row count as 0."""
        with np.errstate(all="ignore"):
            if segment not in self.reference.modules:
                return _less(update.tensors[segment], self.reference.tensors[segment]).ravel()
            pair = self.reference.modules[segment]
            if self.factors == ("core",):
                change = _less(update.tensors[pair.b], self.reference.tensors[pair.b])
                return (np.linalg.pinv(self._fixed_b(segment)) @ change).astype(np.float32).ravel()
            names = [getattr(pair, factor) for factor in self.factors]
            changes = [_less(update.tensors[name], self.reference.tensors[name]).ravel() for name in names]
            return np.concatenate(changes)

    def check_fits(self, reach: Mapping[str, float]) -> None:
        """Raise RangeError naming a tensor whose dtype might not hold what `applied` makes of it.

        reach  segment -> bound on what a row of unit norm makes of its change: on each number, but for a core's B
        """
        layout = self.reference.layout
        for segment, most in reach.items():
            if segment in self.reference.modules and self.factors == ("core",):  # B₀ times the core
                most *= float(np.linalg.norm(self._fixed_b(segment), axis=1).max())
            for name in self._moved(segment):
                dtype = layout.dtypes[layout.index[name]]
                held = float(np.abs(_fp32(self.reference.tensors[name])).max(initial=0))
                if not held + most <= _LARGEST[dtype]:  # true for NaN
                    raise RangeError(
                        f"tensor {name!r}: holds up to {held:.4g} and may be moved by {most:.4g} with this noise, "
                        f"which does not fit {dtype}; lower the clip, or start from a float32 adapter"
                    )

    def applied(self, change: Mapping[str, np.ndarray]) -> Update:
        """The reference with `change`, one flat array a segment, added to what it releases: rounded to its dtypes.

        Raises RangeError naming a tensor that its dtype does not hold, which `check_fits` told before.
        """
        tensors = dict(self.reference.tensors)
        for segment, values in change.items():
            pair, names = self.reference.modules.get(segment), self._moved(segment)
            if pair is not None and self.factors == ("core",):
                parts = [(self._fixed_b(segment) @ values.reshape(pair.rank, pair.rank)).ravel()]
            else:
                sizes = [tensors[name].size for name in names]
                parts = np.split(values, np.cumsum(sizes)[:-1])
            for name, part in zip(names, parts, strict=True):
                layout = self.reference.layout
                moved = to_float64(tensors[name]) + part.reshape(tensors[name].shape)
                dtype = layout.dtypes[layout.index[name]]
                tensors[name] = rounded(
                    moved,
                    dtype,
                    f"tensor {name!r}: with this noise it does not fit {dtype}; lower the clip, or start from a "
                    "float32 adapter",
                )
        return self.reference.with_tensors(tensors, client_id="", num_examples=1)

    def check(self, updates: Iterable[Update]) -> None:
        """Raise LayoutError unless updates have the reference's tensors and scales."""
        for update in updates:
            who = f"client {shown(update.client_id)}"
            if difference := self.reference.layout.difference(update.layout):
                raise LayoutError(f"{who}: {difference}, compared with the reference; send the same adapter")
            if update.scaling != self.reference.scaling:
                raise LayoutError(f"{who}: its scales differ from the reference's; one sum has one scale a module")

    def _moved(self, segment: str) -> list[str]:
        """The tensors that a segment of a row moves."""
        pair = self.reference.modules.get(segment)
        if pair is None:
            return [segment]
        return [pair.b] if self.factors == ("core",) else [getattr(pair, factor) for factor in self.factors]

    def _fixed_b(self, module: str) -> np.ndarray:
        assert self.fixed is not None
        return to_float64(self.fixed.tensors[self.fixed.modules[module].b])


def statistic_of(
    reference: Update,
    method: Method | None,
    number: int = 1,
    *,
    fixed: Update | None = None,
    both_factors: bool = False,
) -> Statistic:
    """What round `number` of a method releases. Raises PrivacyError where that is no linear statistic.

    fixed         for fedsb, (B₀, A₀) as `FedSB.fixed` makes it
    both_factors  release A and B together, clipped jointly, where a method sends both: private, though their noises
                  multiply in Δ
    """
    if not reference.modules:
        if method is not None:
            raise PrivacyError(f"method: got {method.traits.name}, and the reference has no LoRA factors; leave it out")
        return Statistic(reference, ())
    if method is None:
        raise PrivacyError(
            "method: missing, and the updates have LoRA factors; say which travel: a clip of B · A with noise on "
            "factors is not private, since (t B, A / t) keeps the product and moves the factors without bound"
        )
    factors = tuple(sorted(method.sends(number)))
    name = method.traits.name
    if factors == ("a", "b") and not both_factors:
        raise PrivacyError(
            f"{name}: both factors travel, and noise on both multiplies in B · A; use ffa_lora, fedsvd, rolora or "
            "fedsb, or ask for a joint clip of both with both_factors=True"
        )
    if factors == ("core",) and (fixed is None or fixed.layout != reference.layout):
        raise PrivacyError(
            f"{name}: fixed: expected the adapter (B0, A0) around the core, with the reference's tensors"
        )
    for module, pair in reference.modules.items() if name in _FROZEN_A else ():
        a = to_float64(reference.tensors[pair.a])
        if np.abs(a @ a.T - np.eye(pair.rank)).max() > _TOLERANCE:
            raise PrivacyError(
                f"{name}: module {shown(module)}: the rows of A are not orthonormal, so a clip of B is no clip of its "
                "update; start from fc.privacy.orthonormal(adapter), which holds the same model"
            )
    return Statistic(reference, factors, fixed if factors == ("core",) else None)


def orthonormal(adapter: Update) -> Update:
    """The same model with orthonormal rows of A: A = R Q by QR, B becomes B R, so that ‖Δ‖ = s ‖B‖.

    Rounded to the adapter's dtypes. Raises LayoutError for a rank above d_in.
    """
    tensors = dict(adapter.tensors)
    for module, pair in adapter.modules.items():
        if pair.rank > pair.d_in:
            raise LayoutError(f"module {shown(module)}: rank {pair.rank} exceeds d_in {pair.d_in}; lower the rank")
        q, r = np.linalg.qr(to_float64(tensors[pair.a]).T)
        for name, values in ((pair.a, q.T), (pair.b, to_float64(tensors[pair.b]) @ r.T)):
            dtype = adapter.layout.dtypes[adapter.layout.index[name]]
            tensors[name] = round_from_float64(values, dtype)
    return adapter.with_tensors(tensors)


def error_of_delta(reference: Update, factors: Sequence[str], deviation: float) -> float:
    """√E‖ΔB·A - B·A‖² summed over modules, for noise of `deviation` on each entry of the factors.

    With noise E_B and E_A: s²(τ² d_out ‖A‖² + τ² d_in ‖B‖² + τ⁴ r d_in d_out), the first term for B, the second for A,
    the third where both are noised.
    """
    total = 0.0
    for module, pair in reference.modules.items():
        a, b = (np.square(to_float64(reference.tensors[name])).sum() for name in (pair.a, pair.b))
        variance = deviation**2
        terms = [variance * pair.d_out * a] if "b" in factors else []
        terms += [variance * pair.d_in * b] if "a" in factors else []
        terms += [variance**2 * pair.rank * pair.d_in * pair.d_out] if {"a", "b"} <= set(factors) else []
        if "core" in factors:
            terms = [variance * a * b]
        total += reference.scaling[module] ** 2 * sum(terms)
    return float(np.sqrt(total))


def both_and_b(reference: Update, deviation: float) -> dict[str, float]:
    """What a joint clip of both factors costs: `error_of_delta` of both, and of B alone at the same noise."""
    return {" and ".join(factors): error_of_delta(reference, factors, deviation) for factors in (("a", "b"), ("b",))}


def _less(values: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """values - reference in fp32, from any dtype."""
    return _fp32(values) - _fp32(reference)


def _fp32(values: np.ndarray) -> np.ndarray:
    """Numbers of any dtype as fp32, exactly; NumPy takes those of bf16 for their bits."""
    return values if values.dtype == np.float32 else to_float64(values).astype(np.float32)
