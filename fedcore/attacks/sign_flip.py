"""The scaled sign flip: a client sends its change reversed and enlarged (Li et al., 2019, "RSA: Byzantine-Robust
Stochastic Aggregation Methods", sign-flipping attacks)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from fedcore.attacks.attack import Attack, check_strength, copies
from fedcore.dtypes import name_of, rounded, to_float64
from fedcore.errors import LayoutError
from fedcore.numbers import keep
from fedcore.updates import Update


def sign_flip(update: Update, reference: Update, scale: float) -> Update:
    """What a poisoned client sends: reference − scale · (update − reference), in terms of what the model sees.

    A tensor in no LoRA pair is flipped as it is. A LoRA module is flipped in its Δ = s·B·A: wanted is
    Δ' = (1 + scale)·Δ_ref − scale·Δ, which has twice the rank in general. A is sent as the client trained it and

        B' = (1 + scale)·(s_ref/s)·B_ref·(A_ref·A⁺) − scale·B,

    the B' whose s·B'·A is nearest to Δ' in Frobenius norm. It is exact where the rows of A_ref lie in the span of A's:
    in the first round (B_ref = 0) and where A is frozen. Elsewhere (1 + scale)·Δ_ref·(I − A⁺A) is missing.
    (Flipping A and B each for itself would leave a term scale²·(B − B_ref)·(A − A_ref), which grows with the scale.)

    Computed in fp64 and rounded once to the tensors' dtypes. Identity, counts and scales are the client's: that is what
    the server sees. Raises LayoutError where the reference's tensors differ, ConfigError where scale is not above 0 and
    finite, RangeError where a value does not fit the dtype.
    """
    scale = check_strength("sign_flip", "scale", scale)
    if update.layout != reference.layout:
        name = _first_difference(update, reference)
        raise LayoutError(f"sign_flip: tensor {name} differs between the update and its reference, expected one layout")
    poisoned = {name: np.array(tensor) for name, tensor in update.tensors.items()}
    for name in update.dense:
        x, x_ref = to_float64(update.tensors[name]), to_float64(reference.tensors[name])
        poisoned[name] = _rounded((1 + scale) * x_ref - scale * x, update.tensors[name], name)
    for module, pair in update.modules.items():
        ratio = reference.modules[module].scale / pair.scale
        a, b = to_float64(update.tensors[pair.a]), to_float64(update.tensors[pair.b])
        a_ref, b_ref = to_float64(reference.tensors[pair.a]), to_float64(reference.tensors[pair.b])
        onto = np.linalg.lstsq(a.T, a_ref.T, rcond=None)[0].T  # (r, r): A_ref·A⁺
        flipped = (1 + scale) * ratio * (b_ref @ onto) - scale * b
        poisoned[pair.b] = _rounded(flipped, update.tensors[pair.b], pair.b)
    return update.with_tensors(poisoned)


@dataclass(frozen=True)
class SignFlip(Attack):
    """The change reversed, `scale` times as long.

    On updates each attacker reverses what it trained itself (`sign_flip`). On rows, where the attackers have none of
    their own, it is −scale · μ with the mean μ of the honest ones, as in ByzFL.
    """

    scale: float = 1.0

    def __post_init__(self) -> None:
        keep(self, scale=check_strength("sign_flip", "scale", self.scale))

    def craft(self, honest: np.ndarray, f: int, seed: int) -> np.ndarray:
        """f times −scale · μ."""
        return copies(-self.scale * honest.mean(axis=0), f)

    def against(
        self, honest: Sequence[Update], f: int, reference: Update, seed: int = 0
    ) -> Callable[[Update, int], Update]:
        """`sign_flip` of what each attacker trained; nobody else's update is looked at."""
        return lambda own, which: sign_flip(own, reference, self.scale)


def _rounded(values: np.ndarray, like: np.ndarray, name: str) -> np.ndarray:
    dtype = name_of(like.dtype)
    return rounded(values, dtype, f"sign_flip: tensor {name} does not fit {dtype}; use a smaller scale")


def _first_difference(update: Update, reference: Update) -> str:
    entries = [
        dict(zip(x.layout.names, zip(x.layout.shapes, x.layout.dtypes, strict=True), strict=True))
        for x in (update, reference)
    ]
    return next(name for name in sorted(entries[0] | entries[1]) if entries[0].get(name) != entries[1].get(name))
