"""Rows that tests share: sizes at every lane, block and tile boundary, and values that expose a wrong order."""

from __future__ import annotations

import numpy as np

from fedcore.dtypes import BF16, round_from_float64

LANES = (0, 1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 65)
BLOCKS = (255, 256, 257, 4095, 4096, 4097, 8193)  # gram's block, the norm's block, gram's chunk
TILES = (32767, 32768, 32769, 32768 * 2 + 37)  # weighted_sum's tile


def make_rows(n: int, d: int, dtype: str, seed: int = 0, spread: float = 3.0) -> list[np.ndarray]:
    """n rows whose elements span many magnitudes, so that a wrong order of additions shows."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(n, d)) * np.exp(spread * rng.normal(size=(n, d)))
    return list(round_from_float64(values.clip(-3e4, 3e4), dtype))


def from_bits(bits: list[int], dtype: str) -> np.ndarray:
    """A row from bit patterns."""
    if dtype == "float32":
        return np.array(bits, np.uint32).view(np.float32)
    return np.array(bits, np.uint16).view(np.float16 if dtype == "float16" else BF16)


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()
