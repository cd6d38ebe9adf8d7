"""LoRA updates as dense matrices in fp64."""

from __future__ import annotations

import numpy as np


def dense(update, module: str) -> np.ndarray:
    """s · B · A of one module."""
    pair = update.modules[module]
    b, a = (np.asarray(update.tensors[name], np.float64) for name in (pair.b, pair.a))
    return pair.scale * b @ a


def row(update) -> np.ndarray:
    """All modules' s · B · A and all dense tensors as one row."""
    parts = [dense(update, module).ravel() for module in update.modules]
    parts += [np.asarray(update.tensors[name], np.float64).ravel() for name in update.dense]
    return np.concatenate(parts)


def rows(updates) -> np.ndarray:
    """(n, columns) each update's row."""
    return np.stack([row(update) for update in updates])


def truncated(matrix: np.ndarray, rank: int) -> np.ndarray:
    """The closest matrix of that rank, by SVD."""
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ vt[:rank]
