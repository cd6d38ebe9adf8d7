"""What the LoRA ops accept as factors, brought to one form without copying."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedcore.backends import default, requested
from fedcore.dtypes import BF16, ROW_DTYPES, name_of, to_float64
from fedcore.errors import DTypeError, NonFiniteError, ShapeError, WeightError
from fedcore.factors import Factors
from fedcore.ops.host_numbers import host_numbers
from fedcore.ops.tensors import check_plain, check_reach, extent, is_torch, tensor_of, view_of_tensor


@dataclass
class FactorPairs:
    """Validated factors of one module: a table (data in main memory) or torch tensors on one GPU."""

    table: Factors | None
    b: list[Any]
    a: list[Any]
    d_out: int
    d_in: int
    device: Any  # torch device of the answer; None: NumPy
    bfloat16: Any = BF16  # the NumPy dtype that the caller uses for bf16

    @property
    def n(self) -> int:
        """Clients."""
        return len(self.b)

    @property
    def on_gpu(self) -> bool:
        return self.table is None

    def tensors(self) -> tuple[list[Any], list[Any]]:
        """(b, a) as torch tensors, for the Triton backend: views."""
        return [tensor_of(x) for x in self.b], [tensor_of(x) for x in self.a]

    def overlapped(self, low: int, high: int) -> str | None:
        """The first factor that has a byte from address `low` up to `high`, in words."""
        for name, side in (("b", self.b), ("a", self.a)):
            for i, factor in enumerate(side):
                start, stop = extent(factor)
                if start < high and stop > low and start < stop:
                    return f"client {i}: {name}"
        return None


def as_factors(b: Any, a: Any, dtypes: Sequence[str] = ROW_DTYPES) -> FactorPairs:
    """Check n clients' factors, b[i] (d_out, r_i) and a[i] (r_i, d_in), arrays or tensors, each of one of `dtypes`.

    Raises ShapeError or DTypeError that names the client.
    """
    for name, side in (("b", b), ("a", a)):
        if isinstance(side, np.ndarray) or is_torch(side) or not isinstance(side, Sequence) or len(side) == 0:
            raise ShapeError(f"{name}: got {type(side).__name__}, expected a non-empty list of one factor a client")
    if len(b) != len(a):
        raise ShapeError(f"factors: got {len(b)} of b and {len(a)} of a, expected one of each a client")
    kind = is_torch(b[0])
    for name, side in (("b", b), ("a", a)):
        for i, factor in enumerate(side):
            _check(f"client {i}: {name}", factor, kind, b[0], dtypes)
    d_out, d_in = int(b[0].shape[0]), int(a[0].shape[1])
    for i, (one, other) in enumerate(zip(b, a, strict=True)):
        rank = int(one.shape[1])
        if tuple(one.shape) != (d_out, rank) or tuple(other.shape) != (rank, d_in):
            raise ShapeError(
                f"client {i}: b is {_shape(one)} and a is {_shape(other)}, expected {d_out} × r and r × {d_in} "
                "like client 0; a is (rank, d_in), b is (d_out, rank)"
            )
    if kind and b[0].device.type != "cpu":
        return FactorPairs(None, [x.detach() for x in b], [x.detach() for x in a], d_out, d_in, b[0].device)
    left, right = ([view_of_tensor(x) if kind else x for x in side] for side in (b, a))
    native = next((x.dtype for x in b if not kind and name_of(x.dtype) == "bfloat16"), BF16)
    return FactorPairs(Factors(left, right), left, right, d_out, d_in, b[0].device if kind else None, native)


def _check(who: str, factor: Any, as_tensor: bool, first: Any, dtypes: Sequence[str]) -> None:
    if is_torch(factor) != as_tensor or not (as_tensor or isinstance(factor, np.ndarray)):
        raise DTypeError(
            f"{who}: got {type(factor).__name__}, expected NumPy arrays or torch tensors, all factors of one kind"
        )
    check_plain(who, factor)
    known = False
    if factor.ndim != 2:
        raise ShapeError(f"{who}: got shape {tuple(factor.shape)}, expected a matrix")
    with contextlib.suppress(DTypeError):  # any other dtype is refused below, by client
        known = name_of(factor.dtype) in dtypes
    if not known:
        raise DTypeError(f"{who}: got {factor.dtype}, expected one of {', '.join(dtypes)}; convert the factor first")
    if not (factor.is_contiguous() if as_tensor else factor.flags.c_contiguous):
        raise ShapeError(f"{who}: its elements are not contiguous, row by row; pass a contiguous copy")
    if as_tensor and factor.device != first.device:
        raise ShapeError(f"{who}: on {factor.device}, expected {first.device} like client 0; move it there")


def _shape(factor: Any) -> str:
    return " × ".join(map(str, factor.shape))


def choose_for(factors: FactorPairs, backend: str | None) -> str:
    """The backend that will run. Raises ShapeError when a request cannot be met where the data lies."""
    name = requested(backend) or default(factors.on_gpu)
    if factors.on_gpu:
        check_reach("factors", factors.device, name)
    return name


def checked_coefficients(coefficients: Any, n: int) -> np.ndarray:
    """Coefficients as (n,) fp64. Raises ShapeError, DTypeError, or WeightError by client."""
    given = host_numbers("coefficients", coefficients)
    if given.shape != (n,):
        raise ShapeError(f"coefficients: got shape {given.shape}, expected ({n},), one for each client")
    values = given.astype(np.float64)
    for i in np.flatnonzero(~np.isfinite(values)):
        raise WeightError(f"coefficient {i}: got {given[i]}, expected a finite number")
    return np.ascontiguousarray(values)


def raise_nonfinite_factor(op: str, factors: FactorPairs, among: np.ndarray) -> None:
    """Raise NonFiniteError for the lowest client of `among` whose b or a holds NaN or Inf; else return."""
    for i in among.tolist():
        for name, side in (("b", factors.b), ("a", factors.a)):
            found = first_nonfinite(side[i])
            if found is not None:
                where, value = found
                raise NonFiniteError(
                    f"{op}: client {i}: {name} holds {value} at {where}; drop that client or have it trained again", i
                )


def first_nonfinite(matrix: Any) -> tuple[tuple[int, ...], float] | None:
    """(index, value) of the first element that is not finite, or None."""
    if is_torch(matrix):
        import torch

        hits = torch.nonzero(~torch.isfinite(matrix))[:1].tolist()
        return (tuple(hits[0]), float(matrix[tuple(hits[0])])) if hits else None
    values = to_float64(matrix)
    hits = np.argwhere(~np.isfinite(values))[:1].tolist()
    return (tuple(hits[0]), float(values[tuple(hits[0])])) if hits else None
