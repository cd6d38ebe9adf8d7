"""The public lora_gram and lora_blocks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from fedcore.backends import implementation
from fedcore.dtypes import OUT_DTYPES
from fedcore.errors import DTypeError, NonFiniteError, RangeError, ShapeError, WeightError
from fedcore.ops.factors import FactorPairs, as_factors, checked_coefficients, choose_for, raise_nonfinite_factor
from fedcore.ops.rows import thread_count
from fedcore.reference.lora_blocks import CHUNK

#: what is wrong with one module; other errors, of a backend or the environment, are none of its own
OF_DATA = (ShapeError, DTypeError, WeightError, NonFiniteError, RangeError)


def lora_gram(
    modules: Iterable[tuple[Any, Any, Any]],
    *,
    names: Sequence[str] | None = None,
    backend: str | None = None,
    threads: int | None = None,
) -> np.ndarray:
    """⟨Δ_i, Δ_j⟩ of n clients' updates Δ_i = s_i B_i A_i, added up over modules: (n, n) fp64 NumPy, symmetric.

    modules  (b, a, scales) of each module, one after the other, so that a generator can read them from files:
             b       n matrices (d_out, r_i), fp32, fp16, bf16 or fp64 each, read where they lie; a client that has no
                     adapter here has r_i = 0
             a       n matrices (r_i, d_in)
             scales  n fp64 numbers, or None for 1
    names    what messages call each module; None is its position

    From the r_i × r_j blocks of lora_blocks, never from Δ (definition and order: fedcore/reference/lora_gram.py). The
    reference and C give the same bits on every ISA and thread count for factors of up to 32 bits; Triton, which adds
    in the hardware's order, has the same bound: each module's entry is off by at most
    (d_in + d_out + r_i r_j + 8) · 2⁻⁵³ · P_i P_j, P_i = s_i Σ_p ‖b_p‖‖a_p‖ over the terms of client i.

    Squared norms are the diagonal. Memory: `gram_bytes` of the module with the largest R = Σ r_i, neither d_out × d_in
    nor a wide copy of the factors. Raises ShapeError and DTypeError naming
    module and client, WeightError (a scale that is not finite), NonFiniteError (module, client and place of a NaN or
    Inf) and RangeError (inner products above fp64, which fp64 factors alone can have).
    """
    count, total = thread_count(threads), np.zeros((0, 0))
    for m, (b, a, scales) in enumerate(modules):
        try:
            factors = as_factors(b, a, OUT_DTYPES)
            by = checked_coefficients(np.ones(factors.n) if scales is None else scales, factors.n)
            if not m:
                total = np.zeros((factors.n, factors.n))
            if factors.n != len(total):
                raise ShapeError(
                    f"got {factors.n} clients, expected {len(total)} as in {_called(0, names)}; "
                    "give rank 0 to absent ones"
                )
            name = choose_for(factors, backend)
            given = factors.tensors() if name == "triton" else factors.table
            implementation("lora_gram", name)(given, by, total, count)
            if not np.isfinite(total.diagonal()).all():
                _refuse("lora_gram", factors)
        except OF_DATA as error:
            error.args = (f"{_called(m, names)}: {error}",)
            raise
    if not total.size:
        raise ShapeError("modules: got none, expected at least one (b, a, scales)")
    return total


def _called(m: int, names: Sequence[str] | None) -> str:
    return f"module {m if names is None else repr(names[m])}"


def gram_bytes(terms: int, d_out: int, d_in: int, threads: int) -> int:
    """What lora_gram in C takes beside its input for a module of R terms: (threads + 2) · R² · 8, and 2 KB a term and
    thread; no more threads than there are chunks (csrc/lora_gram.c).
    """
    workers = min(threads, -(-d_out // CHUNK) - (-d_in // CHUNK))
    return (workers + 2) * 8 * terms**2 + workers * 2048 * terms


def lora_blocks(
    b: Any, a: Any, *, backend: str | None = None, threads: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(G_B, G_A) = (BᵀB, AAᵀ) of the stacked factors of one module: both (R, R) fp64 NumPy, symmetric, R = Σ r_i.

    b, a     as in `lora_gram`; scales do not enter

    Terms (columns of B, rows of A) are in client order. Products are exact and added in fp64 in the order of
    fedcore/reference/lora_blocks.py: the same bits in the reference and in C, on every ISA and thread count, for
    factors of up to 32 bits; Triton is within the same bound, (d + 1) · 2⁻⁵³ ‖x_p‖‖x_q‖ an entry. Raises as
    `lora_gram`.
    """
    factors = as_factors(b, a, OUT_DTYPES)
    name = choose_for(factors, backend)
    given = factors.tensors() if name == "triton" else factors.table
    found = implementation("lora_blocks", name)(given, thread_count(threads))
    if not all(np.isfinite(gram.diagonal()).all() for gram in found):
        _refuse("lora_blocks", factors)
    return found


def _refuse(op: str, factors: FactorPairs) -> None:
    raise_nonfinite_factor(op, factors, np.arange(factors.n))
    raise RangeError(f"{op}: an inner product of finite factors does not fit float64; scale the factors")
