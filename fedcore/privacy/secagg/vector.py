"""What a client has summed: integers within the bound, or a weighted update that is quantised while it is masked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fedcore.errors import DTypeError, NonFiniteError, RangeError, ShapeError, WeightError
from fedcore.numbers import as_real, got, keep, positive, whole
from fedcore.privacy.secagg.parameters import Parameters


@dataclass(frozen=True)
class Quantizer:
    """How updates become integers within `bound`: round(W · x / largest), with W = round(w / largest_weight · bound).

    bound           most that an integer may be in absolute value, as in `Parameters`
    largest         most that a number of an update may be; beyond it numbers are clamped, whatever the weight
    largest_weight  w_max, most that a client's weight may be

    W, the weight as a whole number, travels as one more coordinate: a vector of d numbers needs length d + 1. The mean
    has exactly these weights.
    """

    bound: int
    largest: float
    largest_weight: float = 1.0

    def __post_init__(self) -> None:
        keep(self, bound=whole("bound", self.bound, 1, 1 << 53, error=RangeError))  # fp64 holds it
        for name in ("largest", "largest_weight"):
            keep(self, **{name: positive(name, getattr(self, name), error=RangeError)})

    def weighted(self, values: Any, weight: float = 1.0) -> Weighted:
        """An update (d,) of fp32 or fp64, with its weight, for `Client.mask`.

        Raises WeightError, also for a weight that rounds to W = 0, DTypeError, RangeError.
        """
        share = as_real(weight)
        if share is None or not 0 < share <= self.largest_weight:
            raise WeightError(f"{got('weight', weight)}, expected one above 0, at most {self.largest_weight}")
        if (count := round(share / self.largest_weight * self.bound)) == 0:
            raise WeightError(
                f"{got('weight', weight)} of at most {self.largest_weight}, which bound {self.bound} rounds to 0; take "
                "a larger bound or a smaller largest_weight"
            )
        try:
            array = np.ascontiguousarray(values)
        except (TypeError, ValueError, RuntimeError) as error:  # of tensors that PyTorch does not turn into arrays
            raise DTypeError(
                f"values: got {type(values).__name__}, expected a vector of fp32 or fp64: {error}"
            ) from None
        if array.dtype not in (np.float32, np.float64) or array.ndim != 1:
            raise DTypeError(f"values: got {array.dtype} of shape {array.shape}, expected a vector of fp32 or fp64")
        if not (scale := count / self.largest) < math.inf:
            raise RangeError(f"largest: got {self.largest!r}, which with bound and weight scales by {scale}")
        return Weighted(array, scale, count, count)

    def mean(self, total: np.ndarray) -> tuple[np.ndarray, float]:
        """(weighted mean (d,) fp64, sum of the weights) of a sum. Raises ShapeError, WeightError for one without."""
        if np.ndim(total) != 1 or not len(total):
            raise ShapeError(f"sum: got shape {np.shape(total)}, expected (d + 1,): the numbers' sums and the weights'")
        if total[-1] <= 0:
            raise WeightError(
                f"sum: its weights add up to {total[-1]}, expected more than 0; a client lied about its own"
            )
        weight = float(total[-1])
        return total[:-1] * (self.largest / weight), weight / self.bound * self.largest_weight


@dataclass(frozen=True)
class Weighted:
    """Numbers to be scaled, clamped and rounded, and the weight's integer behind them: the client's own, never printed.

    `scale`, `tail` and `limit` all tell the weight.
    """

    values: np.ndarray = field(repr=False)
    scale: float = field(repr=False)
    tail: int = field(repr=False)
    limit: int = field(repr=False)

    def __len__(self) -> int:
        return len(self.values) + 1

    def packed(self, keys: np.ndarray, signs: np.ndarray, p: Parameters) -> np.ndarray:
        """Scaled, clamped, rounded, masked and packed, as `masked` gives it. Raises NonFiniteError."""
        from fedcore.ops import mask_add, pack_bits

        bits, stream, out = p.modulus_bits, p.stream, _room(p)
        whole = len(self.values) // 8 * 8  # what is left shares bytes with the weight
        scaled: dict[str, Any] = {"scale": self.scale, "limit": self.limit, "stream": stream}
        try:
            mask_add(self.values[:whole], keys, signs, bits, packed=True, out=out[: whole * bits // 8], **scaled)
            few = mask_add(self.values[whole:], keys, signs, bits, counter=whole, **scaled)
        except NonFiniteError:
            index = int(np.isfinite(self.values).argmin())
            raise NonFiniteError(f"mask: number {index} of the vector is NaN or Inf; leave such updates out") from None
        weight = np.array([self.tail], np.int64)
        weight = mask_add(weight, keys, signs, bits, counter=len(self.values), stream=stream)
        pack_bits(np.concatenate([few, weight]), bits, out[whole * bits // 8 :])
        return out


@dataclass(frozen=True)
class Integers:
    """Integers that are summed as they are: the client's own, never printed."""

    values: np.ndarray = field(repr=False)

    def __len__(self) -> int:
        return len(self.values)

    def packed(self, keys: np.ndarray, signs: np.ndarray, p: Parameters) -> np.ndarray:
        """Masked and packed, as `masked` gives it."""
        from fedcore.ops import mask_add

        return mask_add(self.values, keys, signs, p.modulus_bits, stream=p.stream, packed=True, out=_room(p))


def _room(p: Parameters) -> np.ndarray:
    return np.empty((p.length * p.modulus_bits + 7) // 8, np.uint8)


def vector_of(vector: Any) -> Weighted | np.ndarray:
    """What `Quantizer.weighted` gave, or (length,) integers. Raises DTypeError for anything else."""
    if isinstance(vector, Weighted):
        return vector
    array = np.asarray(vector)
    if array.dtype.kind not in "iu" or array.ndim != 1:
        raise DTypeError(
            f"mask: got {array.dtype} of shape {array.shape}, expected a vector of integers; quantise numbers with "
            "fc.secagg.Quantizer(...).weighted"
        )
    return array


def checked(vector: Any, p: Parameters) -> Weighted | Integers:
    """A vector that fits the parameters.

    vector: (length,) integers within `bound`, or below 2**modulus_bits where there is no bound; or what
    `Quantizer.weighted` gives. Raises ShapeError, DTypeError, RangeError, which never tell a value. Whether numbers
    are finite is seen when they are masked.
    """
    array = vector_of(vector)
    if len(array) != p.length:
        raise ShapeError(f"mask: got a vector of {len(array)} coordinates, expected {p.length}")
    if isinstance(array, Weighted):
        if not p.bound:
            raise RangeError("mask: the vector is quantised, expected residues: the parameters have no bound")
        if array.limit > p.bound:  # which is the client's weight
            raise RangeError(
                f"mask: the vector is quantised beyond the parameters' bound of {p.bound}; make its Quantizer with "
                f"bound={p.bound}"
            )
        return array
    least, most = (-p.bound, p.bound) if p.bound else (0, (1 << p.modulus_bits) - 1)
    if int(array.min()) < least or int(array.max()) > most:
        where = int(np.argmax((array < least) | (array > most)))
        raise RangeError(f"mask: coordinate {where} is outside {least} to {most}; clip the vector before it is masked")
    same = array.dtype in (np.int64, np.uint64, np.uint32)
    wide = array if same else array.astype(np.int64)
    return Integers(np.ascontiguousarray(wide))


@dataclass(frozen=True)
class Parts:
    """Several adapters, or tensors, in one vector: name -> shape, in this order. Raises ShapeError for none."""

    shapes: Mapping[str, tuple[int, ...]]

    def __post_init__(self) -> None:
        if not self.shapes:
            raise ShapeError("parts: got no shapes, expected those of one part at least")

    @property
    def length(self) -> int:
        """Numbers of all parts together."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    def join(self, parts: Mapping[str, np.ndarray]) -> np.ndarray:
        """(length,) of one dtype. Raises ShapeError for a part that is missing, unknown, or of another shape."""
        for name in self.shapes.keys() | parts.keys():
            given = np.shape(parts[name]) if name in parts else "nothing"
            expected = tuple(self.shapes[name]) if name in self.shapes else "nothing"
            if given != expected:
                raise ShapeError(f"parts: got {given} as {name!r}, expected {expected}")
        return np.concatenate([np.ravel(parts[name]) for name in self.shapes])

    def split(self, vector: np.ndarray) -> dict[str, np.ndarray]:
        """The parts of a sum. Raises ShapeError."""
        if np.shape(vector) != (self.length,):
            raise ShapeError(f"parts: got a vector of shape {np.shape(vector)}, expected ({self.length},)")
        found, at = {}, 0
        for name, shape in self.shapes.items():
            found[name] = vector[at : at + math.prod(shape)].reshape(shape)
            at += math.prod(shape)
        return found
