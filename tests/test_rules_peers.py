"""Rules against ByzFL and Flower themselves, on the same rows, where the convention is the same."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from typing import Any

import numpy as np
import pytest

from fedcore import rules

N, F = 11, 2


def some_rows(seed: int) -> np.ndarray:
    """Honest rows that differ, and two far out."""
    rows = np.random.default_rng(seed).normal(size=(N, 40))
    rows[[3, 7]] += 5
    return rows.astype(np.float32)


def byzfl(module: str) -> Any:
    """byzfl.aggregators.<module>; byzfl's own __init__ wants torchvision for its training, so it is not run."""
    pytest.importorskip("torch", reason="ByzFL works on torch tensors, and torch is not installed")
    spec = importlib.util.find_spec("byzfl")
    if spec is None or spec.submodule_search_locations is None:
        pytest.skip("byzfl is not installed; pip install byzfl (beside fedcore[bench]) to compare")
    if "byzfl" not in sys.modules:
        package = types.ModuleType("byzfl")
        package.__path__, package.__spec__ = list(spec.submodule_search_locations), spec
        sys.modules["byzfl"] = package
    if importlib.util.find_spec("scipy") is None:  # only its NumPy rows need it
        spatial = types.ModuleType("scipy.spatial")
        spatial.distance = types.ModuleType("scipy.spatial.distance")  # type: ignore[attr-defined]
        sys.modules |= {"scipy": types.ModuleType("scipy"), "scipy.spatial": spatial}
    return importlib.import_module(f"byzfl.aggregators.{module}")


def of_byzfl(name: str, rows: np.ndarray, **arguments: Any) -> np.ndarray:
    made = getattr(byzfl("preaggregators" if name in ("NNM", "ARC", "Clipping") else "aggregators"), name)(**arguments)
    import torch

    return made(torch.from_numpy(rows.astype(np.float64))).numpy()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("rule", "name", "arguments"),
    [
        (rules.Krum(F, neighbors="byzfl"), "Krum", {"f": F}),
        (rules.MultiKrum(F, neighbors="byzfl"), "MultiKrum", {"f": F}),
        (rules.GeometricMedian(smoothing=0.1, steps=3), "GeometricMedian", {"nu": 0.1, "T": 3}),
        (rules.Median(), "Median", {}),
        (rules.TrimmedMean(F), "TrMean", {"f": F}),
        (rules.MeanAroundMedian(F), "Meamed", {"f": F}),
        (rules.MinimumDiameterAveraging(F), "MDA", {"f": F}),
        (rules.MoNNA(F, pivot=1), "MoNNA", {"f": F, "idx": 1}),
        (rules.CenteredClipping(2.0, iterations=3), "CenteredClipping", {"tau": 2.0, "L": 3}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_equals_byzfl(rule, name, arguments, seed):
    rows = some_rows(seed)
    np.testing.assert_allclose(rule(rows), of_byzfl(name, rows, **arguments), rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("rule", "name", "arguments"),
    [
        (rules.NearestNeighborMixing(F), "NNM", {"f": F}),
        (rules.ARC(F), "ARC", {"f": F}),
        (rules.NormClipping(3.0), "Clipping", {"c": 3.0}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_pre_aggregation_hands_on_what_byzfls_does(rule, name, arguments):
    rows = some_rows(0)
    mixed = of_byzfl(name, rows, **arguments)
    for after in (rules.Median(), rules.Krum(F), rules.Mean()):
        expected = after(mixed.astype(np.float32))
        np.testing.assert_allclose(rule.then(after)(rows), expected, rtol=1e-5, atol=1e-6)


def flower_records(rows: np.ndarray, counts: list[int]) -> list[Any]:
    pytest.importorskip("flwr.app", reason="flwr is not installed; pip install fedcore[bench] to compare with it")
    from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict

    return [
        RecordDict({"arrays": ArrayRecord({"w": Array(row)}), "metrics": MetricRecord({"num-examples": count})})
        for row, count in zip(rows, counts, strict=True)
    ]


def chosen_by_flower(rows: np.ndarray, counts: list[int], f: int, m: int) -> list[int]:
    """The rows that Flower's Krum selects, ascending; it sums distances in the rows' own dtype, so give it fp64."""
    records = flower_records(rows.astype(np.float64), counts)
    from flwr.serverapp.strategy.multikrum import select_multikrum

    chosen = select_multikrum(records, num_malicious_nodes=f, num_nodes_to_select=m)
    return sorted(next(i for i, record in enumerate(records) if record is one) for one in chosen)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("m", [1, 5])
def test_equals_flowers_krum_weighted_by_reported_counts(seed, m):
    rows, counts = some_rows(seed), list(range(1, N + 1))
    chosen = chosen_by_flower(rows, counts, F, m)
    expected = np.average(rows[chosen].astype(float), axis=0, weights=np.array(counts)[chosen])
    found = rules.MultiKrum(F, m, neighbors="flower", weighted=True)(rows, counts)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)
    if m == 1:
        assert rules.Krum(F, neighbors="flower")(rows).tobytes() == rows[chosen[0]].tobytes()


@pytest.mark.parametrize("seed", range(3))
def test_equals_flowers_bulyan(seed):
    rows = some_rows(seed)
    theta = N - 2 * F
    chosen = rows[chosen_by_flower(rows, [1] * N, F, theta)].astype(np.float64)
    from flwr.serverapp.strategy.bulyan import aggregate_n_closest_weights

    (expected,) = aggregate_n_closest_weights([np.median(chosen, axis=0)], [[row] for row in chosen], theta - 2 * F)
    np.testing.assert_allclose(rules.Bulyan(F, selection="flower")(rows), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.2, 0.45])
def test_equals_flowers_trimmed_mean(fraction):
    pytest.importorskip("flwr.app", reason="flwr is not installed; pip install fedcore[bench] to compare with it")
    from flwr.serverapp.strategy.fedtrimmedavg import trim_mean

    rows = some_rows(0)
    found = rules.TrimmedMean(fraction=fraction)(rows)
    np.testing.assert_allclose(found, trim_mean(rows.astype(np.float64), fraction), rtol=1e-6, atol=1e-7)
