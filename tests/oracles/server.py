"""One step of each server optimiser on one array, in fp64, as the papers write it."""

from __future__ import annotations

import numpy as np


def fedavgm(x, m, delta, learning_rate=1.0, momentum=0.9):
    """Hsu, Qi and Brown 2019: v ← βv + Δw, w ← w − v, with Δw = global − aggregate."""
    v = momentum * -m + -delta
    return x - learning_rate * v, -v


def adaptive(kind, x, m, v, delta, learning_rate=0.01, beta1=0.9, beta2=0.99, tau=1e-3):
    """Reddi et al. 2021, Algorithm 2, lines 10 to 14."""
    m = beta1 * m + (1 - beta1) * delta
    if kind == "fedadagrad":
        v = v + delta**2
    elif kind == "fedyogi":
        v = v - (1 - beta2) * delta**2 * np.sign(v - delta**2)
    else:
        v = beta2 * v + (1 - beta2) * delta**2
    return x + learning_rate * m / (np.sqrt(v) + tau), m, v
