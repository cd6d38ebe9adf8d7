"""squared_distances against NumPy's fp64 difference, pair by pair: what one redone pair of a selection costs."""

from __future__ import annotations

import argparse

import numpy as np
from inputs import rows
from measure import alternate, require_green, save

import fedcore as fc
from fedcore.ops.rows import as_rows, available_cores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=available_cores())
    threads = parser.parse_args().threads
    require_green("squared_distances")
    data = rows(9, 4_000_000)
    table, pairs = as_rows(data).table, [[i, i + 1] for i in range(8)]
    times = alternate(
        {
            "fedcore": lambda: fc.ops.squared_distances(table, pairs, threads=threads),
            "numpy, fp64": lambda: [np.sum(np.square(data[i].astype(np.float64) - data[j])) for i, j in pairs],
        }
    )
    per_pair = {name: {**t, "milliseconds a pair": t["median"] / len(pairs) * 1e3} for name, t in times.items()}
    save("squared_distances", {"threads": threads, "8 pairs of 4000000, float32": per_pair})


if __name__ == "__main__":
    main()
