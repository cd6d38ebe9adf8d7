"""Near-optimal Δ from linear sketches, which a masked sum can carry: randomised range finder, one pass or two.

A client sends Y_i = s_i B_i (A_i Ω), and Z_i = (Ψ s_i B_i) A_i with public Gaussian Ω (d_in, q) and Ψ (l, d_out). Both
are linear in Δ_i, so their weighted sums are the sketches of Δ = Σ p_i Δ_i, and no server need see a client's own.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from fedcore.errors import RuleError
from fedcore.lora.cohort import Part
from fedcore.lora.method import Method
from fedcore.lora.module import Held, Module
from fedcore.lora.svd import truncated
from fedcore.lora.traits import Traits
from fedcore.updates import LoraPair

#: sketches travel as fp32
_ITEMSIZE = 4


@dataclass(frozen=True)
class RandomizedSketch(Method):
    """The best rank r of Q Qᵀ Δ (two passes) or of Q (Ψ Q)⁺ Ψ Δ (one pass), with Q an orthonormal basis of Δ Ω.

    size    q, columns of Ω; more come closer to the best rank r. At most the smaller side of Δ is used
    passes  1: clients send Y and Z, of l = 2 q + 1 rows. 2: they send Y, get Q, and send Qᵀ Δ_i: closer, one more trip
    seed    of Ω and Ψ, public, other ones in each round and module

    The report has `best`, the residual of the best rank r, to show what sketching costs; it is known here, where the
    factors are, and not under masks. Two passes: Halko, Martinsson and Tropp 2011, "Finding Structure with Randomness",
    SIAM Review 53(2), algorithms 4.1 and 5.1. One pass: Tropp, Yurtsever, Udell and Cevher 2017, "Practical Sketching
    Algorithms for Low-Rank Matrix Approximation", SIAM J. Matrix Anal. Appl. 38(4), §4 and §6, which advises
    l = 2 q + 1 for real matrices.
    """

    size: int = 64
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
        if not isinstance(self.size, int) or self.size < 1:
            raise RuleError(f"randomized_sketch: got size {self.size!r}, expected a whole number of at least 1")
        if self.passes not in (1, 2):
            raise RuleError(f"randomized_sketch: got passes {self.passes!r}, expected 1 or 2")

    def traffic(self, pair: LoraPair, itemsize: int, number: int = 1) -> tuple[int, int]:
        """Sketches up, in fp32; the truncated adapter down, and Q where there are two passes."""
        q, rows = self._sizes(pair.d_out, pair.d_in)
        up = q * pair.d_out + (rows if self.passes == 1 else q) * pair.d_in
        down = itemsize * pair.rank * (pair.d_out + pair.d_in) + (_ITEMSIZE * q * pair.d_out if self.passes == 2 else 0)
        return _ITEMSIZE * up, down

    def matrices(self, module: str, number: int, d_out: int, d_in: int) -> tuple[np.ndarray, np.ndarray]:
        """Public (Ω (d_in, q), Ψ (l, d_out)) of a module and round, standard Gaussian."""
        q, rows = self._sizes(d_out, d_in)
        draw = np.random.default_rng([self.seed, number, zlib.crc32(module.encode())])
        return draw.standard_normal((d_in, q)), draw.standard_normal((rows, d_out))

    def first_message(self, part: Part, omega: np.ndarray, psi: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """What one client sends first: (Y (d_out, q), Z (l, d_in)), Z with one pass alone."""
        b = part.scale * part.b
        return b @ (part.a @ omega), (psi @ b) @ part.a if self.passes == 1 else None

    def second_message(self, part: Part, basis: np.ndarray) -> np.ndarray:
        """What it sends in the second pass: Qᵀ Δ_i (q, d_in)."""
        return (basis.T @ (part.scale * part.b)) @ part.a

    def _module(self, module: Module) -> Held:
        omega, psi = self.matrices(module.name, module.number, module.d_out, module.d_in)
        terms = module.terms()
        first = [(share, self.first_message(part, omega, psi)) for share, part in terms]
        basis = np.linalg.qr(np.sum([share * y for share, (y, _) in first], axis=0)).Q
        if self.passes == 1:
            z = np.sum([share * z for share, (_, z) in first if z is not None], axis=0)
            core = np.linalg.lstsq(psi @ basis, z, rcond=None)[0]
        else:
            core = np.sum([share * self.second_message(part, basis) for share, part in terms], axis=0)
        found = truncated(module, basis, core, None, False)
        best = np.linalg.svd(_core(*module.target()), compute_uv=False)
        norm = float(np.linalg.norm(best))
        lost = float(np.linalg.norm(best[module.rank :]))
        return Held(found.adapter, own=found.own, details={"best": lost / norm if norm else 0.0})

    def _sizes(self, d_out: int, d_in: int) -> tuple[int, int]:
        q = min(self.size, d_out, d_in)
        return q, min(2 * q + 1, d_out)


def _core(b: np.ndarray, a: np.ndarray) -> np.ndarray:
    """A small matrix with the singular values of b · a."""
    return np.linalg.qr(b).R @ np.linalg.qr(a.T).R.T
