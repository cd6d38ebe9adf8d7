"""median against the roof, and NumPy, torch and ByzFL on the same full matrix."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from order_statistics import byzfl, run


def peers(n: int) -> dict[str, Callable]:
    """torch.median takes the lower of the middle two."""
    return {
        "numpy.median": lambda matrix: np.median(matrix, axis=0),
        "torch.median": lambda tensor: tensor.median(dim=0).values,
        **byzfl("Median"),
    }


if __name__ == "__main__":
    run("median", lambda n: (), peers)
