"""mean_around_median against the roof, a sort in NumPy and ByzFL's Meamed on the same matrix; f is a tenth of n."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from order_statistics import byzfl, run


def peers(n: int) -> dict[str, Callable]:
    f = n // 10
    return {
        "numpy.sort, sliced, mean": lambda matrix: np.sort(matrix, 0)[f : n - f].mean(0),
        **byzfl("Meamed", f=f),
    }


if __name__ == "__main__":
    run("mean_around_median", lambda n: (n // 10,), peers)
