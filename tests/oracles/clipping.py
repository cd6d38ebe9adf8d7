"""clip_noise_accumulate in a few lines of exact integers: scale, round, and truncate where rounding passed the clip."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np


def clip_grid(clip, d):
    return 2.0 ** math.floor(math.log2(0.02 * clip / math.sqrt(max(d, 1))))


def clip_noise_accumulate(rows, clip, grid, noise=0, divisor=1, out_dtype="float32"):
    noise = noise(0, len(rows[0])) if callable(noise) else noise
    total, norms = np.zeros(len(rows[0]), np.int64), []
    for row in rows:
        with np.errstate(all="ignore"):
            values = np.asarray(row, np.float64)
            norms.append(float((values**2).sum()))
            scale = min(1.0, clip / math.sqrt(norms[-1])) if norms[-1] > 0 else 1.0
        if not math.isfinite(norms[-1]):
            continue
        steps = np.rint(values * scale / grid).astype(np.int64)
        if sum(q * q for q in steps.tolist()) > (clip / grid) ** 2:
            steps = np.trunc(values * scale * (1 - 1e-12) / grid).astype(np.int64)
        assert sum(q * q for q in steps.tolist()) <= (clip / grid) ** 2
        total += steps
    return SimpleNamespace(sum=((total + noise) * grid / divisor).astype(out_dtype), squared_norms=np.array(norms))
