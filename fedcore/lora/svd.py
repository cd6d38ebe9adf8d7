"""Methods that go through the singular value decomposition of Δ: FlexLoRA, raFLoRA, FedSVD.

Δ is never formed: the triplets come from the stacked factors (see fedcore.ops.lora_truncate).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedcore.errors import LayoutError, RuleError
from fedcore.lora.cohort import Part
from fedcore.lora.factor_means import padded_mean
from fedcore.lora.method import Method
from fedcore.lora.module import Held, Module
from fedcore.lora.traits import Factors, Traits
from fedcore.ops.lora_truncate import balanced, leading
from fedcore.updates.layout import shown


@dataclass(frozen=True)
class FlexLoRA(Method):
    """The best approximation of rank r to T = Σ p_i s_i B_i A_i, for each client at its own rank.

    rank            of the global adapter; None is the highest among the clients
    error_feedback  keep what the truncation loses as a side adapter, and count it in the next round's T: nothing is
                    lost, and the model that clients hold is T itself

    Best rank r in the Frobenius norm, whatever the gauge. Bai et al. 2024, "Federated Fine-tuning of Large Language
    Models under Heterogeneous Tasks and Client Resources", NeurIPS, §3; error feedback is not in the paper (Seide et
    al. 2014, "1-Bit Stochastic Gradient Descent", Interspeech, §2).
    """

    rank: int | None = None
    error_feedback: bool = False

    traits: ClassVar[Traits] = Traits(
        name="flexlora",
        exact="best rank",
        sense="the closest product of the client's rank; exact with error_feedback",
        start="from the truncation at its own rank",
        up="r(d_out + d_in)",
        down="r(d_out + d_in)",
        paper="Bai et al. 2024, Federated Fine-tuning of LLMs under Heterogeneous Tasks and Client Resources",
        mixed=True,
        linear=False,
        side=True,
    )

    def __post_init__(self) -> None:
        if self.rank is not None and (not isinstance(self.rank, int) or self.rank < 1):
            raise RuleError(f"flexlora: got rank {self.rank!r}, expected a whole number of at least 1")

    def _module(self, module: Module) -> Held:
        return truncated(module, *module.target(), self.rank, self.error_feedback)


@dataclass(frozen=True)
class RaFLoRA(Method):
    """Rank-partitioned aggregation: each slice of ranks is averaged over the clients that have it, then truncated.

    With the clients' ranks r_(1) < r_(2) < ... as bounds, slice h of columns of B_i and rows of A_i is weighted by p_i
    over the sum of p_j of the clients with r_j ≥ r_(h), so that directions that few clients hold are not thinned out by
    those that cannot hold them (rank collapse). Clients start from the best approximation at their own rank. At one
    rank this is FlexLoRA. Not Σ p_i Δ_i, on purpose, and dependent on the gauge within a client. Wu et al. 2026,
    "Preventing Rank Collapse in Federated Low-Rank Adaptation with Client Heterogeneity", arXiv 2602.13486, §5; written
    from its description, not checked against code of theirs.
    """

    traits: ClassVar[Traits] = Traits(
        name="raflora",
        exact="no",
        sense="each slice of ranks is a mean over the clients that have it",
        start="from the truncation at its own rank",
        up="r(d_out + d_in)",
        down="r(d_out + d_in)",
        paper="Wu et al. 2026, Preventing Rank Collapse in Federated Low-Rank Adaptation, arXiv 2602.13486",
        mixed=True,
        linear=False,
    )

    def _module(self, module: Module) -> Held:
        terms, start = [], 0
        shares, present = module.clients.shares, module.present
        for stop in sorted({part.rank for part in present.values()}):
            having = {row: part for row, part in present.items() if part.rank >= stop}
            weight = float(sum(shares[row] for row in having))
            terms += [
                (float(shares[row]) / weight, Part(part.b[:, start:stop], part.a[start:stop], part.scale))
                for row, part in having.items()
            ]
            start = stop
        return truncated(module, *module.stack(terms), None, False)


@dataclass(frozen=True)
class FedSVD(Method):
    """A is frozen and B averaged, as in FFA-LoRA; every few rounds both are factorised anew from the SVD of B · A.

    every   rounds between factorisations

    With B · A = U Σ Vᵀ, A becomes Vᵀ, whose rows are orthonormal, and B becomes U Σ. Exact. Lee et al. 2025, "FedSVD:
    Adaptive Orthogonalization for Private Federated Learning with LoRA", NeurIPS, §3.
    """

    every: int = 1

    cycle: ClassVar[tuple[Factors, ...]] = (("b",),)
    traits: ClassVar[Traits] = Traits(
        name="fedsvd",
        exact="exact",
        sense="B is linear in Δ, and the new factors have the same product",
        start="from the new B, and the new A where there is one",
        up="r·d_out",
        down="r(d_out + d_in), or r·d_out in rounds without a factorisation",
        paper="Lee et al. 2025, FedSVD: Adaptive Orthogonalization for Private Federated Learning with LoRA",
    )

    def __post_init__(self) -> None:
        if not isinstance(self.every, int) or self.every < 1:
            raise RuleError(f"fedsvd: got every = {self.every!r}, expected a number of rounds of at least 1")

    def receives(self, number: int = 1) -> Factors:
        """B, and A in rounds that factorise."""
        return ("b",) if number % self.every else ("a", "b")

    def _module(self, module: Module) -> Held:
        part = padded_mean(module)
        if module.number % self.every:
            return Held(part)
        found = leading(part.b, part.a, np.ones(part.rank), part.rank)
        return Held(part._replace(b=found.left * found.values, a=found.right))


def truncated(module: Module, b: np.ndarray, a: np.ndarray, rank: int | None, keep: bool) -> Held:
    """The best approximations of b · a: at `rank` (None: the highest among the clients), and at each client's own.

    keep: what the one at `rank` loses becomes the side adapter. Clients of another rank then hold, beside it, less.
    """
    first, rank = module.first, module.rank if rank is None else rank
    if rank > min(module.d_out, module.d_in):
        raise LayoutError(
            f"module {shown(module.name)}: got rank {rank}, expected at most {min(module.d_out, module.d_in)}, the "
            "smaller side of its Δ; ask for a lower rank"
        )
    others = {row: (part.rank, part.scale) for row, part in module.present.items()}
    scale = next((s for r, s in others.values() if r == rank), first.scale)
    wanted = [(rank, scale), *dict.fromkeys(others.values())]
    triplets = leading(b, a, np.ones(len(a)), len(a) if keep else max(r for r, _ in wanted))
    found = {key: balanced(triplets, *key) for key in wanted}
    parts = {key: Part(result.b, result.a, key[1]) for key, result in found.items()}
    chosen = wanted[0]
    own = {row: parts[key] for row, key in others.items() if key != chosen}
    if not keep:
        return Held(parts[chosen], own=own)
    values = triplets.values
    lost = values > values[0] * len(values) * np.finfo(np.float64).eps
    lost[:rank] = False
    if not lost.any():
        return Held(parts[chosen], own=own)
    side = Part(triplets.left[:, lost] * values[lost], triplets.right[lost], 1.0)
    return Held(parts[chosen], side, own, side_rank=side.rank)
