"""Where an iteration with a memory starts: the global update, moved on once more by what the last round changed."""

from __future__ import annotations

import numpy as np

from fedcore.dtypes import name_of, rounded, to_float64
from fedcore.updates import Update


def moved_on(current: Update, previous: Update, space: str) -> Update:
    """current + (current − previous), the centre of changes in the next round (`rules.CenteredClipping` with state).

    In "parameters" space element by element in fp64, rounded once to the tensors' dtypes. In "delta" space a LoRA
    module's Δ = s·B·A moves on as a whole: factors are stacked, A = [A_c; A_p] and B = [2 B_c, −(s_p/s_c) B_p], of
    twice the rank, exactly; where that is more than the module's smaller side, multiplied, of that rank and rounded
    once to their dtype, which for bf16 may be some per cent of the last change. Tensors in no pair as above. Raises
    RangeError naming a tensor that does not fit its dtype.
    """
    tensors = {}
    pairs = current.modules if space == "delta" else {}
    in_pairs = {name for pair in pairs.values() for name in (pair.a, pair.b)}
    for name, tensor in current.tensors.items():
        if name not in in_pairs:
            change = 2 * to_float64(tensor) - to_float64(previous.tensors[name])
            tensors[name] = _rounded(change, tensor, name)
    for module, pair in pairs.items():
        before = previous.modules[module]
        a, b = current.tensors[pair.a], current.tensors[pair.b]
        last = -before.scale / pair.scale * to_float64(previous.tensors[before.b])
        right = np.concatenate((to_float64(a), to_float64(previous.tensors[before.a])))
        left = np.concatenate((2 * to_float64(b), last), axis=1)
        if len(right) > min(pair.d_out, pair.d_in):
            left, right = _multiplied(left, right)
        tensors[pair.a] = _rounded(right, a, pair.a)
        tensors[pair.b] = _rounded(left, b, pair.b)
    return Update.from_tensors(tensors, client_id="center", scaling=current.scaling, base=current.base)


def _multiplied(b: np.ndarray, a: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """B·A as a product of the rank of its smaller side: itself and an identity, each with half of its exponent, so that
    neither leaves the range of a dtype that holds factors like B and A. fp64; one of them is exact."""
    product = b @ a
    half = int(np.frexp(np.abs(product).max())[1]) // 2
    exact = np.ldexp(np.eye(min(product.shape)), half)
    rest = np.ldexp(product, -half)
    return (exact, rest) if len(product) == len(exact) else (rest, exact)


def _rounded(values: np.ndarray, like: np.ndarray, name: str) -> np.ndarray:
    dtype = name_of(like.dtype)
    return rounded(values, dtype, f'center: tensor {name!r} does not fit {dtype}; set aggregation.center = "reference"')
