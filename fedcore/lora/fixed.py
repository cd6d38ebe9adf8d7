"""Fed-SB: both factors are fixed, and a small core between them trains and travels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedcore.errors import LayoutError
from fedcore.lora.cohort import Part
from fedcore.lora.core import core_of
from fedcore.lora.method import Method
from fedcore.lora.module import Held, Module
from fedcore.lora.stacks import read_factors
from fedcore.lora.traits import Factors, Traits
from fedcore.numbers import shown
from fedcore.ops.lora_truncate import leading
from fedcore.updates import Update
from fedcore.updates.taken import refuse_taken


@dataclass(frozen=True)
class FedSB(Method):
    """Δ_i = s B₀ R_i A₀ with B₀ and A₀ fixed; the r × r cores are averaged: R = Σ p_i R_i.

    Exact, and r² numbers a module travel. Adapters are (B₀ R_i, A₀), as PEFT loads them; the `reference` is (B₀, A₀),
    as `fixed` makes it. Singhal et al. 2025, "Fed-SB: A Silver Bullet for Extreme Communication Efficiency and
    Performance in (Private) Federated LoRA Fine-Tuning", arXiv 2502.15436, §3; the paper takes B₀ and A₀ from the SVD
    of an estimate of the first full fine-tuning step.
    """

    cycle: ClassVar[tuple[Factors, ...]] = (("core",),)
    traits: ClassVar[Traits] = Traits(
        name="fedsb",
        exact="exact",
        sense="the core is linear in Δ, the factors around it never move",
        start="from the new core between the same factors",
        up="r²",
        down="r²",
        paper="Singhal et al. 2025, Fed-SB: A Silver Bullet for Extreme Communication Efficiency, arXiv 2502.15436",
        reference=True,
    )

    def _module(self, module: Module) -> Held:
        if module.reference is None:
            raise LayoutError(f"the reference: module {shown(module.name)} is missing; give the fixed factors")
        fixed, total = module.as_sent(module.reference), np.zeros((module.reference.rank,) * 2)
        dtype = module.clients.dtype(module.clients.modules[module.name].b)
        for row, part in module.present.items():
            if part.scale != module.reference.scale:
                raise LayoutError(
                    f"{module.clients.names[row]}: module {shown(module.name)} has scale {part.scale:g}, expected "
                    f"{module.reference.scale:g} like the fixed factors; train their core at their scale"
                )
            core = core_of(part, fixed, f"{module.clients.names[row]}: module {shown(module.name)}", dtype)
            total += float(module.clients.coefficients[row]) * core
        core = total / module.clients.divisor
        return Held(Part(fixed.b @ core, fixed.a, module.first.scale))

    def _untrained(self, module: Module) -> Held:
        raise LayoutError(
            f"the reference: module {shown(module.name)} is extra, no client has it; give the fixed factors of the "
            "modules that clients send"
        )

    def fixed(self, estimate: Update) -> Update:
        """(B₀, A₀) from the SVD of an adapter that estimates what training will do: B₀ = U and A₀ = Vᵀ, orthonormal."""
        refuse_taken("estimate", estimate, "so it is a part of the base and not what training does")
        tensors: dict[str, np.ndarray] = {}
        for module, pair in estimate.modules.items():
            b, a = read_factors(estimate, module, -1, "the estimate")
            found = leading(b, a, np.ones(pair.rank), pair.rank)
            tensors |= {pair.a: found.right.astype(np.float32), pair.b: found.left.astype(np.float32)}
        return Update.from_tensors(
            tensors, scaling=estimate.scaling, base=estimate.base, adapter_config=estimate.adapter_config
        )
