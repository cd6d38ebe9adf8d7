"""Methods that average factors and correct for it: HetLoRA by weights, LoRA-FAIR by a change of B."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedcore.errors import RuleError
from fedcore.lora.cohort import Part
from fedcore.lora.factor_means import slices, zero_padded
from fedcore.lora.measure import norm_of
from fedcore.lora.method import Method
from fedcore.lora.module import Held, Module
from fedcore.lora.traits import Traits
from fedcore.numbers import keep, positive


@dataclass(frozen=True)
class HetLoRA(Method):
    """Factors padded with zeros to the highest rank and averaged with weights ‖Δ_i‖ / Σ ‖Δ_j‖; clients get slices.

    Example counts do not matter, and it takes no weights: each module has its own, which the report has by client as
    `shares`. T, and so its residual, is of the plain mean Σ Δ_i / n. Scales go into B, so that they may differ. Not
    exact. Cho et al. 2024, "Heterogeneous LoRA for Federated Fine-tuning of On-Device Foundation Models", EMNLP, §4
    (zero-padding, sparsity-weighted aggregation, truncation); the clients' self-pruning is theirs to do: any rank is
    taken here.
    """

    traits: ClassVar[Traits] = Traits(
        name="hetlora",
        exact="no",
        sense="the product of the weighted means of padded B and A",
        start="from the first columns of B and rows of A at its own rank",
        up="r(d_out + d_in)",
        down="r(d_out + d_in)",
        paper="Cho et al. 2024, Heterogeneous LoRA for Federated Fine-tuning of On-Device Foundation Models",
        mixed=True,
        linear=False,
        weighted=False,
    )

    def _module(self, module: Module) -> Held:
        norms = {row: abs(p.scale) * norm_of(p.b, p.a) for row, p in module.present.items()}
        total = sum(norms.values())
        shares = {row: norm / total if total else 1 / len(norms) for row, norm in norms.items()}
        mean, clients = zero_padded(module, shares), module.clients.cohort.client_ids
        return Held(
            mean,
            own=slices(module, mean),
            details={"shares": {clients[row]: share for row, share in shares.items()}},
        )


@dataclass(frozen=True)
class LoRAFAIR(Method):
    """The mean of A, and the mean of B with the correction that brings B · A closest to Σ p_i B_i A_i.

    regularization   λ of ‖ΔB‖²; above 0

    B = B̄ + (Σ p_i B_i A_i − B̄ Ā) Āᵀ (Ā Āᵀ + λ I)⁻¹, the minimum of ‖Σ p_i B_i A_i − (B̄ + ΔB) Ā‖² + λ ‖ΔB‖². Bian et al.
    2025, "LoRA-FAIR: Federated LoRA Fine-Tuning with Aggregation and Initialization Refinement", ICCV, §4. The paper
    leaves open how likeness is measured and searches by gradient steps; with the squared Frobenius norm the minimum has
    this closed form.
    """

    regularization: float = 0.01

    traits: ClassVar[Traits] = Traits(
        name="lora_fair",
        exact="no",
        sense="the closest that B can come with the mean of A and the regularisation",
        start="from the mean of A and the corrected B",
        up="r(d_out + d_in)",
        down="r(d_out + d_in)",
        paper="Bian et al. 2025, LoRA-FAIR: Federated LoRA Fine-Tuning with Aggregation and Initialization Refinement",
        linear=False,
    )

    def __post_init__(self) -> None:
        known = positive("regularization", self.regularization, of=self.traits.name, error=RuleError)
        keep(self, regularization=known)

    def _module(self, module: Module) -> Held:
        a, mean, scale = module.mean("a"), module.mean("b"), module.first.scale
        b_all, a_all = module.stack([*module.terms(), (-1.0, Part(mean, a, scale))])
        gram = a @ a.T + self.regularization * np.eye(len(a))
        step = np.linalg.solve(gram, (b_all @ (a_all @ a.T)).T).T / scale
        return Held(Part(mean + step, a, scale))
