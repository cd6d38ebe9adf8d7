"""What members advertise of whom some crowd others."""

from __future__ import annotations

import numpy as np


def draws(
    n: int, k: int, corrupt: int, victims: int, seed: int | list[int], each: int | None = None
) -> dict[int, list[int]]:
    """What members draw by chance, but for the first ones, each of whom draws `each` (None: all that it can) of the
    last ones, all of these equally often."""
    rng, found = np.random.default_rng(seed), {}
    each = min(k, victims) if each is None else each
    for i in range(n):
        if i < corrupt:
            crowded = n - victims + (i * each + np.arange(each)) % victims
            others = rng.choice(np.delete(np.arange(n - victims), i), k - each, replace=False)
            found[i] = sorted([*crowded.tolist(), *others.tolist()])
        else:
            found[i] = sorted(rng.choice(np.delete(np.arange(n), i), k, replace=False).tolist())
    return found
