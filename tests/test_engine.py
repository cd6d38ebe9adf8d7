"""fc.aggregate: both spaces, weights, exclusion, reports, and every refusal."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

import fedcore as fc
from fedcore.errors import (
    BackendError,
    LayoutError,
    MissingError,
    NonFiniteError,
    RangeError,
    RuleError,
    ShapeError,
    WeightError,
)
from fedcore.rules import CenteredClipping, Coefficients, FLTrust, Krum, Mean, Median, MultiKrum, NormClipping, Rule
from tests.oracles import rules as oracle

SPACES = ["delta", "parameters"]


def client(seed: int, *, rank: int = 2, scale: float = 2.0, base: str | None = "model", dtype=np.float32) -> fc.Update:
    """A LoRA adapter of two modules with an fp16 head: two dtypes, so two tables."""
    rng = np.random.default_rng(seed)
    tensors = {
        "a.lora_A.weight": rng.standard_normal((rank, 6)).astype(dtype),
        "a.lora_B.weight": rng.standard_normal((9, rank)).astype(dtype),
        "b.lora_A.weight": rng.standard_normal((rank, 5)).astype(dtype),
        "b.lora_B.weight": rng.standard_normal((4, rank)).astype(dtype),
        "head.weight": rng.standard_normal((3, 4)).astype(np.float16),
    }
    scaling = {"a": scale, "b": scale}
    return fc.Update.from_tensors(tensors, num_examples=seed + 1, client_id=f"c{seed}", scaling=scaling, base=base)


def changed(update: fc.Update, name: str, value: float, element: int = 0) -> fc.Update:
    tensors = {key: np.array(t) for key, t in update.tensors.items()}
    tensors[name].reshape(-1)[element] = value
    return fc.Update.from_tensors(
        tensors, num_examples=update.num_examples, client_id=update.client_id, scaling=update.scaling, base=update.base
    )


def row(update: fc.Update) -> np.ndarray:
    return np.concatenate([np.asarray(t, np.float64).ravel() for t in update.tensors.values()])


CLIENTS = [client(i) for i in range(6)]


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


def test_clipping_in_parameter_space_is_relative_to_the_reference():
    reference = client(99)
    result = fc.aggregate(CLIENTS, NormClipping(4.0), "parameters", reference=reference)
    formed = oracle.clipped(np.stack([row(u) for u in CLIENTS]), row(reference), 4.0)
    expected = oracle.weighted_mean(formed, np.arange(1, 7))
    np.testing.assert_allclose(row(result.update), expected, atol=2e-3)  # the head is fp16
    assert result.report["clipped"] == 6
    assert result.report["reference_coefficients"][0] > 0


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
    weights = [*result.coefficients.values(), *result.report["reference_coefficients"]]
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


@pytest.mark.parametrize("space", SPACES)
def test_weights_by_client_or_in_the_order_given(space):
    order = [CLIENTS[3], CLIENTS[0], CLIENTS[5]]
    by_order = fc.aggregate(order, Mean(), space, weights=[7, 1, 2])
    by_client = fc.aggregate(order, Mean(), space, weights={"c0": 1, "c3": 7, "c5": 2})
    assert by_order.coefficients == by_client.coefficients == {"c0": 1.0, "c3": 7.0, "c5": 2.0}
    assert by_order.update.digest() == by_client.update.digest()


@pytest.mark.parametrize(
    ("weights", "error", "text"),
    [
        ({"c0": 1}, ShapeError, "client 'c1' has no weight"),
        ({f"c{i}": 1 for i in range(7)}, ShapeError, "client 'c6' sent no update"),
        ([1, 1], ShapeError, "one for each update"),
        ([1, 1, 0, 1, 1, 1], WeightError, "client 'c2': got weight 0"),
        ([1, 1, 1, -1, 1, 1], WeightError, "client 'c3': got weight -1"),
        ([1, 1, 1, 1, np.inf, 1], WeightError, "client 'c4': got weight inf"),
        ([1, 1, 1, 1, 1, np.nan], WeightError, "client 'c5': got weight nan"),
        ([2**24 + 2, 1, 1, 1, 1, 1], WeightError, "client 'c0': got weight 16777218"),
        ([0] * 6, WeightError, "got weight 0"),
    ],
)
def test_bad_weights_are_named_by_client(weights, error, text):
    with pytest.raises(error, match=text):
        fc.aggregate(CLIENTS, Mean(), weights=weights)


@pytest.mark.parametrize("space", SPACES)
def test_a_result_has_the_count_of_those_that_count_and_none_where_one_of_them_never_said_it(space):
    said = [dataclasses.replace(u, num_examples=10) for u in CLIENTS]
    silent = [dataclasses.replace(u, counted=i != 5) for i, u in enumerate(said)]
    many = [dataclasses.replace(u, num_examples=2**39) for u in CLIENTS]
    n = len(CLIENTS)
    for rule, cohort, examples, counted in [
        (Mean(), said, 10 * n, True),
        (Mean(), silent, 10 * n, False),
        (Krum(1), silent, 10, True),
        (Median(), many, 2**40, False),
    ]:
        update = fc.aggregate(cohort, rule, space).update
        assert (update.num_examples, update.counted) == (examples, counted)
        again = fc.Update.from_bytes(update.to_bytes())
        assert again.counted == counted
        assert again.num_examples == (examples if counted else 1)


def test_what_clients_report_does_not_move_krum():
    lying = [dataclasses.replace(u, num_examples=2**40 if i == 5 else 1) for i, u in enumerate(CLIENTS)]
    for space in SPACES:
        expected, found = (fc.aggregate(u, MultiKrum(1), space) for u in (CLIENTS, lying))
        assert found.update.digest() == expected.update.digest()
    with pytest.raises(WeightError, match="client 'c5'"):
        fc.aggregate(lying, Mean())


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("rule", [Mean(), Krum(1), NormClipping(1.0)])
@pytest.mark.parametrize("name", ["a.lora_B.weight", "head.weight"])
def test_a_non_finite_client_is_named_or_excluded(space, rule, name):
    bad = [*CLIENTS[:2], changed(CLIENTS[2], name, np.nan, 3), *CLIENTS[3:5], changed(CLIENTS[5], name, np.inf, 1)]
    with pytest.raises(NonFiniteError, match=f"client 'c2': tensor '{name}' holds NaN or Inf at element 3"):
        fc.aggregate(bad, rule, space)
    if rule == Krum(1):
        with pytest.raises(RuleError, match=r"f=1 with n=4.*largest f for n=4 is 0 \(after excluding 'c2', 'c5'"):
            fc.aggregate(bad, rule, space, on_nonfinite="exclude")
        return
    result = fc.aggregate(bad, rule, space, on_nonfinite="exclude")
    assert set(result.excluded) == {"c2", "c5"}
    assert name in result.excluded["c2"]
    assert result.report["excluded"] == result.excluded
    rest = fc.aggregate([bad[i] for i in (0, 1, 3, 4)], rule, space)
    assert result.update.digest() == rest.update.digest()
    assert result.coefficients == rest.coefficients


@pytest.mark.parametrize("space", SPACES)
def test_a_non_finite_reference_is_never_excluded(space):
    reference = changed(client(99), "a.lora_A.weight", np.nan)
    with pytest.raises(NonFiniteError, match=r"reference: tensor 'a.lora_A.weight'"):
        fc.aggregate(CLIENTS, NormClipping(1.0), space, reference=reference, on_nonfinite="exclude")


def test_nobody_left():
    bad = [changed(u, "head.weight", np.inf) for u in CLIENTS[:2]]
    with pytest.raises(NonFiniteError, match="every client sent NaN or Inf"):
        fc.aggregate(bad, Mean(), on_nonfinite="exclude")


@pytest.mark.parametrize(("kind", "other"), [("rank", client(7, rank=3)), ("scale", client(7, scale=1.0))])
def test_mixed_ranks_and_scales_need_delta_space(kind, other):
    with pytest.raises(LayoutError, match=f"client 'c7': module 'a' has {kind}.*space='delta'"):
        fc.aggregate([*CLIENTS, other], Mean(), "parameters")
    with pytest.raises(LayoutError, match=f"reference: module 'a' has {kind}.*space='delta'"):
        fc.aggregate(CLIENTS, NormClipping(1.0), "parameters", reference=other)
    assert fc.aggregate([*CLIENTS, other], Mean()).report["n"] == 7
    assert fc.aggregate(CLIENTS, NormClipping(1.0), reference=other).report["n"] == 6


@pytest.mark.parametrize("space", SPACES)
def test_cohorts_that_do_not_belong_together_are_refused(space):
    with pytest.raises(LayoutError, match="client 'c7': its base model is 'other'"):
        fc.aggregate([*CLIENTS, client(7, base="other")], Mean(), space)
    with pytest.raises(LayoutError, match="reference: its base model is 'other'"):
        fc.aggregate(CLIENTS, NormClipping(1.0), space, reference=client(7, base="other"))
    full = fc.Update.from_tensors({"w": np.ones(3, np.float32)}, client_id="c7", base="model")
    with pytest.raises(LayoutError, match="c7"):
        fc.aggregate([*CLIENTS, full], Mean(), space)
    with pytest.raises(ShapeError, match="no update"):
        fc.aggregate([], Mean(), space)
    with pytest.raises(LayoutError, match="two updates"):
        fc.aggregate([CLIENTS[0], CLIENTS[0]], Mean(), space)


def test_a_reference_of_another_dtype_counts_only_where_it_is_added_up():
    reference = client(99, dtype=np.float16)
    with pytest.raises(LayoutError, match=r"reference: tensor 'a.lora_A.weight' is float16, expected float32.*convert"):
        fc.aggregate(CLIENTS, NormClipping(1.0), "parameters", reference=reference)
    assert fc.aggregate(CLIENTS, Krum(1), "parameters", reference=reference).report["n"] == 6
    assert fc.aggregate(CLIENTS, NormClipping(1.0), "delta", reference=reference).report["clipped"] == 6


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


@pytest.mark.parametrize("space", SPACES)
def test_a_backend_or_thread_count_that_is_none_is_refused_even_where_no_op_runs(space):
    factors = [
        fc.Update.from_tensors({k: t for k, t in u.tensors.items() if "lora" in k}, client_id=u.client_id,
                               scaling=u.scaling) for u in CLIENTS
    ]  # fmt: skip
    for threads in (0, -1, "two"):
        with pytest.raises(RangeError, match="threads: got"):
            fc.aggregate(factors, Mean(), space, threads=threads)
    with pytest.raises(BackendError, match="backend 'nope'"):
        fc.aggregate(factors, Mean(), space, backend="nope")


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


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"space": "gradient"}, "space: got 'gradient'"),
        ({"on_nonfinite": "ignore"}, "on_nonfinite: got 'ignore'"),
        ({"rule": Krum}, "expected an instance"),
        ({"rule": Krum(2)}, "largest f for n=6 is 1"),
    ],
)
def test_bad_arguments_are_refused(arguments, text):
    with pytest.raises(RuleError, match=text):
        fc.aggregate(CLIENTS, **({"rule": Mean()} | arguments))


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


@pytest.mark.parametrize("way", [lambda *a, **k: fc.aggregate(a[0], Mean(), **k), fc.lora.FedIT().aggregate])
def test_what_is_no_sequence_of_updates_and_no_reference_is_named(way):
    with pytest.raises(LayoutError, match=r"^updates: got a dict, expected a sequence .*; pass its values\(\)$"):
        way(dict(enumerate(CLIENTS)))
    with pytest.raises(LayoutError, match=r"^updates: got .*; put one in a list$"):
        way(CLIENTS[0])
    with pytest.raises(LayoutError, match=r"^reference: got a dict, expected an Update or the path of an adapter$"):
        way(CLIENTS, reference={})


@pytest.mark.parametrize(
    ("weights", "error", "text"),
    [
        (3, ShapeError, r"^weights: got 3, expected a mapping by client_id or a list in order$"),
        ("abcdef", ShapeError, r"^weights: got 'abcdef', expected a mapping"),
        (np.float32(3), ShapeError, r"^weights: got .*3.*, expected a mapping"),
        ({1.0, 2.0, 3.0, 4.0, 5.0, 6.0}, ShapeError, r"^weights: got .*, which has no order, expected"),
        ([1, 1, None, 1, 1, 1], WeightError, r"^client 'c2': got weight None, expected a finite number above 0"),
        (
            [1, 1, 1, 10**400, 1, 1],
            WeightError,
            r"^client 'c3': got weight an integer of 1329 bits, expected a finite number above 0",
        ),
        ({f"c{i}": None if i == 4 else 1 for i in range(6)}, WeightError, r"^client 'c4': got weight None, expected"),
        (dict.fromkeys(range(6), 1), ShapeError, r"^weights: client 0 sent no update but has a weight"),
        ([1, "2", 1, 1, 1, 1], WeightError, r"^client 'c1': got weight '2', expected"),
        ([1, [2], 1, 1, 1, 1], WeightError, r"^client 'c1': got weight \[2\], expected"),
    ],
)
def test_weights_that_are_no_numbers_are_named(weights, error, text):
    for way in (
        lambda **given: fc.aggregate(CLIENTS, Mean(), **given),
        lambda **g: fc.lora.FedIT().aggregate(CLIENTS, **g),
    ):
        with pytest.raises(error, match=text) as caught:
            way(weights=weights)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 300
