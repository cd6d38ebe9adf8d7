"""Rules against their own parts and against ByzFL: what a rule adds to the passes that it cannot do without."""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
from inputs import rows
from measure import alternate, require_green, save
from multiply_adds import peak
from peers import byzfl_aggregator

import fedcore as fc
from fedcore.native.read import read
from fedcore.ops.rows import available_cores
from fedcore.rowtable import RowTable
from fedcore.rules.geometry import Geometry
from fedcore.rules.rows import RowExecutor
from fedcore.rules.statistics import Statistics

#: attackers that the rules are told of
F = 20


def selecting(n: int, d: int, threads: int, step: float) -> dict[str, object]:
    """Krum, Multi-Krum and the geometric median beside one Gram pass and one combination of as many rows.

    Row i is 1 + i · step times a standard normal one. With step 0 all scores nearly tie, the worst case of a certified
    selection: the pairs in doubt are formed again, which the report counts.
    """
    data = rows(n, d)
    for i, row in enumerate(data):
        row *= np.float32(1 + i * step)
    table = RowTable.from_arrays(data)
    one, many, every = (np.arange(n) < k for k in (1, n - F, n))

    def parts(counted: np.ndarray) -> Callable[[], object]:
        weights = counted.astype(np.float32)

        def work() -> object:
            fc.ops.gram(table, table.take([0]), threads=threads)
            return fc.ops.weighted_sum(table, weights, float(weights.sum()), threads=threads)

        return work

    rules = {
        "Krum": (fc.rules.Krum(F), one),
        "MultiKrum": (fc.rules.MultiKrum(F), many),
        "GeometricMedian": (fc.rules.GeometricMedian(), every),
    }
    works: dict[str, Callable[[], object]] = {}
    for name, (rule, counted) in rules.items():
        works[name] = lambda rule=rule: rule(table, threads=threads)
        works[f"gram + weighted_sum for {name}"] = parts(counted)
    times = alternate(works)
    return {
        name: {
            **times[name],
            "over its parts": times[name]["median"] / times[f"gram + weighted_sum for {name}"]["median"],
            "pairs redone": redone_pairs(rule, table, threads),
        }
        for name, (rule, _) in rules.items()
    }


def redone_pairs(rule: fc.rules.Rule, table: RowTable, threads: int) -> int:
    """How many pairs of rows the rule's selection had to form again."""
    statistics = Statistics(RowExecutor.from_rows(table, references={}, backend=None, threads=threads))
    rule.decide(Geometry(statistics), None)
    return statistics.redone


def against_byzfl(n: int, d: int, threads: int) -> dict[str, object]:
    """The same rows and conventions in ByzFL, as torch tensors of a ready matrix.

    The bound of a rule is the least time of its passes: n (n + 1) / 2 products of rows in fp32 at the measured peak of
    multiply-adds, or one read of the rows if that is longer, and a read of the rows that are summed.
    """
    import torch

    torch.set_num_threads(threads)
    data = rows(n, d)
    table, matrix = RowTable.from_arrays(data), torch.from_numpy(np.stack(data))
    pairs = {
        "Krum": (fc.rules.Krum(F, neighbors="byzfl"), byzfl_aggregator("Krum", f=F)),
        "MultiKrum": (fc.rules.MultiKrum(F, neighbors="byzfl"), byzfl_aggregator("MultiKrum", f=F)),
        "GeometricMedian": (
            fc.rules.GeometricMedian(smoothing=0.1, steps=3),
            byzfl_aggregator("GeometricMedian", nu=0.1, T=3),
        ),
    }
    works: dict[str, Callable[[], object]] = {"a read of all rows": lambda: read(table, 8, threads)}
    for name, (ours, theirs) in pairs.items():
        works[f"fedcore {name}"] = lambda rule=ours: rule(table, threads=threads)
        works[f"ByzFL {name}"] = lambda rule=theirs: rule(matrix)
    before = peak("float32", threads)
    times = alternate(works)
    rate = max(before, peak("float32", threads))
    reading = times["a read of all rows"]["median"]
    # no distance without its product; a read hides behind products, and the rows that are summed are read again
    gram = max(n * (n + 1) / 2 * d / rate, reading)
    least = {"Krum": gram, "MultiKrum": gram + (n - F) / n * reading, "GeometricMedian": gram + reading}
    for name in pairs:
        peer = times[f"ByzFL {name}"]["median"]
        ours = times[f"fedcore {name}"]
        ours["times ByzFL"] = peer / ours["median"]
        ours["bound, seconds"] = least[name]
        ours["of the bound"] = least[name] / ours["median"]
        ours["times ByzFL at the bound"] = peer / least[name]
    return {**times, "fp32 multiply-adds a second, measured peak": rate}


def mixing(n: int, d: int, threads: int) -> dict[str, object]:
    """NNM then Median, beside a Gram, the mixing at 0.7 of the fp64 multiply-add rate, and a median."""
    table = RowTable.from_arrays(rows(n, d))
    rule = fc.rules.NearestNeighborMixing(F).then(fc.rules.Median())
    works: dict[str, Callable[[], object]] = {
        "NearestNeighborMixing then Median": lambda: rule(table, threads=threads),
        "gram": lambda: fc.ops.gram(table, table.take([0]), threads=threads),
        "median": lambda: fc.ops.median(table, threads=threads),
    }
    times = alternate(works)
    rate = peak("float64", threads)
    formed = n * n * d / (0.7 * rate)
    sum_of_parts = times["gram"]["median"] + formed + times["median"]["median"]
    times["NearestNeighborMixing then Median"]["over its parts"] = (
        times["NearestNeighborMixing then Median"]["median"] / sum_of_parts
    )
    return {**times, "fp64 multiply-adds a second, measured peak": rate, "mixing at 0.7 of it, seconds": formed}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=available_cores())
    threads = parser.parse_args().threads
    for op in ("gram", "weighted_sum", "weighted_sums", "median"):
        require_green(op)
    results = {
        "threads": threads,
        "f": F,
        "over their parts, 100 x 4000000, rows of lengths 0.1 % apart": selecting(100, 4_000_000, threads, 1e-3),
        "over their parts, 100 x 4000000, rows that nearly tie": selecting(100, 4_000_000, threads, 0.0),
        "against ByzFL, 100 x 4000000, float32": against_byzfl(100, 4_000_000, threads),
        "mixing, 100 x 1000000, float32": mixing(100, 1_000_000, threads),
    }
    save("rules", results, ("torch", "byzfl"))


if __name__ == "__main__":
    main()
