"""What lora_truncate accepts as one module's factors, checked and stacked in one matrix a side; what it gives."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from fedcore.dtypes import OUT_DTYPES, name_of, to_float64
from fedcore.errors import DTypeError, NonFiniteError, ShapeError, WeightError
from fedcore.numbers import as_whole, shown
from fedcore.ops.host_numbers import host_numbers
from fedcore.ops.tensors import check_plain, is_torch


class Truncated(NamedTuple):
    """Factors of one rank, Δ ≈ scale · b · a, in fp64.

    a, b       (rank, d_in) and (d_out, rank)
    norm       ‖Δ‖ (Frobenius), 0 where it is no more than the rounding of terms that cancel
    residual   ‖Δ − scale · b · a‖ / ‖Δ‖, 0 if Δ is 0
    most       what the residual is at most, whatever was rounded
    least      no product of this rank has a residual below it
    core       how they were found: 'qr', 'gram' or 'block'
    """

    a: Any
    b: Any
    norm: float
    residual: float
    most: float
    least: float
    core: str


@dataclass(frozen=True)
class Parts:
    """One module's factors, checked but for their values.

    who      what messages begin with
    b, a     one matrix a client, or one of all terms: (d_out, r_i) and (r_i, d_in), NumPy arrays or torch tensors
    share    (R,) fp64: what each term counts
    owner    (R,) the row whose term it is: a client, or a term where factors came stacked
    """

    who: str
    b: Sequence[Any]
    a: Sequence[Any]
    share: np.ndarray
    owner: np.ndarray

    @property
    def d_out(self) -> int:
        """Rows of Δ."""
        return int(self.b[0].shape[0])

    @property
    def d_in(self) -> int:
        """Columns of Δ."""
        return int(self.a[0].shape[1])

    @property
    def device(self) -> Any:
        """The torch device of the factors; None: NumPy."""
        return self.b[0].device if is_torch(self.b[0]) else None

    @property
    def on_gpu(self) -> bool:
        """Whether the factors are tensors that lie elsewhere than in main memory."""
        return self.device is not None and self.device.type != "cpu"

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """(b (d_out, R), a (R, d_in)) in main memory: fp32 where that holds every factor, else fp64."""
        sides = [[_narrow(part) for part in side] for side in (self.b, self.a)]
        dtype = np.float64 if any(part.dtype == np.float64 for side in sides for part in side) else np.float32
        stacked = [side[0] if len(side) == 1 else np.concatenate(side, 1 - k) for k, side in enumerate(sides)]
        return stacked[0].astype(dtype, copy=False), stacked[1].astype(dtype, copy=False)

    def refuse(self, finite: np.ndarray) -> None:
        """Raise NonFiniteError for the first term of (R,) `finite` that is not, if there is one."""
        if not finite.all():
            row = int(self.owner[np.flatnonzero(~finite)[0]])
            raise NonFiniteError(f"{self.who}: row {row}: its factors hold NaN or Inf; leave that client out", row)


def checked_parts(b: Any, a: Any, coefficients: Any, who: str = "lora_truncate") -> Parts:
    """The factors of one module. Raises ShapeError, DTypeError or WeightError."""
    together = getattr(b, "ndim", 0) == 2 and getattr(a, "ndim", 0) == 2
    parts_b, parts_a = (
        [_checked(part, who, name if together else f"row {i}: {name}") for i, part in enumerate([x] if together else x)]
        for name, x in (("b", b), ("a", a))
    )
    share = host_numbers(f"{who}: coefficients", coefficients).astype(np.float64)
    ranks = [len(part) for part in parts_a]
    if not parts_b or len(parts_b) != len(parts_a):
        raise ShapeError(f"{who}: got {len(parts_b)} b and {len(parts_a)} a, expected as many, at least one")
    if share.shape != (sum(ranks) if together else len(ranks),):
        raise ShapeError(f"{who}: got coefficients {share.shape}, expected ({sum(ranks) if together else len(ranks)},)")
    for i, (part_b, part_a) in enumerate(zip(parts_b, parts_a, strict=True)):
        shapes, expected = (tuple(part_b.shape), tuple(part_a.shape)), (len(parts_b[0]), ranks[i], parts_a[0].shape[1])
        if shapes != (expected[:2], expected[1:]) or 0 in expected[::2]:
            raise ShapeError(
                f"{who}: row {i}: got b {shapes[0]} and a {shapes[1]}, expected b (d_out, r) and a "
                f"(r, d_in) with the sizes of row 0, {expected[0]} and {expected[2]}, neither of them 0"
            )
        _check_place(f"{who}: row {i}", parts_b[0], part_b, part_a)
    if not np.isfinite(share).all():
        row = int(np.flatnonzero(~np.isfinite(share))[0])
        raise WeightError(f"{who}: coefficient {row} is {share[row]}, expected a finite number; correct it")
    if together:
        return Parts(who, parts_b, parts_a, share, np.arange(len(share)))
    owner = np.repeat(np.arange(len(ranks)), ranks)
    return Parts(who, parts_b, parts_a, share[owner], owner)


def checked_ranks(ranks: Any) -> list[int]:
    """The ranks as a list. Raises ShapeError."""
    # an array or a tensor without dimensions is Iterable too, and cannot be iterated over
    several = isinstance(ranks, Iterable) and getattr(ranks, "ndim", 1) > 0
    found = [as_whole(rank) for rank in (ranks if several else [ranks])]
    wanted = [rank for rank in found if rank is not None and rank > 0]
    if not wanted or len(wanted) < len(found):
        raise ShapeError(f"lora_truncate: got ranks {shown(ranks)}, expected whole numbers of at least 1; correct them")
    return wanted


def fresh_rows(rank: int, kept: int, d_in: int) -> np.ndarray:
    """What rows of a beyond the `kept` ones are drawn from, as many as `rank` wants and d_in has room for.

    The same on every backend, and of a higher rank the first ones alike. What is left of them beside the kept ones is
    made orthonormal; in any case Gaussian, so that no row reads a few inputs alone.
    """
    return np.random.default_rng(0).standard_normal((max(min(rank, d_in) - kept, 0), d_in))


def _checked(part: Any, who: str, which: str) -> Any:
    """One factor as a matrix of a known dtype: a tensor, or an array. Raises DTypeError, ShapeError."""
    check_plain(f"{who}: {which}", part)
    if is_torch(part):
        matrix = part.detach()
    else:
        matrix = part if isinstance(part, np.ndarray) else host_numbers(f"{who}: {which}", part)
    if matrix.ndim != 2:
        raise ShapeError(f"{who}: got a factor of shape {tuple(matrix.shape)}, expected a matrix")
    if name_of(matrix.dtype) not in OUT_DTYPES:
        raise DTypeError(f"{who}: got {matrix.dtype}, expected one of {', '.join(OUT_DTYPES)}")
    return matrix


def _check_place(who: str, first: Any, *factors: Any) -> None:
    for factor in factors:
        if is_torch(factor) != is_torch(first) or (is_torch(first) and factor.device != first.device):
            raise ShapeError(f"{who}: expected arrays, or tensors on one device, like row 0; move them there")


def _narrow(part: Any) -> np.ndarray:
    """One factor in main memory, as fp32 where that holds it, else fp64."""
    if is_torch(part):
        part = (part.float() if str(part.dtype) == "torch.bfloat16" else part).numpy()
    name = name_of(part.dtype)
    return part if name in ("float32", "float64") else to_float64(part).astype(np.float32)
