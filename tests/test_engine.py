"""fc.aggregate: what comes out in both spaces, what its report says, and references from files."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

import fedcore as fc
from fedcore.errors import MissingError
from fedcore.rules import CenteredClipping, Coefficients, FLTrust, Krum, Mean, MultiKrum, NormClipping, Rule
from tests.engine_cohorts import CLIENTS, SPACES, changed, client, row
from tests.oracles import rules as oracle


def test_the_mean_in_parameter_space_is_the_weighted_mean_of_each_tensor():
    result = fc.aggregate(CLIENTS, Mean(), "parameters")
    counts = np.arange(1, 7)
    for name, found in result.update.tensors.items():
        rows = np.stack([u.tensors[name].ravel() for u in CLIENTS])
        expected = oracle.weighted_mean(rows, counts).astype(found.dtype)
        assert found.ravel().tolist() == expected.tolist()
    assert result.coefficients == {f"c{i}": float(i + 1) for i in range(6)}
    assert result.report["divisor"] == 21.0
    assert result.excluded == {}
    assert (result.update.client_id, result.update.num_examples, result.update.base) == ("global", 21, "model")
    assert result.update.scaling == CLIENTS[0].scaling


def test_krum_in_parameter_space_measures_all_tensors_together():
    rows = np.stack([row(u) for u in CLIENTS])
    (best,) = oracle.multi_krum_rows(rows, 1, 1)
    result = fc.aggregate(CLIENTS, Krum(1), "parameters")
    assert result.report["selected"] == [f"c{best}"]
    assert result.update.digest() == CLIENTS[best].digest()
    assert result.update.num_examples == CLIENTS[best].num_examples
    assert set(result.report["not_counted"]) == {f"c{i}" for i in range(6)} - {f"c{best}"}
    assert result.coefficients == {f"c{i}": float(i == best) for i in range(6)}


def test_a_client_that_krum_left_out_is_told_by_its_score():
    """0, 1, 2, 4 and 30, each with its two nearest: 1 has the least sum of squares, 1 + 1."""
    updates = [fc.Update.from_tensors({"x": np.float32([x])}, client_id=f"at {x}") for x in (0, 1, 2, 4, 30)]
    report = fc.aggregate(updates, Krum(1), "parameters").report
    assert report["counted"] == ["at 1"]
    assert report["not_counted"] == {
        f"at {x}": f"not selected: score {score}, the selected have at most 2"
        for x, score in ((0, 5), (2, 5), (4, 13), (30, 1460))
    }


def test_clipping_in_parameter_space_is_relative_to_the_reference():
    reference = client(99)
    result = fc.aggregate(CLIENTS, NormClipping(4.0), "parameters", reference=reference)
    formed = oracle.clipped(np.stack([row(u) for u in CLIENTS]), row(reference), 4.0)
    expected = oracle.weighted_mean(formed, np.arange(1, 7))
    np.testing.assert_allclose(row(result.update), expected, atol=2e-3)  # the head is fp16
    assert result.report["clipped"] == 6
    assert result.report["reference_coefficients"]["reference"] > 0


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize(
    "rule", [Mean(), Krum(1), MultiKrum(1), NormClipping(4.0), NormClipping(4.0).then(MultiKrum(1))]
)
def test_results_do_not_depend_on_the_order_of_arrival_and_reports_are_json(space, rule):
    reference = client(99)
    first = fc.aggregate(CLIENTS, rule, space, reference=reference)
    again = fc.aggregate(CLIENTS[::-1], rule, space, reference=reference)
    assert first.update.digest() == again.update.digest()
    assert first.coefficients == again.coefficients
    report = json.loads(json.dumps(first.report, allow_nan=False))
    assert (report["space"], report["n"], report["rule"]) == (space, 6, repr(rule))
    assert set(report["seconds"]) == {"check", "statistics", "rule", "combination"}


def test_coefficients_and_divisor_are_enough_to_make_a_result_again():
    rule = NormClipping(3.0).then(MultiKrum(1))
    reference = client(99)
    result = fc.aggregate(CLIENTS, rule, "parameters", reference=reference)
    weights = [*result.coefficients.values(), *result.report["reference_coefficients"].values()]
    for name, found in result.update.tensors.items():
        rows = [np.ascontiguousarray(u.tensors[name].ravel()) for u in [*CLIENTS, reference]]
        again = fc.ops.weighted_sum(rows, weights, result.report["divisor"], out_dtype=found.dtype)
        assert again.tobytes() == found.tobytes()


@pytest.mark.parametrize("backend", ["reference", "c"])
def test_parameter_space_is_bit_identical_on_every_backend(backend):
    if backend == "c" and (reason := fc.backends.unavailable("c")):
        pytest.skip(f"the C kernels are not built here: {reason}")
    rule = NormClipping(3.0).then(MultiKrum(1))
    expected = fc.aggregate(CLIENTS, rule, "parameters", backend="reference")
    found = fc.aggregate(CLIENTS, rule, "parameters", backend=backend, threads=2)
    assert found.update.digest() == expected.update.digest()


def test_every_stage_of_a_composition_reports_its_own():
    rule = NormClipping(2.0).then(NormClipping(0.5)).then(Krum(1))
    for space in SPACES:
        report = fc.aggregate(CLIENTS, rule, space).report
        first, second = report["before"]
        assert (first["rule"], second["rule"]) == (repr(NormClipping(2.0)), repr(NormClipping(0.5)))
        assert set(first["norms"]) == set(second["norms"]) == {f"c{i}" for i in range(6)}
        assert min(first["norms"].values()) > 2
        assert list(second["norms"].values()) == pytest.approx([2.0] * 6, rel=1e-6)
        assert "norms" not in report
        assert set(report["scores"]) == set(first["norms"])


@dataclasses.dataclass(frozen=True)
class First(Rule):
    """A rule of somebody else, with details of its own."""

    def decide(self, geometry, weights):
        n = geometry.clients
        return Coefficients(np.eye(n)[0], details={"note": 1}, per_client={"ages": np.arange(n)}, selected=[0])


@pytest.mark.parametrize("space", SPACES)
def test_a_new_rule_reports_details_of_each_client_by_name(space):
    report = fc.aggregate(CLIENTS, First(), space).report
    assert (report["note"], report["selected"]) == (1, ["c0"])
    assert report["ages"] == {f"c{i}": i for i in range(6)}
    json.dumps(report)


def test_the_law_is_that_of_what_was_added_up():
    full = [fc.Update.from_tensors({"w": np.ones((2, 2), np.float32)}, client_id=f"c{i}") for i in range(3)]
    laws = [fc.aggregate(full, Mean(), space).report["law"] for space in SPACES]
    laws.append(fc.aggregate(CLIENTS, Mean(), "parameters").report["law"])
    assert set(laws) == {"row-order fp64 sum, rounded once"}
    assert "singular triplets" in fc.aggregate(CLIENTS, Mean(), "delta").report["law"]


@pytest.mark.parametrize(("space", "where"), [("parameters", "reference"), ("delta", "lapack + reference")])
def test_the_report_says_where_pairs_were_formed_again(space, where):
    tensors = dict(CLIENTS[0].tensors) | {"head.weight": np.zeros((3, 4), np.float16)}
    equal = [
        changed(fc.Update.from_tensors(tensors, client_id=f"c{i}", scaling=CLIENTS[0].scaling), "head.weight", 1.0, i)
        for i in range(5)
    ]
    report = fc.aggregate(equal, Krum(1), space, backend="reference").report
    assert report["redone_pairs"] > 0
    assert report["redone_on"] == where
    assert fc.aggregate(CLIENTS, Krum(1), space).report["redone_on"] is None


def test_updates_without_factors_are_the_same_in_both_spaces():
    rng = np.random.default_rng(0)
    full = [
        fc.Update.from_tensors({"w": rng.standard_normal((5, 4)).astype(np.float32)}, client_id=f"c{i}")
        for i in range(5)
    ]
    for rule in (Mean(), Krum(1), NormClipping(1.0).then(Krum(1))):
        one, two = (fc.aggregate(full, rule, space).update for space in SPACES)
        assert one.digest() == two.digest()


@pytest.mark.parametrize("space", SPACES)
def test_the_base_is_that_of_the_first_client_who_knows_it(space):
    updates = [client(0, base=None), client(1, base="model"), client(2, base=None)]
    assert fc.aggregate(updates, Mean(), space).update.base == "model"
    assert fc.aggregate(updates[:1], Mean(), space).update.base is None


@pytest.mark.parametrize("space", SPACES)
def test_references_may_be_paths_whatever_lies_where(space, tmp_path):
    reference, center = client(20), client(21)
    for name, update in (("reference", reference), ("center", center)):
        (tmp_path / f"{name}.safetensors").write_bytes(update.to_bytes())
        update.to_peft(tmp_path / name)
    for rule in (NormClipping(2.0), CenteredClipping(2.0), FLTrust()):
        other = {"center": center} if rule.uses == ("center",) else {}
        other |= {"server": center} if "server" in rule.uses else {}
        expected = fc.aggregate(CLIENTS, rule, space, reference, **other)
        for suffix in ("", ".safetensors"):
            paths = dict.fromkeys(other, tmp_path / f"center{suffix}")
            found = fc.aggregate(CLIENTS, rule, space, str(tmp_path / f"reference{suffix}"), **paths)
            assert found.update.digest() == expected.update.digest()
    with pytest.raises(MissingError, match="no such directory"):
        fc.aggregate(CLIENTS, NormClipping(2.0), space, tmp_path / "nowhere")


def test_methods_take_paths_too(tmp_path):
    reference, side = client(20), client(21)
    for name, update in (("reference", reference), ("side", side)):
        (tmp_path / f"{name}.safetensors").write_bytes(update.to_bytes())
    method, paths = (
        fc.lora.FlexLoRA(error_feedback=True),
        [tmp_path / f"{name}.safetensors" for name in ("reference", "side")],
    )
    expected = method.aggregate(CLIENTS, None, reference, side=side)
    found = method.aggregate(CLIENTS, None, paths[0], side=str(paths[1]))
    assert (found.update.digest(), found.side.digest()) == (expected.update.digest(), expected.side.digest())
