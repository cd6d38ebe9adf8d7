"""fc.aggregate: cohorts, references and arguments that are refused, and clients named or excluded for NaN."""

from __future__ import annotations

import numpy as np
import pytest

import fedcore as fc
from fedcore.errors import BackendError, LayoutError, NonFiniteError, RangeError, RuleError, ShapeError
from fedcore.rules import Krum, Mean, NormClipping
from tests.engine_cohorts import CLIENTS, SPACES, changed, client


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


@pytest.mark.parametrize("way", [lambda *a, **k: fc.aggregate(a[0], Mean(), **k), fc.lora.FedIT().aggregate])
def test_what_is_no_sequence_of_updates_and_no_reference_is_named(way):
    with pytest.raises(LayoutError, match=r"^updates: got a dict, expected a sequence .*; pass its values\(\)$"):
        way(dict(enumerate(CLIENTS)))
    with pytest.raises(LayoutError, match=r"^updates: got .*; put one in a list$"):
        way(CLIENTS[0])
    with pytest.raises(LayoutError, match=r"^reference: got a dict, expected an Update or the path of an adapter$"):
        way(CLIENTS, reference={})
