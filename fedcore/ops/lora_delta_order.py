"""The public lora_delta_median and lora_delta_trimmed_mean."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedcore.backends import implementation
from fedcore.errors import RangeError
from fedcore.ops.factors import FactorPairs, as_factors, checked_coefficients, choose_for, raise_nonfinite_factor
from fedcore.ops.order import checked_f
from fedcore.ops.outputs import output_dtype, output_for
from fedcore.ops.rows import thread_count


def lora_delta_median(
    b: Any,
    a: Any,
    coefficients: Any = None,
    *,
    out: Any = None,
    out_dtype: Any = "float32",
    backend: str | None = None,
    threads: int | None = None,
) -> Any:
    """The median over clients of c_i B_i A_i, element by element, of one module: (d_out, d_in), rounded once.

    b, a          as in `lora_delta_sum`
    coefficients  n fp64 numbers, the scales α/r (or α/√r); None is 1 for all. A client with 0, or of rank 0, counts as
                  zeros and is not read
    out           (d_out, d_in) array to write into, of any output dtype (then `out_dtype` is not used); must not
                  overlap what is read
    out_dtype     'float32', 'float64', 'float16' or 'bfloat16'

    The bits are those of `median` over the fp32 products that `lora_delta_sum` gives for each client alone, in the
    reference and in C on every ISA and thread count. Triton's products are within the bound of `lora_delta_sum`, and so
    is their median. No product is ever formed whole: memory beside the result is, a thread, some 64 to 256 rows of
    stacked B and 96 columns of stacked A in fp32, and 3 KB a client (Triton: 256 MB of products in all).

    NumPy in gives NumPy out, torch in gives torch out on the same device. Raises as `lora_delta_sum`: a NaN or Inf is
    named even where it would not have been the median.
    """
    factors = as_factors(b, a)
    return _run("lora_delta_median", factors, coefficients, (), out, out_dtype, backend, threads)


def lora_delta_trimmed_mean(
    b: Any,
    a: Any,
    f: int,
    coefficients: Any = None,
    *,
    out: Any = None,
    out_dtype: Any = "float32",
    backend: str | None = None,
    threads: int | None = None,
) -> Any:
    """The mean over clients of c_i B_i A_i without the f least and f greatest values of each element: (d_out, d_in).

    f  how many to drop on either side; 0 ≤ 2f < n

    The other arguments, the bits, the memory and the errors are those of `lora_delta_median`, with `trimmed_mean` for
    `median`; RuleError where f is out of range.
    """
    factors = as_factors(b, a)
    dropped = checked_f("lora_delta_trimmed_mean", f, factors.n, (factors.n - 1) // 2)
    return _run("lora_delta_trimmed_mean", factors, coefficients, (dropped,), out, out_dtype, backend, threads)


def _run(
    op: str,
    factors: FactorPairs,
    coefficients: Any,
    arguments: tuple[int, ...],
    out: Any,
    out_dtype: Any,
    backend: str | None,
    threads: int | None,
) -> Any:
    c = checked_coefficients(np.ones(factors.n) if coefficients is None else coefficients, factors.n)
    name = choose_for(factors, backend)
    dtype = output_dtype(out, out_dtype)
    result, target = output_for(factors, (factors.d_out, factors.d_in), out, dtype, name, factors.overlapped)
    given = factors.tensors() if name == "triton" else factors.table
    if implementation(op, name)(given, c, *arguments, target, thread_count(threads)):
        raise_nonfinite_factor(op, factors, np.flatnonzero(c))
        raise RangeError(
            f"{op}: a finite result does not fit {dtype}, or a client's product float32; ask for a wider out_dtype or "
            "scale the factors"
        )
    return result
