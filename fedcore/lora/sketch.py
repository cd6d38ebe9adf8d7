"""Near-optimal Δ from linear sketches, which a masked sum can carry: randomised range finder, one pass or two.

A client sends Y_i = s_i B_i (A_i Ω), and Z_i = (Ψ s_i B_i) A_i with public Gaussian Ω (d_in, q) and Ψ (l, d_out). Both
are linear in Δ_i, so their weighted sums are the sketches of Δ = Σ p_i Δ_i, and no server need see a client's own.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from fedcore.errors import LayoutError, RuleError
from fedcore.lora.cohort import Part
from fedcore.lora.messages import as_float32, check_sum, dense_sums, mean_adapter, parts_for, read_dense, whose
from fedcore.lora.method import Method
from fedcore.lora.module import Held, Module
from fedcore.lora.svd import truncated
from fedcore.lora.traits import Traits
from fedcore.numbers import keep, shown, whole
from fedcore.ops.lora_truncate import balanced, leading
from fedcore.updates import LoraPair, Update

#: columns of Ω for each of the wanted ranks, where nobody says how many
TIMES = 4
#: sketches travel as fp32
_ITEMSIZE = 4


@dataclass(frozen=True)
class RandomizedSketch(Method):
    """The best rank r of Q Qᵀ Δ (two passes) or of Q (Ψ Q)⁺ Ψ Δ (one pass), with Q an orthonormal basis of Δ Ω.

    size    q, columns of Ω, at least r; more come closer to the best rank r. None: 4 r. At most the smaller side of Δ
            is used
    passes  1: clients send Y and Z, of l = 2 q + 1 rows. 2: they send Y, get Q, and send Qᵀ Δ_i: closer, one more trip
    seed    of Ω and Ψ, public, other ones in each round and module

    The report has `best`, the residual of the best rank r, to show what sketching costs; it is known here, where the
    factors are, and not under masks, where `message`, `bases` and `finish` do the same from sums. Two passes: Halko,
    Martinsson and Tropp 2011, "Finding Structure with Randomness", SIAM Review 53(2), algorithms 4.1 and 5.1. One pass:
    Tropp, Yurtsever, Udell and Cevher 2017, "Practical Sketching Algorithms for Low-Rank Matrix Approximation", SIAM J.
    Matrix Anal. Appl. 38(4), §4 and §6, which advises l = 2 q + 1 for real matrices.
    """

    size: int | None = None
    passes: Literal[1, 2] = 1
    seed: int = 0

    traits: ClassVar[Traits] = Traits(
        name="randomized_sketch",
        exact="no",
        sense="near the closest product of the client's rank, and nearer with more columns or a second pass",
        start="from the truncation at its own rank",
        up="q·d_out + (2q + 1)d_in, or q(d_out + d_in) in two passes",
        down="r(d_out + d_in), and q·d_out for two passes",
        paper="Halko et al. 2011, Finding Structure with Randomness; Tropp et al. 2017, Practical Sketching Algorithms",
        mixed=True,
    )

    def __post_init__(self) -> None:
        if self.size is not None:
            keep(self, size=whole("size", self.size, 1, of=self.traits.name, error=RuleError))
        keep(self, seed=whole("seed", self.seed, 0, of=self.traits.name, error=RuleError))
        keep(self, passes=whole("passes", self.passes, 1, 2, of=self.traits.name, error=RuleError))

    def traffic(self, pair: LoraPair, itemsize: int, number: int = 1, rank: int | None = None) -> tuple[int, int]:
        """Sketches up, in fp32; the truncated adapter down, and Q where there are two passes."""
        q, rows = self._sizes("", pair.d_out, pair.d_in, pair.rank if rank is None else rank)
        up = q * pair.d_out + (rows if self.passes == 1 else q) * pair.d_in
        down = itemsize * pair.rank * (pair.d_out + pair.d_in) + (_ITEMSIZE * q * pair.d_out if self.passes == 2 else 0)
        return _ITEMSIZE * up, down

    def matrices(self, module: str, number: int, d_out: int, d_in: int, rank: int) -> tuple[np.ndarray, np.ndarray]:
        """Public (Ω (d_in, q), Ψ (l, d_out)) of a module of that rank and a round, standard Gaussian.

        Raises LayoutError naming a module whose rank is above `size`.
        """
        q, rows = self._sizes(module, d_out, d_in, rank)
        draw = np.random.default_rng([self.seed, number, zlib.crc32(module.encode())])
        return draw.standard_normal((d_in, q)), draw.standard_normal((rows, d_out))

    def message(
        self, update: Update, start: Update, number: int = 1, bases: Mapping[str, np.ndarray] | None = None
    ) -> dict[str, np.ndarray]:
        """The sketches of one client, in fp32; `bases` are what `bases` gave, for the message of the second pass.

        Raises as `Method.message`, RuleError also for `bases` where there is one pass, and LayoutError naming a module
        whose rank is above `size`.
        """
        if (bases is not None) and self.passes == 1:
            raise RuleError("randomized_sketch: got bases with passes = 1; they are for the second of two passes")
        found = {} if bases is not None else read_dense(update, start)
        made: dict[str, np.ndarray] = {}
        for name, pair, part in parts_for(self, update, start):
            if bases is not None:
                made[f"{name}.core"] = _core(part, bases[name])
                continue
            omega, psi = self.matrices(name, number, pair.d_out, pair.d_in, pair.rank)
            made[f"{name}.range"] = _range(part, omega)
            if self.passes == 1:
                made[f"{name}.corange"] = _corange(part, psi)
        return found | {key: as_float32(values, key, whose(update)) for key, values in made.items()}

    def bases(self, sums: Mapping[str, np.ndarray], start: Update) -> dict[str, np.ndarray]:
        """module -> Q (d_out, q), values of fp32, for clients' second messages, from the sum of the first."""
        found = {}
        for name, pair in start.modules.items():
            q, _ = self._sizes(name, pair.d_out, pair.d_in, pair.rank)
            found[name] = _basis(check_sum(sums, f"{name}.range", (pair.d_out, q)))
        return found

    def finish(
        self,
        sums: Mapping[str, np.ndarray],
        weight: float,
        start: Update,
        *,
        side: Update | None = None,
        number: int = 1,
    ) -> tuple[Update, Update | None]:
        """As `Method.finish`; with two passes `sums` holds the sums of both messages."""
        tensors = dense_sums(sums, weight, start)
        for name, pair in start.modules.items():
            q, rows = self._sizes(name, pair.d_out, pair.d_in, pair.rank)
            basis = _basis(check_sum(sums, f"{name}.range", (pair.d_out, q)))
            if self.passes == 1:
                _, psi = self.matrices(name, number, pair.d_out, pair.d_in, pair.rank)
                core = _solved(psi, basis, check_sum(sums, f"{name}.corange", (rows, pair.d_in)))
            else:
                core = check_sum(sums, f"{name}.core", (q, pair.d_in))
            triplets = leading(basis, core / weight, np.ones(q), pair.rank)
            found = balanced(triplets, pair.rank, pair.scale)
            tensors |= {pair.b: found.b, pair.a: found.a}
        return mean_adapter(tensors, start), None

    def _module(self, module: Module) -> Held:
        sizes = module.d_out, module.d_in, module.rank
        omega, psi = self.matrices(module.name, module.number, *sizes)
        basis = _basis(_mean(module, "range", lambda part: _range(part, omega)))
        if self.passes == 1:
            core = _solved(psi, basis, _mean(module, "corange", lambda part: _corange(part, psi)))
        else:
            core = _mean(module, "core", lambda part: _core(part, basis))
        found = truncated(module, basis, core)
        b, a = module.target()
        best = leading(b, a, np.ones(len(a)), module.rank)
        return Held(
            found.adapter, own=found.own, details={"best": best.lost / best.norm if best.norm > best.noise else 0.0}
        )

    def _sizes(self, module: str, d_out: int, d_in: int, rank: int) -> tuple[int, int]:
        q = min(TIMES * rank if self.size is None else self.size, d_out, d_in)
        if q < rank:
            raise LayoutError(
                f"randomized_sketch: module {shown(module)} has rank {rank}, and {q} columns cannot hold it; expected "
                f"size at least {rank}, or none for {TIMES} times the rank"
            )
        return q, min(2 * q + 1, d_out)


def _range(part: Part, omega: np.ndarray) -> np.ndarray:
    """Y (d_out, q)."""
    return (part.scale * part.b) @ (part.a @ omega)


def _corange(part: Part, psi: np.ndarray) -> np.ndarray:
    """Z (l, d_in)."""
    return (psi @ (part.scale * part.b)) @ part.a


def _core(part: Part, basis: np.ndarray) -> np.ndarray:
    """Qᵀ Δ_i (q, d_in)."""
    return (basis.T @ (part.scale * part.b)) @ part.a


def _basis(y: np.ndarray) -> np.ndarray:
    """Q (d_out, q), rounded to fp32 as it travels, in fp64, from Σ Y."""
    return np.linalg.qr(y).Q.astype(np.float32).astype(np.float64)


def _solved(psi: np.ndarray, basis: np.ndarray, z: np.ndarray) -> np.ndarray:
    """(Ψ Q)⁺ Σ Z."""
    return np.linalg.lstsq(psi @ basis, z, rcond=None)[0]


def _mean(module: Module, what: str, sketch: Callable[[Part], np.ndarray]) -> np.ndarray:
    """Σ p_i of one sketch of the clients, each rounded to fp32 as it travels, in fp64; and the reference's share."""
    rows, total = [*module.present, -1], np.zeros(())
    for row, (share, part) in zip(rows, module.terms(), strict=False):
        who = "the reference" if row < 0 else module.clients.names[row]
        total = total + share * as_float32(sketch(part), f"{module.name}.{what}", who, row).astype(np.float64)
    return total
