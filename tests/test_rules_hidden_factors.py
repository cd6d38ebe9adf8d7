"""What a client can do with its factors and not with its update: gauges, and terms that cancel, in delta space."""

from __future__ import annotations

import numpy as np
import pytest

from fedcore import Cohort, Update, aggregate
from fedcore.errors import NonFiniteError
from fedcore.lora.executor import DeltaExecutor
from fedcore.rules import Krum, Mean, MultiKrum, NormClipping
from tests.oracles import delta as dense


def one_module(client: str, b, a, scale: float = 1.0) -> Update:
    tensors = {"m.lora_A.weight": np.asarray(a, np.float32), "m.lora_B.weight": np.asarray(b, np.float32)}
    return Update.from_tensors(tensors, client_id=client, scaling={"m": scale})


def whole(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Small whole numbers, so that sums and products with powers of two are exact in fp32 and fp64."""
    return rng.integers(-8, 9, shape).astype(np.float64)


def with_cancelling_pair(rng, client: str, b, a, size: float) -> Update:
    """b · a and the pair (M p)(M q) − (M p)(M q), which is exactly 0."""
    p, q = whole(rng, len(b), 1) * size, whole(rng, 1, a.shape[1]) * size
    return one_module(client, np.hstack((b, p, -p)), np.vstack((a, q, q)))


def honest(rng, n: int = 6) -> list[Update]:
    b, a = whole(rng, 16, 4), whole(rng, 4, 16)
    return [one_module(f"h{i}", b + 0.01 * rng.standard_normal(b.shape), a) for i in range(n)]


@pytest.mark.parametrize("exponent", range(0, 61, 4))
@pytest.mark.parametrize("f", [1, 2])
def test_a_far_client_cannot_have_itself_selected_by_terms_that_cancel(exponent, f):
    """Their ids sort first, so they would win any tie; beyond what fp64 tells they are refused by name."""
    rng = np.random.default_rng(0)
    far = [
        with_cancelling_pair(rng, f"a{i}", 9 * whole(rng, 16, 2), 9 * whole(rng, 2, 16), 2.0**exponent)
        for i in range(f)
    ]
    clients = [*far, *honest(rng, 8)]
    result = aggregate(clients, Krum(f), on_nonfinite="exclude")
    assert result.report["selected"][0].startswith("h")
    assert set(result.excluded) <= {u.client_id for u in far}
    if exponent <= 12:
        assert not result.excluded
    if exponent >= 20:
        assert len(result.excluded) == f
        with pytest.raises(NonFiniteError, match=r"client 'a0': module 'm': its factors cancel") as caught:
            aggregate(clients, Krum(f))
        assert caught.value.row == 0


def honest_factors(update: Update) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(update.tensors["m.lora_B.weight"]), np.asarray(update.tensors["m.lora_A.weight"])


@pytest.mark.parametrize("exponent", range(4, 29, 4))
@pytest.mark.parametrize("rule", [Mean(), Krum(2), MultiKrum(1), NormClipping(2.0), NormClipping(2.0).then(Krum(1))])
def test_a_gauge_of_any_size_changes_nothing(exponent, rule):
    """M = diag(2^±e) · unimodular, and its inverse, both exact."""
    rng = np.random.default_rng(exponent)
    clients = [one_module(f"c{i}", whole(rng, 12, 3), whole(rng, 3, 10), 0.5) for i in range(7)]
    other = []
    for client in clients:
        b, a = (np.asarray(t, np.float64) for t in honest_factors(client))
        m = np.triu(whole(rng, 3, 3), 1) + np.eye(3)
        size = 2.0 ** rng.choice([-exponent, exponent], 3)
        other.append(one_module(client.client_id, b @ m * size, np.round(np.linalg.inv(m)) @ a / size[:, None], 0.5))
    np.testing.assert_array_equal(dense.rows(other), dense.rows(clients))
    before, after = (aggregate(u, rule) for u in (clients, other))
    assert after.report.get("selected") == before.report.get("selected")
    for client, value in before.coefficients.items():
        assert after.coefficients[client] == pytest.approx(value, rel=1e-6)
    expected = dense.dense(before.update, "m")
    np.testing.assert_allclose(dense.dense(after.update, "m"), expected, atol=1e-5 * np.linalg.norm(expected))


def second_difference(rng, client: str, size: float) -> tuple[Update, np.ndarray]:
    """(update, its Δ): four terms as large as size², whose sum is 2^-24 of that."""
    b, a = whole(rng, 16) * size, whole(rng, 16) * size
    step_b, step_a = whole(rng, 16) * size * 2.0**-12, whole(rng, 16) * size * 2.0**-12
    columns = np.stack([b, -(b + step_b), -b, b + step_b], 1)
    rows = np.stack([a, a, a + step_a, a + step_a])
    return one_module(client, columns, rows), np.outer(step_b, step_a)


@pytest.mark.parametrize("exponent", [0, 10, 20, 38])
def test_a_second_difference_is_clipped_by_its_true_norm(exponent):
    rng = np.random.default_rng(0)
    update, true = second_difference(rng, "a0", 2.0**exponent)
    result = aggregate([update], NormClipping(1.0))
    assert result.report["norms"]["a0"] == pytest.approx(np.linalg.norm(true), rel=1e-6)
    found = dense.dense(result.update, "m")
    assert np.linalg.norm(found) <= 1 + 1e-6
    np.testing.assert_allclose(found, true / max(1, np.linalg.norm(true)), atol=1e-6 * np.linalg.norm(found))


def test_a_second_difference_too_fine_for_fp64_is_refused():
    b, a, size = np.eye(16)[0] + np.eye(16)[1], np.eye(16)[2] + np.eye(16)[3], 2.0**38
    step_b, step_a = np.eye(16)[4] * 2.0**-20, np.eye(16)[5] * 2.0**-20
    columns = size * np.stack([b, -(b + step_b), -b, b + step_b], 1)
    update = one_module("a0", columns, size * np.stack([a, a, a + step_a, a + step_a]))
    for updates in ([update], [update, *honest(np.random.default_rng(0))]):
        with pytest.raises(NonFiniteError, match="client 'a0': module 'm': its factors cancel"):
            aggregate(updates, NormClipping(1.0))


@pytest.mark.parametrize("exponent", [4, 10, 14, 20, 40, 60])
@pytest.mark.parametrize("with_reference", [True, False])
def test_a_pair_that_cancels_adds_no_more_than_the_bound(exponent, with_reference):
    rng = np.random.default_rng(1)
    clients = honest(rng)
    reference = one_module("ref", *honest_factors(clients[0])) if with_reference else None
    attacker = with_cancelling_pair(rng, "a0", np.zeros((16, 1)), np.zeros((1, 16)), 2.0**exponent)
    result = aggregate([attacker, *clients], NormClipping(0.5), reference=reference, on_nonfinite="exclude")
    assert set(result.excluded) == ({"a0"} if exponent >= 14 else set())
    start = dense.row(reference) if with_reference else 0.0
    assert np.linalg.norm(dense.row(result.update) - start) <= 0.5 * (1 + 1e-5)


@pytest.mark.parametrize("change", [1e-1, 1e-3, 1e-5])
@pytest.mark.parametrize("extra", [0, 2])
def test_changes_from_a_near_reference_are_clipped_to_the_bound(change, extra):
    """With `extra` columns of zeros the ranks differ, and the change has to be found by QR."""
    rng = np.random.default_rng(2)
    b, a = rng.standard_normal((16, 3)), rng.standard_normal((3, 16))
    reference = one_module("ref", b, a)
    for i in range(5):
        step_b, step_a = (change * rng.standard_normal(x.shape) for x in (b, a))
        client = one_module(
            f"c{i}", np.hstack((b + step_b, np.zeros((16, extra)))), np.vstack((a + step_a, np.ones((extra, 16))))
        )
        true = np.linalg.norm(dense.row(client) - dense.row(reference))
        executor = DeltaExecutor.from_cohort(
            Cohort([client]), {"reference": reference}, ["client"], backend=None, threads=1
        )
        square, bound = executor.squared_norms()
        assert abs(np.sqrt(square[0]) - true) <= np.sqrt(square[0] + bound[0]) - np.sqrt(square[0]) + 1e-12 * true
        assert bound[0] <= 1e-5 * square[0]
        factor = aggregate([client], NormClipping(true / 3), reference=reference)
        share = factor.coefficients["c0" if i == 0 else f"c{i}"] / factor.report["divisor"]
        assert share * true <= true / 3 * (1 + 1e-7)
        assert share == pytest.approx(1 / 3, rel=1e-5)


def test_an_adapter_of_zeros_is_fine_whatever_its_other_factor():
    rng = np.random.default_rng(0)
    zeros = [one_module(f"c{i}", np.zeros((16, 3)), 1e30 * whole(rng, 3, 16)) for i in range(5)]
    for rule in (Mean(), Krum(1), NormClipping(1.0), NormClipping(1.0).then(Krum(1))):
        assert not dense.row(aggregate(zeros, rule).update).any()
        mixed = aggregate([*zeros[:2], *honest(rng)], rule, reference=zeros[2])
        assert mixed.excluded == {}


def test_a_reference_that_cancels_is_named_and_never_excluded():
    rng = np.random.default_rng(0)
    reference = with_cancelling_pair(rng, "ref", np.zeros((16, 1)), np.zeros((1, 16)), 2.0**30)
    with pytest.raises(NonFiniteError, match=r"reference: module 'm': its factors cancel.*repair the reference"):
        aggregate(honest(rng), NormClipping(1.0), reference=reference, on_nonfinite="exclude")


@pytest.mark.parametrize("with_reference", [True, False])
def test_clips_to_nothing_leave_the_reference_or_zero(with_reference):
    clients = honest(np.random.default_rng(0))
    reference = one_module("ref", *honest_factors(clients[0])) if with_reference else None
    result = aggregate(clients[1:], NormClipping(1e-300), reference=reference).update
    expected = dense.row(reference) if with_reference else np.zeros(256)
    np.testing.assert_allclose(dense.row(result), expected, atol=1e-5 * np.linalg.norm(expected))
    assert np.linalg.norm(result.tensors["m.lora_A.weight"], axis=1).all()
