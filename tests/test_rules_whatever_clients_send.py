"""What FLTrust and centred clipping promise of any number of attackers: far ones in the majority, and tiny changes."""

from __future__ import annotations

import numpy as np
import pytest

import fedcore as fc
from fedcore.errors import WeightError
from fedcore.rules import CenteredClipping, Coefficients, FLTrust, NormClipping
from tests.oracles import iterative as oracle

D = 300


def unit(rng: np.random.Generator) -> np.ndarray:
    direction = rng.normal(size=D)
    return direction / np.linalg.norm(direction)


def far_majority(center: np.ndarray, distance: float, size: float) -> np.ndarray:
    """4 honest rows, 12 together so far away, and one between."""
    rng = np.random.default_rng(1)
    honest = center + size * (0.5 * rng.normal(size=D) + rng.normal(size=(4, D))) / np.sqrt(D)
    attackers = center + size * (distance * unit(rng) + 0.3 * rng.normal(size=(12, D)))
    return np.vstack((honest, attackers, center + 50 * size * unit(rng))).astype(np.float32)


@pytest.mark.parametrize("eps", [1e-3, 3e-4, 1e-6, 1e-8, 1e-20, 1e-42])
def test_one_client_with_a_tiny_change_does_not_move_fltrust(eps):
    rng = np.random.default_rng(0)
    server = rng.normal(size=D).astype(np.float32)
    honest = (0.3 * server + 1.5 * rng.normal(size=(9, D))).astype(np.float32)
    rows = np.vstack((honest, server * np.float32(eps)))
    counts = eps * 2**12 > 1
    expected = oracle.fltrust(rows if counts else honest, np.zeros(D), server)
    found = FLTrust()(rows, server=server)
    assert np.linalg.norm(found - expected) <= 2**-10 * np.linalg.norm(server)
    updates = [fc.Update.from_tensors({"w": row}, client_id=f"c{i}") for i, row in enumerate(rows)]
    report = fc.aggregate(updates, FLTrust(), "parameters", server=fc.Update.from_tensors({"w": server})).report
    assert counts or "too short to be brought to that length" in report["not_counted"]["c9"]


@pytest.mark.parametrize("distance", [1e4, 1e6, 1e12])
@pytest.mark.parametrize("size", [1.0, 1e-30])
def test_a_far_majority_moves_fltrust_by_no_more_than_the_servers_change(distance, size):
    center = np.full(D, size, np.float32)
    rows = far_majority(center, distance, size)
    server = (center + rows[:4].mean(0) - center).astype(np.float32)
    length = np.linalg.norm(server.astype(np.float64) - center)
    found = FLTrust()(rows, reference=center, server=server)
    expected = oracle.fltrust(rows, center.astype(np.float64), server)
    assert np.linalg.norm(found - expected) <= 2e-3 * length
    assert np.linalg.norm(found - center.astype(np.float64)) <= (1 + 2**-10) * length


@pytest.mark.parametrize("distance", [1e4, 1e8, 1e15])
@pytest.mark.parametrize("iterations", [1, 5])
def test_a_far_majority_moves_centered_clipping_by_no_more_than_its_steps(distance, iterations):
    center = np.full(D, 0.5, np.float32)
    rows, rule = far_majority(center, distance, 1.0), CenteredClipping(0.5, iterations)
    found = rule(rows, center=center)
    expected = oracle.centered_clipping(rows, center, 0.5, iterations)
    assert np.linalg.norm(found - expected) <= 1e-3
    assert np.linalg.norm(found - center.astype(np.float64)) <= 0.5 * iterations * 1.001
    clipped = NormClipping(1e30).then(rule)(rows, reference=center, center=center)
    assert np.linalg.norm(clipped - expected) <= 1e-3


@pytest.mark.parametrize("zero", [True, False])
def test_a_gram_that_grew_as_far_clients_came_first_keeps_both_promises(tmp_path, zero):
    center = np.zeros(D, np.float32) if zero else np.full(D, 0.5, np.float32)
    rows = far_majority(center, 1e8, 1.0)[::-1]
    made = [fc.Update.from_tensors({"w": row}, client_id=f"c{i:02d}") for i, row in enumerate(rows)]
    start = None if zero else fc.Update.from_tensors({"w": center})
    server = rows[-4:].mean(0)
    length = np.linalg.norm(server - center)
    trusted = fc.Update.from_tensors({"w": server})
    for rule, most in ((FLTrust(), length), (CenteredClipping(0.5, 2), 1.0)):
        given = {"reference": start, "server": trusted if rule == FLTrust() else None}
        kept = fc.Accumulator(rule, tmp_path / type(rule).__name__, **given)
        for one in made:
            kept.add(one)
        found = kept.result().update.tensors["w"]
        expected = fc.aggregate(made, rule, "parameters", **given).update.tensors["w"]
        assert np.linalg.norm(found - center) <= most * 1.001
        assert np.linalg.norm(found - expected) <= 1e-4


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([1.0, 1e42, 0.0], "row b: got coefficient 1e[+]42, the largest of all, expected one within fp32"),
        ([1e-42, 1e-45, 0.0], "row a: got coefficient 1e-42, .* expected one within fp32"),
        ([1e8, 0.5, -1e8], "row a: got coefficient 1e[+]08, .* all sum to 0.5, expected no such cancellation"),
        ([1.0, 1e9, -1.0000001e9], "a reference row: got coefficient -1e[+]09"),
    ],
)
def test_coefficients_that_cannot_be_used_are_refused_by_name(values, said):
    with pytest.raises(WeightError, match=said):
        Coefficients(np.array(values)).rounded(["row a", "row b"])
    assert Coefficients(np.array([3.0, -1.0, 1.0])).rounded(["row a", "row b"])[1] == 3
