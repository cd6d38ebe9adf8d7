"""Methods that go through the singular value decomposition of Δ: FlexLoRA, raFLoRA, FedSVD.

Δ is never formed: the triplets come from the stacked factors (see fedcore.ops.lora_truncate).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedcore.errors import RuleError
from fedcore.lora.cohort import Part, from_triplets
from fedcore.lora.factor_means import padded_mean
from fedcore.lora.method import Method
from fedcore.lora.module import Held, Module
from fedcore.lora.stacks import check_fits
from fedcore.lora.traits import Factors, Traits
from fedcore.numbers import flag, keep, whole
from fedcore.ops.lora_truncate import balanced, leading

#: the smallest singular value that a side adapter keeps, against ‖T‖: twice the rounding of fp32
NEGLIGIBLE = 2.0**-23


@dataclass(frozen=True)
class FlexLoRA(Method):
    """The best approximation of rank r to T = Σ p_i s_i B_i A_i, for each client at its own rank.

    rank            the highest that anyone gets; None is the highest among the clients and the reference
    error_feedback  what T has beyond the mean of the clients' starts lies beside them as a side adapter, which the next
                    round's T counts: T is what clients hold in the mean, and at one rank what each of them holds. At
                    mixed ranks the global adapter beside it is more than T: score what clients start from

    Best rank r in the Frobenius norm, whatever the gauge; the side adapter has what rounding to the clients' dtype
    loses, too. With the clients that a rule of delta space chose, and its coefficients for weights, what its truncation
    loses is kept as well. A client without a module counts with the global adapter, so give `reference` from round 2
    on. Bai et al. 2024, "Federated Fine-tuning of Large Language Models under Heterogeneous Tasks and Client
    Resources", NeurIPS, §3; error feedback is not in the paper (Seide et al. 2014, "1-Bit Stochastic Gradient Descent",
    Interspeech, §2).
    """

    rank: int | None = None
    error_feedback: bool = False

    traits: ClassVar[Traits] = Traits(
        name="flexlora",
        exact="best rank",
        sense="the closest product of the client's rank; with error_feedback exact in the mean over clients",
        start="from the truncation at its own rank",
        up="r(d_out + d_in)",
        down="r(d_out + d_in)",
        paper="Bai et al. 2024, Federated Fine-tuning of LLMs under Heterogeneous Tasks and Client Resources",
        mixed=True,
        linear=False,
        side=True,
    )

    def __post_init__(self) -> None:
        if self.rank is not None:
            keep(self, rank=whole("rank", self.rank, 1, of=self.traits.name, error=RuleError))
        feedback = flag("error_feedback", self.error_feedback, of=self.traits.name, error=RuleError)
        keep(self, error_feedback=feedback)

    def _module(self, module: Module) -> Held:
        return truncated(module, *module.target(), self.rank, self.error_feedback)


@dataclass(frozen=True)
class RaFLoRA(Method):
    """Rank-partitioned aggregation: each slice of ranks is averaged over the clients that have it, then truncated.

    error_feedback  as in FlexLoRA: what truncation loses of the partitioned sum lies beside it and counts next round

    With the clients' ranks r_(1) < r_(2) < ... as bounds, slice h of columns of B_i and rows of A_i is weighted by p_i
    over the sum of p_j of the clients with r_j ≥ r_(h), so that directions that few clients hold are not thinned out by
    those that cannot hold them (rank collapse). Clients start from the best approximation at their own rank. At one
    rank this is FlexLoRA. Not Σ p_i Δ_i, on purpose, and dependent on the gauge within a client. Wu et al. 2026,
    "Preventing Rank Collapse in Federated Low-Rank Adaptation with Client Heterogeneity", arXiv 2602.13486, §5; written
    from its description, not checked against code of theirs; error feedback is not in the paper.
    """

    error_feedback: bool = False

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
        side=True,
    )

    def __post_init__(self) -> None:
        feedback = flag("error_feedback", self.error_feedback, of=self.traits.name, error=RuleError)
        keep(self, error_feedback=feedback)

    def _module(self, module: Module) -> Held:
        terms, start = module.beside(), 0
        shares, present = module.clients.shares, module.present
        for stop in sorted({part.rank for part in present.values()}):
            having = {row: part for row, part in present.items() if part.rank >= stop}
            weight = float(sum(shares[row] for row in having))
            terms += [
                (float(shares[row]) / weight, Part(part.b[:, start:stop], part.a[start:stop], part.scale))
                for row, part in having.items()
            ]
            start = stop
        return truncated(module, *module.stack(terms), keep=self.error_feedback)


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
        keep(self, every=whole("every", self.every, 1, of=self.traits.name, error=RuleError))

    def receives(self, number: int = 1) -> Factors:
        """B, and A in rounds that factorise."""
        return ("b",) if number % self.every else ("a", "b")

    def _module(self, module: Module) -> Held:
        part = padded_mean(module)
        if module.number % self.every:
            return Held(part)
        found = from_triplets(leading(part.b, part.a, np.ones(part.rank), part.rank))
        return Held(found._replace(scale=part.scale))


def truncated(module: Module, b: np.ndarray, a: np.ndarray, cap: int | None = None, keep: bool = False) -> Held:
    """The best approximations of b · a: for each client at its own rank, and the global one at the highest.

    cap    of every rank; None: none, and the global one has the highest of the clients and the reference
    keep   what b · a has beyond the mean of what clients start from becomes the side adapter
    """
    rank = module.rank if cap is None else cap
    check_fits(rank, module.name, module.d_out, module.d_in)
    wanted = {row: (min(part.rank, rank), part.scale) for row, part in module.present.items()}
    chosen = rank, next((scale for r, scale in wanted.values() if r == rank), module.widest.scale)
    triplets = leading(b, a, np.ones(len(a)), rank)
    parts = {}
    for key in dict.fromkeys((chosen, *wanted.values())):
        found = balanced(triplets, *key)
        parts[key] = module.as_sent(Part(found.b, found.a, key[1]))
    adapter, own = parts[chosen], {row: parts[key] for row, key in wanted.items() if key != chosen}
    if not keep:
        return Held(adapter, own=own)
    starts = [(-share, part) for share, part in module.starts(adapter, own)]
    left_b, left_a = module.stack([(1.0, Part(b, a, 1.0)), *starts])
    rest = leading(left_b, left_a, np.ones(len(left_a)), min(module.d_out, module.d_in))
    # what is smaller than the rounding of a side adapter in fp32 would only make it wider
    side = from_triplets(rest, rest.values > max(NEGLIGIBLE * triplets.norm, rest.noise))
    return Held(adapter, side if side.rank else None, own, side_rank=side.rank)
