"""LoRA factors that tests share: mixed ranks and dtypes, and the fp64 oracle with its error bound."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from fedcore.dtypes import round_from_float64, to_float64

#: (d_out, d_in, ranks): around tiles of 8 × 48 and 96, blocks of 64 to 256 rows and chains of 256 terms; never d = k
SHAPES = (
    (1, 2, (1,)),
    (7, 47, (3, 0, 1)),
    (8, 48, (16, 4)),
    (9, 49, (0, 2)),
    (66, 97, (5, 8, 1)),
    (3, 192, (255, 2)),
    (17, 95, (256,)),
    (5, 101, (200, 56, 1, 300)),
    (257, 50, (4, 4)),
    (3, 4, (0, 0)),
)
DTYPES = ("float32", "float16", "bfloat16")


@lru_cache
def make_factors(d_out: int, d_in: int, ranks: tuple[int, ...], dtype: str, seed: int = 0):
    """(b, a): lists of factors of many magnitudes; b of `dtype`, a of the dtype after it."""
    rng = np.random.default_rng(seed)
    other = DTYPES[(DTYPES.index(dtype) + 1) % 3] if dtype != "float32" else dtype

    def one(shape: tuple[int, int], kind: str) -> np.ndarray:
        return round_from_float64(rng.normal(size=shape) * np.exp(rng.normal(size=shape)), kind)

    return [one((d_out, r), dtype) for r in ranks], [one((r, d_in), other) for r in ranks]


def dense(b, a, coefficients, base=None) -> np.ndarray:
    """Σ c_i B_i A_i + base in fp64."""
    shape = b[0].shape[0], a[0].shape[1]
    total = np.zeros(shape) if base is None else to_float64(base)
    return total + sum((c * to_float64(x) @ to_float64(y) for c, x, y in zip(coefficients, b, a, strict=True)))


def bound(b, a, coefficients) -> np.ndarray:
    """What lora_delta_sum may be off by, an element: its documented bound."""
    size = np.zeros((b[0].shape[0], a[0].shape[1]))
    for c, x, y in zip(coefficients, b, a, strict=True):
        size += abs(c) * np.abs(to_float64(x)) @ np.abs(to_float64(y))
    terms = sum(len(y) for y in a)
    largest = max((np.abs(to_float64(y)).max() for y in a if y.size), default=0.0)
    return (min(terms, 256) + 2) * 2.0**-24 * size + terms * 2.0**-149 * (1 + largest)
