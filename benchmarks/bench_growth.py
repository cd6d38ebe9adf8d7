"""How time grows with columns and with clients, from 10 to 4,096, and a plot of it."""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
from inputs import rows
from measure import alternate, require_green, save

import fedcore as fc
from fedcore.ops.rows import available_cores
from fedcore.rowtable import RowTable

CLIENTS = (10, 16, 32, 37, 64, 100, 128, 257, 512, 1000, 2048, 4096)
#: elements of every cohort whose clients grow, so that only the work for each differs
ELEMENTS = 40_000_000
COLUMNS = (10_000, 100_000, 1_000_000, 4_000_000)


def works(table: RowTable, threads: int) -> dict[str, Callable[[], object]]:
    """One call of each op and rule, by name."""
    n = table.n
    f, ones = max((n - 3) // 4, 0), np.ones(n, np.float32)
    return {
        "weighted_sum": lambda: fc.ops.weighted_sum(table, ones, float(n), threads=threads),
        "median": lambda: fc.ops.median(table, threads=threads),
        "trimmed_mean": lambda: fc.ops.trimmed_mean(table, f, threads=threads),
        "mean_around_median": lambda: fc.ops.mean_around_median(table, f, threads=threads),
        "gram": lambda: fc.ops.gram(table, table.take([0]), threads=threads),
        "Krum": lambda: fc.rules.Krum(f)(table, threads=threads),
        "SpectralFilter": lambda: fc.rules.SpectralFilter(f)(table, threads=threads),
    }


def slope(sizes: tuple[int, ...], seconds: list[float]) -> float:
    """The power p of the least-squares fit seconds ~ sizes^p."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def grow(shapes: list[tuple[int, int]], threads: int) -> dict[str, list[float]]:
    """name -> nanoseconds per element at each shape."""
    found: dict[str, list[float]] = {}
    for n, d in shapes:
        table = RowTable.from_arrays(rows(n, d))
        for name, time in alternate(works(table, threads), rounds=3).items():
            found.setdefault(name, []).append(time["median"] / (n * d) * 1e9)
    return found


def plot(by_clients: dict[str, list[float]], by_columns: dict[str, list[float]], path: str) -> None:
    """Both growths, side by side, in one SVG."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.2), sharey=True)
    for axis, sizes, found, label in (
        (axes[0], CLIENTS, by_clients, "clients"),
        (axes[1], COLUMNS, by_columns, "columns, 100 clients"),
    ):
        for name, values in found.items():
            axis.loglog(sizes, values, marker="o", markersize=3, label=name)
        axis.set_xlabel(label)
        axis.grid(True, which="major", alpha=0.3)
    axes[0].set_ylabel("nanoseconds per element")
    axes[0].legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=available_cores())
    threads = parser.parse_args().threads
    for op in ("weighted_sum", "median", "trimmed_mean", "mean_around_median", "gram"):
        require_green(op)
    by_clients = grow([(n, ELEMENTS // n) for n in CLIENTS], threads)
    by_columns = grow([(100, d) for d in COLUMNS], threads)
    results = {
        "threads": threads,
        "clients": CLIENTS,
        "columns": COLUMNS,
        "nanoseconds per element, 40M elements, by clients": by_clients,
        "nanoseconds per element, 100 clients, by columns": by_columns,
        # time = n · d · (nanoseconds per element), so its power is one more
        "power of n in time, d fixed": {name: 1 + slope(CLIENTS, values) for name, values in by_clients.items()},
        "power of d in time, n fixed": {name: 1 + slope(COLUMNS, values) for name, values in by_columns.items()},
    }
    path = save("growth", results, ("matplotlib",))
    plot(by_clients, by_columns, str(path.with_suffix(".svg")))


if __name__ == "__main__":
    main()
