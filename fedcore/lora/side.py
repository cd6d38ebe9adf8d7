"""Methods whose result does not fit the adapter, FLoRA, FedEx-LoRA and FR-LoRA: the rest lies in a side adapter.

The papers add that rest to the base weights. A base in NF4 rounds away what is smaller than a quantisation step, so
here it stays a side adapter: W is never written to, and clients add side(x) to the output of each module. Its rank
grows from round to round until it is the smaller side of Δ; `side_rank` caps it, and what the cap loses is reported.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedcore.dtypes import to_float64
from fedcore.errors import LayoutError, RuleError
from fedcore.lora.cohort import Part, from_triplets
from fedcore.lora.factor_means import factor_means, slices
from fedcore.lora.method import Method
from fedcore.lora.module import Held, Module
from fedcore.lora.stacks import dtype_of, rounded
from fedcore.lora.traits import Factors, Traits
from fedcore.numbers import keep, shown, whole
from fedcore.ops.lora_truncate import leading
from fedcore.updates import Update
from fedcore.updates.taken import refuse_taken


@dataclass(frozen=True)
class FLoRA(Method):
    """The stacked factors, [p_1 s_1 B_1, p_2 s_2 B_2, ...] and [A_1; A_2; ...], join the side adapter.

    side_rank  cap of the side adapter's rank; None keeps all of it
    seed       of the fresh A (uniform within ±1/√d_in, as PEFT draws it, of an embedding within ±1); B is 0

    Exact, for any ranks and scales. Wang et al. 2024, "FLoRA: Federated Fine-Tuning Large Language Models with
    Heterogeneous Low-Rank Adaptations", NeurIPS, §3.
    """

    side_rank: int | None = None
    seed: int = 0

    down: ClassVar[Factors | None] = ()
    traits: ClassVar[Traits] = Traits(
        name="flora",
        exact="exact",
        sense="the stack of all factors has the product Σ p_i Δ_i",
        start="from a fresh adapter (A random, B = 0) beside a side adapter that grows",
        up="r(d_out + d_in)",
        down="Σr(d_out + d_in)",
        paper="Wang et al. 2024, FLoRA: Federated Fine-Tuning LLMs with Heterogeneous Low-Rank Adaptations",
        mixed=True,
        linear=False,
        side=True,
    )

    def __post_init__(self) -> None:
        if self.side_rank is not None:
            keep(self, side_rank=whole("side_rank", self.side_rank, 1, of=self.traits.name, error=RuleError))
        keep(self, seed=whole("seed", self.seed, 0, of=self.traits.name, error=RuleError))

    def _module(self, module: Module) -> Held:
        b, _ = module.stack(module.terms())
        side = compressed(*module.target(), self.side_rank)
        draw = np.random.default_rng([self.seed, module.number, zlib.crc32(module.name.encode())])
        # a token is one number that is not 0, whatever their count
        inputs = 1 if module.clients.modules[module.name].embedding else module.d_in
        widest, bound = module.widest, 1 / np.sqrt(inputs)
        fresh = Part(np.zeros((module.d_out, widest.rank)), draw.uniform(-bound, bound, widest.a.shape), widest.scale)
        return Held(fresh, side, slices(module, fresh), side_rank=min(b.shape[1], side.rank))


@dataclass(frozen=True)
class FedExLoRA(Method):
    """The means of B and of A, as FedIT, and what they miss, Σ p_i s B_i A_i − s B̄ Ā, in the side adapter.

    side_rank  cap of the side adapter's rank; None keeps all of it

    Exact. At mixed ranks factors are padded with zeros, and clients hold their own first columns of B̄ and rows of Ā:
    what the mean of those misses is the residual, so it is exact in the mean over clients. That is not in the paper.
    The residual has the shape of the module's Δ, d_out × d_in; a layer that stores its weights transposed
    (GPT-2's Conv1D) is the client's to transpose. Singhal et al. 2024, "FedEx-LoRA: Exact Aggregation for Federated and
    Efficient Fine-Tuning of Foundation Models", arXiv 2410.09432, §4.
    """

    side_rank: int | None = None

    traits: ClassVar[Traits] = Traits(
        name="fedex_lora",
        exact="exact",
        sense="the means and the residual together are Σ p_i Δ_i",
        start="from the new A and B beside a side adapter that grows",
        up="r(d_out + d_in)",
        down="(Σr + 2r)(d_out + d_in)",
        paper="Singhal et al. 2024, FedEx-LoRA: Exact Aggregation for Federated Fine-Tuning, arXiv 2410.09432",
        mixed=True,
        linear=False,
        side=True,
    )

    def __post_init__(self) -> None:
        if self.side_rank is not None:
            keep(self, side_rank=whole("side_rank", self.side_rank, 1, of=self.traits.name, error=RuleError))

    def _module(self, module: Module) -> Held:
        mean = module.as_sent(factor_means(module))
        own = slices(module, mean)
        terms = [*module.terms(), *((-share, part) for share, part in module.starts(mean, own))]
        travels = module.stack(terms)[0].shape[1]
        side = compressed(*module.stack([*terms, *module.beside()]), self.side_rank)
        return Held(mean, side, own, side_rank=min(travels, side.rank))


@dataclass(frozen=True)
class FRLoRA(Method):
    """Every round starts from the same B₀ and A₀, and its change s (B̄ Ā − B₀ A₀) joins the side adapter.

    side_rank  cap of the side adapter's rank; None keeps all of it

    B₀ and A₀, the best rank-r part of the base weights, are the `reference`; `restart` makes them and the side adapter
    that takes them out of the base again. Not exact: B̄ Ā is the product of means. Yan et al. 2025, "Federated Residual
    Low-Rank Adaptation of Large Language Models", ICLR, §3; the start was checked against the authors' code (ours_init
    of FRLoRA/fed_global.py).
    """

    side_rank: int | None = None

    traits: ClassVar[Traits] = Traits(
        name="frlora",
        exact="no",
        sense="the product of the means of B and A",
        start="from the first round's A and B beside a side adapter that grows",
        up="r(d_out + d_in)",
        down="r(d_out + d_in)",
        paper="Yan et al. 2025, Federated Residual Low-Rank Adaptation of Large Language Models",
        side=True,
        reference=True,
    )

    def __post_init__(self) -> None:
        if self.side_rank is not None:
            keep(self, side_rank=whole("side_rank", self.side_rank, 1, of=self.traits.name, error=RuleError))

    def _module(self, module: Module) -> Held:
        if module.reference is None:
            raise LayoutError(f"the reference: module {shown(module.name)} is missing; give the adapter of the start")
        mean = Part(module.mean("b"), module.mean("a"), module.first.scale)
        terms = [(1.0, mean), (-1.0, module.reference)]
        side = compressed(*module.stack([*terms, *module.beside()]), self.side_rank)
        # clients know B₀ and A₀, and are told B̄ and Ā once: as factors of the change, not as a start
        return Held(module.reference, side)

    def restart(self, initial: Update, weights: dict[str, np.ndarray]) -> tuple[Update, Update]:
        """(the adapter that every round starts from, the side adapter of the first): from the base weights.

        initial  an adapter of the wanted modules, ranks, scales and dtypes
        weights  module -> its base weights (d_out, d_in), dequantised

        The side adapter takes out the factors as they were rounded to their dtypes, so that the model is that of the
        base. Raises LayoutError naming a module whose weights are missing or of another shape.
        """
        refuse_taken("initial", initial, "and the side adapter takes its part out of the base")
        adapter: dict[str, np.ndarray] = {}
        side: dict[str, np.ndarray] = {}
        for module, pair in initial.modules.items():
            matrix = np.asarray(weights[module], np.float64) if module in weights else None
            if matrix is None or matrix.shape != (pair.d_out, pair.d_in):
                state = "is missing" if matrix is None else f"has shape {matrix.shape}"
                raise LayoutError(
                    f"weights: module {shown(module)} {state}, expected ({pair.d_out}, {pair.d_in}); give its base "
                    "weights, dequantised"
                )
            u, values, vt = np.linalg.svd(matrix, full_matrices=False)
            root = np.sqrt(values[: pair.rank] / abs(pair.scale))
            a, b = root[:, None] * vt[: pair.rank], u[:, : pair.rank] * (root * np.sign(pair.scale))
            for name, values, share in ((pair.a, a, 1.0), (pair.b, b, -pair.scale)):
                adapter[name] = rounded(values, dtype_of(initial, name), name)
                side[name] = rounded(share * to_float64(adapter[name]), "float32", name)
        start, ones = initial.with_tensors(adapter, client_id="global"), dict.fromkeys(initial.modules, 1.0)
        return start, Update.from_tensors(side, scaling=ones, client_id="side", base=initial.base)


def compressed(b: np.ndarray, a: np.ndarray, cap: int | None) -> Part:
    """b · a as a side adapter: as it is while its rank fits, else by its SVD, without loss or at the rank `cap`."""
    most = min(b.shape[0], a.shape[1], len(a) if cap is None else cap)
    if len(a) <= most:
        return Part(b, a, 1.0)
    return from_triplets(leading(b, a, np.ones(len(a)), most))
