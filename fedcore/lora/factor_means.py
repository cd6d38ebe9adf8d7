"""Methods that average factors as they are: FedIT, FFA-LoRA, RoLoRA, FedSA-LoRA.

A mean of factors is exact where one of the two is the same at all clients, Σ p_i s B_i A = s (Σ p_i B_i) A, and
otherwise depends on the gauge: (B M, M⁻¹ A) in place of (B, A) at one client changes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedcore.errors import LayoutError
from fedcore.lora.cohort import Part
from fedcore.lora.method import Method
from fedcore.lora.module import Held, Module
from fedcore.lora.traits import Factors, Traits
from fedcore.numbers import shown


@dataclass(frozen=True)
class FedIT(Method):
    """A = Σ p_i A_i and B = Σ p_i B_i: federated averaging of the factors.

    Each factor is bit for bit `ops.weighted_sum`. Not exact: (Σ p B)(Σ p A) is not Σ p B A. Zhang et al. 2024, "Towards
    Building the FederatedGPT: Federated Instruction Tuning", ICASSP, Algorithm 1.
    """

    traits: ClassVar[Traits] = Traits(
        name="fedit",
        exact="no",
        sense="the product of the means of B and A, which depends on the gauge of each client",
        start="from the new A and B",
        up="r(d_out + d_in)",
        down="r(d_out + d_in)",
        paper="Zhang et al. 2024, Towards Building the FederatedGPT",
    )

    def _module(self, module: Module) -> Held:
        return Held(Part(module.mean("b"), module.mean("a"), module.first.scale))


@dataclass(frozen=True)
class FFALoRA(Method):
    """A is frozen and the same at all clients; B = Σ p_i (s_i / s) B_i.

    Exact. Clients of a lower rank hold the first rows of A, and B_i is padded with zeros: slices of one A keep the mean
    exact, at every scale. Those clients then hold the first columns of B alone; the report says what they lack. Sun et
    al. 2024, "Improving LoRA in Privacy-preserving Federated Learning", ICLR, §4; mixed ranks are not in the paper.
    """

    cycle: ClassVar[tuple[Factors, ...]] = (("b",),)
    traits: ClassVar[Traits] = Traits(
        name="ffa_lora",
        exact="exact",
        sense="B is linear in Δ as long as nobody moves A",
        start="from the new B and the same A",
        up="r·d_out",
        down="r·d_out",
        paper="Sun et al. 2024, Improving LoRA in Privacy-preserving Federated Learning (FFA-LoRA)",
        mixed=True,
        optimizer=True,
    )

    def _module(self, module: Module) -> Held:
        part = padded_mean(module)
        return Held(part, own=slices(module, part))


@dataclass(frozen=True)
class RoLoRA(Method):
    """B trains in odd rounds and A in even ones; the other is frozen and the same at all clients.

    Exact in each round. Chen et al. 2025, "Robust Federated Finetuning of LLMs via Alternating Optimization of LoRA",
    Algorithm 1. B goes first, since A has no gradient while B is 0.
    """

    cycle: ClassVar[tuple[Factors, ...]] = (("b",), ("a",))
    traits: ClassVar[Traits] = Traits(
        name="rolora",
        exact="exact",
        sense="in each round Δ is linear in the one factor that moves",
        start="from the new factor and the other one as it was",
        up="r·d_out, then r·d_in",
        down="r·d_out, then r·d_in",
        paper="Chen et al. 2025, Robust Federated Finetuning of LLMs via Alternating Optimization of LoRA",
    )

    def _module(self, module: Module) -> Held:
        (moves,) = self.trains(module.number)
        frozen = "a" if moves == "b" else "b"
        for row, part in module.present.items():
            _check_frozen(module, row, frozen, getattr(part, frozen), getattr(module.first, frozen))
        first, mean = module.first, module.mean(moves)
        return Held(first._replace(a=mean) if moves == "a" else first._replace(b=mean))


@dataclass(frozen=True)
class FedSALoRA(Method):
    """A = Σ p_i A_i is shared; each client keeps its own B.

    Both train, A alone travels. Personal: no two clients hold the same model. `update` has B = 0, what a newcomer
    starts from; `starts` has each client's (A, B_i), and the residual is that of Σ p_i s_i B_i A. Clients of a lower
    rank hold the first rows of A; a row is the mean over the clients that have it. Guo et al. 2025, "Selective
    Aggregation for Low-Rank Adaptation in Federated Learning", ICLR, §3; mixed ranks are not in the paper.
    """

    down: ClassVar[Factors | None] = ("a",)
    traits: ClassVar[Traits] = Traits(
        name="fedsa_lora",
        exact="personal",
        sense="every client keeps its own B; what is shared is A",
        start="from the new A and its own B",
        up="r·d_in",
        down="r·d_in",
        paper="Guo et al. 2025, Selective Aggregation for Low-Rank Adaptation in Federated Learning",
        mixed=True,
    )

    def sends(self, number: int = 1) -> Factors:
        """A alone."""
        return ("a",)

    def _module(self, module: Module) -> Held:
        rank = module.rank
        total, weight = np.zeros((rank, module.d_in)), np.zeros((rank, 1))
        for row, part in module.present.items():
            total[: part.rank] += module.clients.coefficients[row].astype(np.float64) * part.a
            weight[: part.rank] += module.clients.coefficients[row].astype(np.float64)
        # rows that no client of this round has are the reference's
        a = np.where(weight > 0, total / np.where(weight > 0, weight, 1.0), module.widest.a)
        own = {row: part._replace(a=a[: part.rank]) for row, part in module.present.items()}
        fresh = Part(np.zeros((module.d_out, rank)), a, module.first.scale)
        return Held(fresh, own=own)


def padded_mean(module: Module) -> Part:
    """(Σ p_i (s_i / s) B_i padded with zeros, A): s and A of `module.widest`.

    Clients without the module count with the reference's B, or with 0. Raises LayoutError where a client's A is not
    the first rows of that A.
    """
    chosen = module.widest
    for row, part in module.present.items():
        _check_frozen(module, row, "a", part.a, chosen.a[: part.rank])
    if len(module.present) == len(module.parts) and all(
        (part.rank, part.scale) == (chosen.rank, chosen.scale) for part in module.present.values()
    ):
        return chosen._replace(b=module.mean("b"))
    b = np.zeros((module.d_out, chosen.rank))
    for share, part in module.terms():
        if part is module.reference:
            _check_frozen(module, -1, "a", part.a, chosen.a[: part.rank])
        b[:, : part.rank] += share * (part.scale / chosen.scale) * part.b
    return chosen._replace(b=b)


def factor_means(module: Module) -> Part:
    """The means of B and of A over the clients that have the module: padded with zeros where ranks or scales differ."""
    widest, present = module.widest, module.present
    if all((part.rank, part.scale) == (widest.rank, widest.scale) for part in present.values()):
        return Part(module.mean("b"), module.mean("a"), widest.scale)
    shares = {row: float(module.clients.shares[row]) for row in present}
    return zero_padded(module, {row: share / sum(shares.values()) for row, share in shares.items()})


def zero_padded(module: Module, shares: Mapping[int, float]) -> Part:
    """(Σ w_i (s_i / s) B_i, Σ w_i A_i) of factors padded with zeros to the rank of `module.widest`, whose scale is s.

    Rows of A that no client of this round has are the reference's, beside columns of zeros in B, so that they train.
    """
    widest, most = module.widest, max(part.rank for part in module.present.values())
    b, a = np.zeros((module.d_out, widest.rank)), np.array(widest.a)
    a[:most] = 0.0
    for row, part in module.present.items():
        a[: part.rank] += shares[row] * part.a
        b[:, : part.rank] += shares[row] * (part.scale / widest.scale) * part.b
    return Part(b, a, widest.scale)


def slices(module: Module, part: Part) -> dict[int, Part]:
    """row -> the first columns and rows of `part` at the client's own rank and scale, where those differ."""
    keys = {row: (own.rank, own.scale) for row, own in module.present.items()}
    made = {
        (rank, scale): module.as_sent(Part(part.b[:, :rank] * (part.scale / scale), part.a[:rank], scale))
        for rank, scale in set(keys.values()) - {(part.rank, part.scale)}
    }
    return {row: made[key] for row, key in keys.items() if key in made}


def _check_frozen(module: Module, row: int, factor: str, got: np.ndarray, expected: np.ndarray) -> None:
    """Raise LayoutError unless a factor that was frozen is, in every bit, what the others hold."""
    if got.shape == expected.shape and np.array_equal(got, expected):
        return
    who = "the reference" if row < 0 else module.clients.names[row]
    raise LayoutError(
        f"{who}: module {shown(module.name)}: {factor.upper()} is frozen in this round and differs from that of the "
        f"others; train with it frozen, or use a method that averages both (fedit, flexlora)"
    )
