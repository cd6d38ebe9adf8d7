"""How large each client's update is, and which factors hide it: checked before any rule sees a distance.

A client chooses the gauge of its factors (B M, M⁻¹ A) and may add terms that cancel, (M b)(M a) − (M b)(M a). Neither
changes Δ, but what is computed from factors rounds in proportion to P = Σ_j ‖b_j‖‖a_j‖ over the rank-one terms, which
can be any number of times ‖Δ‖. So no client's factors go further unless P ≤ RATIO · ‖Δ‖. Others are rebuilt: thin QR of
B and of Aᵀ and the SVD of the r × r core, all in fp64, give factors whose terms are orthogonal, P = Σ σ ≤ √r ‖Δ‖, and
from then on Δ_i is their product. Householder QR rounds column by column (Higham 2002, Accuracy and Stability of
Numerical Algorithms, §19.3), so that step is off by at most (d_in + d_out + r²) u P.

Where even that is above TOLERANCE · (‖Δ_i‖ + the median of ‖Δ_j‖ over the clients), the client's Δ is not defined in
fp64 and the client is refused as one that sent NaN would be. A factor of zeros has P = 0 and passes, whatever the other
one holds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from fedcore.errors import NonFiniteError
from fedcore.lora.reading import Terms
from fedcore.lora.stacks import Adapter, read_factors
from fedcore.ops.lora_cores import Grams
from fedcore.rules.statistics import UNIT

#: the largest P / ‖Δ‖ of factors that are used as they were sent; at or below it, a Gram of factors is safe
RATIO = 32.0
#: the largest rounding of Δ_i, against ‖Δ_i‖ and the typical ‖Δ_j‖, that leaves it defined
TOLERANCE = 2.0**-20


class Measure(NamedTuple):
    """Of each module and row (clients, then the reference if there is one).

    square     (modules, rows) ‖Δ‖²
    rounding   (modules, rows) how far, as a norm, Δ can be from the exact product of the factors that were sent
    rebuilt    (modules, rows) whether the factors hide Δ and are rebuilt wherever they are read
    """

    square: np.ndarray
    rounding: np.ndarray
    rebuilt: np.ndarray

    @classmethod
    def empty(cls, modules: int, rows: int) -> Measure:
        """Nothing measured yet."""
        shape = (modules, rows)
        return cls(np.zeros(shape), np.zeros(shape), np.zeros(shape, bool))

    def take(self, m: int, row: int, b: np.ndarray, a: np.ndarray) -> None:
        """Measure one row's factors of one module: b (d_out, r) and a (r, d_in) in fp64, its scale in b."""
        square, terms = product_size(b, a)
        self.rounding[m, row] = rounding_of(b, a) * terms
        if hides(square, terms):
            self.rebuilt[m, row] = True
            square = product_norm(b, a)[0] ** 2
        self.square[m, row] = square

    def take_terms(self, m: int, terms: Terms, grams: Grams | None) -> None:
        """Measure every row of one module from its terms, and from their Grams where somebody has made them.

        Grams in fp32 tell of nearly every row that P is well below RATIO ‖Δ‖; the others are measured in fp64.
        """
        for row, (start, stop) in enumerate(pairwise(terms.starts.tolist())):
            if grams is None or not self._take_grams(m, row, terms, slice(start, stop), grams):
                self.take(m, row, *terms.row(row))

    def _take_grams(self, m: int, row: int, terms: Terms, own: slice, grams: Grams) -> bool:
        gram_b, gram_a = grams.b[own, own].astype(np.float64), grams.a[own, own].astype(np.float64)
        scale = terms.scale[own]
        square = float(scale @ (gram_b * gram_a) @ scale)
        size = float(np.sqrt(gram_b.diagonal() * gram_a.diagonal()) @ np.abs(scale))
        surely = square - 2 * (grams.slack_b + grams.slack_a) * size**2
        if not size <= RATIO * np.sqrt(max(surely, 0.0)):
            return False
        self.square[m, row] = square
        self.rounding[m, row] = (len(terms.b) + terms.a.shape[1] + len(scale) ** 2) * UNIT * size
        return True


def product_size(b: np.ndarray, a: np.ndarray) -> tuple[float, float]:
    """(‖b a‖², P) from the Grams of b (d_out, R) and a (R, d_in); the first is off by `gram_rounding` P² at most."""
    gram_b, gram_a = b.T @ b, a @ a.T
    terms = float(np.sqrt(gram_b.diagonal()) @ np.sqrt(gram_a.diagonal()))
    return float((gram_b * gram_a).sum()), terms


def product_norm(b: np.ndarray, a: np.ndarray) -> tuple[float, float]:
    """(‖b a‖, bound of its error) by thin QR of both: the error grows with P and not with its square."""
    r_b, r_a = np.linalg.qr(b).R, np.linalg.qr(a.T).R
    norm = float(np.linalg.norm(r_b @ r_a.T))
    terms = float(np.linalg.norm(b, axis=0) @ np.linalg.norm(a, axis=1))
    return norm, rounding_of(b, a) * terms


def norm_of(b: np.ndarray, a: np.ndarray) -> float:
    """‖b a‖ from Grams, or by QR where their rounding may change it by over TOLERANCE / 2; 0 below QR's rounding."""
    square, terms = product_size(b, a)
    if gram_rounding(b, a) * terms**2 <= TOLERANCE * square:
        return float(np.sqrt(square))
    norm, bound = product_norm(b, a)
    return norm if norm > bound else 0.0


def hides(square: float, terms: float) -> bool:
    """Whether terms of that size, P, hide a product whose ‖·‖² their Grams make out to be `square`; NaN hides too."""
    return not terms <= RATIO * np.sqrt(max(square, 0.0))


def change_norm(client: tuple[np.ndarray, np.ndarray], reference: tuple[np.ndarray, np.ndarray]) -> tuple[float, float]:
    """(‖b a − b° a°‖, bound of its error) of two factor pairs (b, a) and (b°, a°).

    At one rank it is tried as [b − b°, b°] · [a; a − a°], whose terms are as small as the change where a client moved
    a little; where those terms cancel too, and at other ranks, QR of the stacked factors decides.
    """
    (b, a), (b_ref, a_ref) = client, reference
    if len(a) == len(a_ref):
        step_b, step_a = b - b_ref, a - a_ref
        b_2, a_2 = np.hstack((step_b, b_ref)), np.vstack((a, step_a))
        square, terms = product_size(b_2, a_2)
        if not hides(square, terms):
            # what is left out: b − b° and a − a° are rounded, by u ‖b‖‖a‖ and the like, which `rounding` holds
            return float(np.sqrt(square)), rounding_of(b_2, a_2) * RATIO * terms
    return product_norm(np.hstack((b, -b_ref)), np.vstack((a, a_ref)))


def rounding_of(b: np.ndarray, a: np.ndarray) -> float:
    """(d_in + d_out + R²) u: more than a product by QR is off by, in units of P."""
    return (b.shape[0] + a.shape[1] + a.shape[0] ** 2) * UNIT


def gram_rounding(b: np.ndarray, a: np.ndarray) -> float:
    """(d_in + d_out + 4 R + 8) u: more than ‖b a‖² from Grams is off by, in units of P².

    d_in and d_out are the lengths of the inner products; no entry of their product passes more than 4 R additions where
    it is added up by rows or blocks (Higham 2002, Accuracy and Stability of Numerical Algorithms, §3.1 and §4.2). R
    independent terms have P² ≈ R ‖b a‖²: unlike RATIO, this leaves a large cohort to its Grams.
    """
    return (b.shape[0] + a.shape[1] + 4 * a.shape[0] + 8) * UNIT


def rebuild(b: np.ndarray, a: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Factors of the same product with orthogonal terms, largest first, as many as min(r, d_in, d_out)."""
    q_b, r_b = np.linalg.qr(b)
    q_a, r_a = np.linalg.qr(a.T)
    u, values, vt = np.linalg.svd(r_b @ r_a.T, full_matrices=False)
    root = np.sqrt(values)
    return q_b @ (u * root), (root[:, None] * vt) @ q_a.T


def rebuild_rows(terms: Terms, hiding: np.ndarray) -> Terms:
    """The same terms in fp64, rows that hide their product rebuilt."""
    factors = [rebuild(*terms.row(i)) if hides else terms.row(i) for i, hides in enumerate(hiding)]
    starts = np.cumsum([0, *(len(a) for _, a in factors)])
    b, a = np.hstack([b for b, _ in factors]), np.vstack([a for _, a in factors])
    return Terms(b, a, np.ones(len(a)), starts)


def measure(
    updates: Sequence[Adapter],
    modules: Sequence[str],
    names: Sequence[str],
    clients: int,
    walk: Iterable[str] | None = None,
) -> Measure:
    """Measure the factors of checked updates, the first `clients` of which are clients.

    `walk` gives the modules in their order, where somebody wants to see them go by.

    Raises NonFiniteError, with the row, for a client or reference that sent NaN or Inf, or whose factors cancel so that
    their product is not defined in fp64; it names the client and the tensor or module.
    """
    found = Measure.empty(len(modules), len(updates))
    for m, module in enumerate(modules if walk is None else walk):
        for row, update in enumerate(updates):
            found.take(m, row, *read_factors(update, module, row if row < clients else -1, names[row]))
    refuse_cancelling(found, modules, names, clients)
    return found


def broken_factors(
    updates: Sequence[Adapter], modules: Sequence[str], names: Sequence[str], walk: Iterable[str]
) -> dict[int, NonFiniteError]:
    """What `measure` would raise of each client, one left out after the other: row -> error; all rows are clients'."""
    found, broken = Measure.empty(len(modules), len(updates)), {}
    for m, module in enumerate(walk):
        for row, update in enumerate(updates):
            if row not in broken:
                try:
                    found.take(m, row, *read_factors(update, module, row, names[row]))
                except NonFiniteError as error:
                    broken[row] = error
    left = [row for row in range(len(updates)) if row not in broken]
    # each that leaves changes what is typical
    while left and (next_one := _cancelling(found, modules, names, left, len(updates))):
        broken[next_one.row] = next_one
        left.remove(next_one.row)
    return broken


def refuse_cancelling(found: Measure, modules: Sequence[str], names: Sequence[str], clients: int) -> None:
    if error := _cancelling(found, modules, names, range(len(names)), clients):
        raise error


def _cancelling(
    found: Measure, modules: Sequence[str], names: Sequence[str], rows: Sequence[int], clients: int
) -> NonFiniteError | None:
    """The error of the first of `rows` whose factors cancel, judged among the clients of them."""
    norms, rounding = np.sqrt(found.square.sum(0)), np.linalg.norm(found.rounding, axis=0)
    typical = float(np.median(norms[[row for row in rows if row < clients]]))
    for i in rows:
        if rounding[i] > TOLERANCE * (norms[i] + typical):
            module = modules[int(found.rounding[:, i].argmax())]
            return NonFiniteError(
                f"{names[i]}: module {module!r}: its factors cancel: their product rounds by {rounding[i]:.3g} beside "
                f"a norm of {norms[i]:.3g}, so the update is not defined in fp64; {_remedy(i, clients)}",
                i,
            )
    return None


def _remedy(row: int, clients: int) -> str:
    return "exclude that client or have it trained again" if row < clients else "repair the reference"
