"""Rules that select, over true LoRA updates in delta space: as on the products formed, and said by client."""

from __future__ import annotations

import json

import numpy as np
import pytest

import fedcore as fc
from fedcore.rules import Bucketing, Krum, MinimumDiameterAveraging, MoNNA, MultiKrum, SpectralFilter
from fedcore.rules import NearestNeighborMixing as NNM
from tests.oracles import delta, selecting
from tests.oracles import rules as oracle

NAMES = [f"c{i}" for i in range(9)]


def client(seed: int, name: str | None = None) -> fc.Update:
    """A LoRA adapter of two modules and a dense head; its scale differs from client to client."""
    rng = np.random.default_rng(seed)
    shapes = {
        "a.lora_A.weight": (2, 6),
        "a.lora_B.weight": (9, 2),
        "b.lora_A.weight": (2, 5),
        "b.lora_B.weight": (4, 2),
    }
    tensors = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    tensors["head.weight"] = rng.standard_normal((3, 4)).astype(np.float32)
    scaling = {"a": 1 + seed / 10, "b": 2 - seed / 10}
    return fc.Update.from_tensors(tensors, num_examples=seed + 1, client_id=name or f"c{seed}", scaling=scaling)


CLIENTS = [client(i) for i in range(9)]
ROWS = delta.rows(CLIENTS)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (MultiKrum(2), oracle.multi_krum_rows(ROWS, 2, 7)),
        (MinimumDiameterAveraging(3), selecting.least_diameter_rows(ROWS, 3)),
        (MoNNA(3, pivot=4), selecting.nearest_rows(ROWS, ROWS[4], 3)),
        (MoNNA(3), selecting.nearest_rows(ROWS, delta.row(client(50)), 3)),
    ],
)
def test_selects_as_on_the_products_formed(rule, expected):
    server = client(50) if "server" in rule.uses else None
    result = fc.aggregate(CLIENTS, rule, "delta", server=server)
    kept = [NAMES[row] for row in expected]
    assert result.report["selected"] == kept
    assert set(result.report["not_counted"]) == set(NAMES) - set(kept)
    assert {name for name, value in result.coefficients.items() if value} == set(kept)
    json.dumps(result.report)


def test_mixing_and_buckets_have_the_coefficients_of_the_products_formed():
    near = selecting.neighborhoods(ROWS, 2)
    (best,) = oracle.multi_krum_rows(selecting.mixed(ROWS, 2), 2, 1)
    result = fc.aggregate(CLIENTS, NNM(2).then(Krum(2)), "delta")
    assert [NAMES[row] for row in near[best]] == [name for name, value in result.coefficients.items() if value]
    assert set(result.report["not_counted"]) == set(NAMES) - {NAMES[row] for row in near[best]}
    rule = Bucketing(2, seed=3)
    (best,) = oracle.multi_krum_rows(selecting.bucketed(ROWS, rule.order(9), 2), 1, 1)
    result = fc.aggregate(CLIENTS, rule.then(Krum(1)), "delta")
    kept = sorted(rule.order(9)[2 * best : 2 * best + 2])
    assert [NAMES[row] for row in kept] == [name for name, value in result.coefficients.items() if value]
    assert result.report["before"][0]["bucket"]["c0"] == rule.order(9).index(0) // 2
    json.dumps(result.report)


def test_equal_clients_tie_and_the_lowest_row_wins_although_factors_give_no_exact_zero():
    copies = [client(seed, f"c{i}") for i, seed in enumerate([0, 1, 1, 1, 2, 3, 3, 4, 5])]
    rows = delta.rows(copies)
    for rule, expected in (
        (Krum(2), oracle.multi_krum_rows(rows, 2, 1)),
        (MultiKrum(2, 2), oracle.multi_krum_rows(rows, 2, 2)),
        (MoNNA(4, pivot=0), selecting.nearest_rows(rows, rows[0], 4)),
        (MinimumDiameterAveraging(4), selecting.least_diameter_rows(rows, 4)),
    ):
        assert fc.aggregate(copies, rule, "delta").report["selected"] == [NAMES[row] for row in expected]
    found = fc.aggregate(copies, NNM(4).then(Krum(2)), "delta").report["before"][0]["neighbor_of"]
    hoods = selecting.neighborhoods(rows, 4)
    assert list(found.values()) == [sum(row in hood for hood in hoods) for row in range(9)]


def test_the_spectral_filter_takes_products_whose_fourth_powers_leave_fp64():
    """Factors near the end of fp32: squares of products are numbers in fp64, and squares of those are not."""
    updates = []
    for i in range(7):
        rng = np.random.default_rng(i)
        size = np.float32(1e38 if i >= 5 else 1.0)
        shapes = {"m.lora_A.weight": (2, 1000), "m.lora_B.weight": (1000, 2)}
        tensors = {name: rng.uniform(-3, 3, shape).astype(np.float32) * size for name, shape in shapes.items()}
        updates.append(fc.Update.from_tensors(tensors, client_id=f"c{i}", scaling={"m": 1.0}))
    weights = fc.aggregate(updates, SpectralFilter(2), "delta").report["weights_kept"]
    assert [name for name, weight in weights.items() if weight == 0] == ["c5", "c6"]
