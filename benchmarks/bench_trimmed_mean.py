"""trimmed_mean against the roof, and NumPy and ByzFL on the same full matrix; f is a tenth of the rows."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from order_statistics import byzfl, run


def peers(n: int) -> dict[str, Callable]:
    f = n // 10
    return {
        "numpy.sort, sliced, mean": lambda matrix: np.sort(matrix, 0)[f : n - f].mean(0),
        **byzfl("TrMean", f=f),
    }


if __name__ == "__main__":
    run("trimmed_mean", lambda n: (n // 10,), peers)
