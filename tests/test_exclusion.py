"""on_nonfinite="exclude": all broken clients are found in one pass and left out together, named as each alone is."""

from __future__ import annotations

import numpy as np
import pytest

import fedcore as fc
import fedcore.engine.run as engine
from fedcore.errors import NonFiniteError
from fedcore.rules import CenteredClipping, Coefficients, Mean, Median, MoNNA, MultiKrum, NormClipping, Rule
from tests.engine_cohorts import changed, client

CLIENTS = [client(i) for i in range(12)]
#: client -> where it sent what
HEAD = {"head.weight": 7}
FACTORS = {1: {"b.lora_B.weight": 3}, 4: {"a.lora_A.weight": 5}, 5: {"a.lora_B.weight": 0}}
BROKEN = {**FACTORS, 8: HEAD, 11: {"b.lora_A.weight": 9, **HEAD}}
RULES = [Mean(), Median(), MultiKrum(1), NormClipping(2.0), NormClipping(2.0).then(Median())]


@pytest.fixture
def attempts(monkeypatch):
    """How often the rule was run."""
    made, run = [], engine.run
    monkeypatch.setattr(engine, "run", lambda *given: made.append(1) or run(*given))
    return made


def broken(where: dict[int, dict[str, int]]) -> list[fc.Update]:
    updates = list(CLIENTS)
    for i, places in where.items():
        for name, element in places.items():
            updates[i] = changed(updates[i], name, (np.nan, np.inf, -np.inf)[i % 3], element)
    return updates


def cancelling(seed: int) -> fc.Update:
    """A client with a pair of huge terms that cancel."""
    update, huge = client(seed), np.float32(2.0**30)
    tensors = {name: np.array(t) for name, t in update.tensors.items()}
    one = np.full((9, 1), huge)
    tensors["a.lora_B.weight"] = np.hstack((tensors["a.lora_B.weight"], one, -one))
    tensors["a.lora_A.weight"] = np.vstack((tensors["a.lora_A.weight"], np.full((2, 6), huge)))
    who = {"num_examples": seed + 1, "client_id": f"c{seed}", "scaling": update.scaling, "base": "model"}
    return fc.Update.from_tensors(tensors, **who)


def check(updates, bad, rule, space, **options):
    found = fc.aggregate(updates, rule, space, on_nonfinite="exclude", **options)
    good = [update for update in updates if update.client_id not in bad]
    assert set(found.excluded) == bad
    assert found.report["excluded"] == found.excluded
    assert found.update.digest() == fc.aggregate(good, rule, space, **options).update.digest()
    for update in updates:
        if update.client_id in bad:
            with pytest.raises(NonFiniteError) as alone:
                fc.aggregate([*good, update], rule, space, **options)
            assert found.excluded[update.client_id] == str(alone.value)
    return found


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_five_of_twelve_are_left_out_at_once(rule, attempts):
    updates = broken(BROKEN)
    bad = {f"c{i}" for i in BROKEN}
    fc.aggregate(updates, rule, "parameters", on_nonfinite="exclude")
    assert len(attempts) == 2
    check(updates, bad, rule, "parameters")


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_in_delta_space_factors_and_dense_tensors_take_a_new_start_each(rule, attempts):
    updates = broken(BROKEN)
    updates[2] = cancelling(2)
    updates[7] = cancelling(7)
    bad = {f"c{i}" for i in (*BROKEN, 2, 7)}
    fc.aggregate(updates, rule, "delta", on_nonfinite="exclude")
    assert len(attempts) <= 3
    check(updates, bad, rule, "delta")
    attempts.clear()
    fc.aggregate(broken(FACTORS), rule, "delta", on_nonfinite="exclude")
    assert len(attempts) == 2


@pytest.mark.parametrize(("rule", "most"), [(Median(), 3), (MultiKrum(1), 4)], ids=repr)
def test_files_are_read_once_more_to_find_them(rule, most, tmp_path):
    paths = []
    for update in broken(BROKEN):
        paths.append(tmp_path / f"{update.client_id}.safetensors")
        paths[-1].write_bytes(update.to_bytes())
    passes = []
    options = {"memory": "200MB", "progress": lambda work, done, total: done == 0 and passes.append(work)}
    fc.aggregate(paths, rule, "parameters", on_nonfinite="exclude", **options)
    parts = {work.partition(", ")[2] for work in passes}
    assert len(parts) == 2
    # where the part that comes first holds no NaN it is read before the hit, too
    assert len(passes) <= most * len(parts), passes
    updates = [fc.Update.open(path) for path in paths]
    check(updates, {f"c{i}" for i in BROKEN}, rule, "parameters")


def test_who_is_not_read_is_not_looked_at():
    class FirstHalf(Rule):
        def decide(self, geometry, weights):
            return Coefficients((np.arange(geometry.clients) < 4).astype(float))

    # in the order of ids c0, c1, c10, c11, c2, ...; c2 moves up where c1 has left
    found = fc.aggregate(broken({1: HEAD, 5: HEAD}), FirstHalf(), "parameters", on_nonfinite="exclude")
    assert set(found.excluded) == {"c1"}


def test_the_largest_finite_numbers_are_finite():
    updates = broken({1: {"b.lora_B.weight": 3}})
    for name in ("a.lora_A.weight", "head.weight"):
        for element in range(12):
            updates[3] = changed(updates[3], name, -np.finfo(updates[3].tensors[name].dtype).max, element)
    found = fc.aggregate(updates, MultiKrum(2), "parameters", on_nonfinite="exclude")
    assert set(found.excluded) == {"c1"}


def test_a_trusted_row_keeps_its_place_though_several_before_it_leave():
    updates = broken(dict.fromkeys((0, 2, 3, 9), HEAD))
    found = fc.aggregate(updates, MoNNA(2, pivot=6), "parameters", on_nonfinite="exclude")
    assert "pivot=3" in found.report["rule"]
    assert found.report["distances"]["c4"] == 0


def test_nobody_is_left():
    with pytest.raises(NonFiniteError, match=r"every client sent NaN or Inf .*, the last one: client 'c9'"):
        fc.aggregate(broken(dict.fromkeys(range(12), HEAD)), Median(), "parameters", on_nonfinite="exclude")


def test_a_reference_that_is_read_is_no_client_to_look_at():
    """The pass reads it as the row after the last client."""
    updates, reference = broken(dict.fromkeys((1, 9), HEAD)), client(20)
    for space in ("parameters", "delta"):
        check(updates, {"c1", "c9"}, NormClipping(2.0), space, reference=reference)
        check(updates, {"c1", "c9"}, MultiKrum(1), space, reference=reference)
        check(updates, {"c1", "c9"}, CenteredClipping(2.0), space, reference=reference, center=client(21))
