"""Clients that trained fewer modules, under rules on Δ: against dense matrices in which they stand at the reference."""

from __future__ import annotations

import numpy as np
import pytest

import fedcore as fc
from fedcore import Update, aggregate
from fedcore.cli import main
from fedcore.errors import LayoutError, NonFiniteError
from fedcore.lora import FactorPasses, FlexLoRA
from fedcore.rules import (
    Bulyan,
    CenteredClipping,
    GeometricMedian,
    Krum,
    Mean,
    Median,
    MinimumDiameterAveraging,
    MultiKrum,
    NearestNeighborMixing,
    NormClipping,
    TrimmedMean,
)
from tests.delta_cohorts import SHAPES, adapter, mixed_cohort, near_cohort
from tests.oracles import delta as dense


def without(update: Update, *modules: str) -> Update:
    """The update of a client that did not train these modules."""
    kept = {n: t for n, t in update.tensors.items() if not n.startswith(tuple(f"{module}." for module in modules))}
    scaling = {module: scale for module, scale in update.scaling.items() if module not in modules}
    return Update.from_tensors(kept, num_examples=update.num_examples, client_id=update.client_id, scaling=scaling)


def fewer(updates: list[Update]) -> list[Update]:
    """c0 lacks one module, c2 two, c4 another one."""
    lacking = {0: ("up",), 2: ("down", "up"), 4: ("tiny",)}
    return [without(update, *lacking.get(i, ())) for i, update in enumerate(updates)]


def dense_row(update: Update, reference: Update | None) -> np.ndarray:
    """Every module of SHAPES in order, then the head; what the client lacks is the reference's, or 0."""
    parts = []
    for module, shape in SHAPES.items():
        held = update if module in update.modules else reference
        parts.append(np.zeros(shape) if held is None else dense.dense(held, module))
    parts.append(np.asarray(update.tensors["head.weight"], np.float64))
    return np.concatenate([part.ravel() for part in parts])


def assert_holds(result: Update, expected: np.ndarray, ranks: dict[str, int], atol: float = 3e-6) -> None:
    """Each module of a result is the truncation of its part of a dense row, which is 0 where there is no module."""
    start = 0
    for module, shape in SHAPES.items():
        part = expected[start : (start := start + shape[0] * shape[1])].reshape(shape)
        if module not in result.modules:
            assert not part.any()
            continue
        best = dense.truncated(part, ranks[module])
        np.testing.assert_allclose(dense.dense(result, module), best, atol=atol * np.linalg.norm(part))
    np.testing.assert_allclose(result.tensors["head.weight"].ravel(), expected[start:], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("with_reference", [True, False])
@pytest.mark.parametrize(
    "rule",
    [
        Mean(),
        NormClipping(8.0),
        Krum(1),
        MultiKrum(2),
        GeometricMedian(),
        CenteredClipping(5.0),
        NearestNeighborMixing(2).then(MultiKrum(2)),
    ],
    ids=str,
)
def test_linear_rules_give_the_coefficients_of_the_dense_updates(rule, with_reference):
    """The same rule on dense rows, in which the missing module stands at the reference, is the oracle."""
    updates, reference = fewer(mixed_cohort(3)), mixed_cohort(11)[0] if with_reference else None
    result = aggregate(updates, rule, reference=reference)
    rows = np.stack([dense_row(update, reference) for update in updates])
    center = None if reference is None else dense_row(reference, None)

    def flat(name: str, row: np.ndarray) -> Update:
        examples = {u.client_id: u.num_examples for u in updates}.get(name, 1)
        return Update.from_tensors({"x": row.astype(np.float32)}, client_id=name, num_examples=examples)

    plain = [flat(update.client_id, row) for update, row in zip(updates, rows, strict=True)]
    expected = aggregate(plain, rule, "parameters", reference=None if center is None else flat("reference", center))
    for client, value in expected.coefficients.items():
        found = result.coefficients[client] / result.report["divisor"]
        assert found == pytest.approx(value / expected.report["divisor"], rel=1e-5, abs=1e-7)
    ranks = {module: pair.rank for module, pair in result.update.modules.items()}
    assert_holds(result.update, expected.update.tensors["x"].astype(float), ranks, atol=1e-5)


@pytest.mark.parametrize("with_reference", [True, False])
def test_order_rules_count_every_client_in_every_module(with_reference):
    updates, reference = fewer(mixed_cohort(5)), mixed_cohort(11)[0] if with_reference else None
    rows = np.stack([dense_row(update, reference) for update in updates]).astype(np.float32).astype(float)
    for rule, expected in ((Median(), np.median(rows, 0)), (TrimmedMean(2), np.sort(rows, 0)[2:-2].mean(0))):
        found = aggregate(updates, rule, reference=reference, dense=True).update
        start = 0
        for module, shape in SHAPES.items():
            part = expected[start : (start := start + shape[0] * shape[1])].reshape(shape)
            np.testing.assert_allclose(found.tensors[f"{module}.weight"], part, rtol=1e-5, atol=1e-6)


def test_attackers_who_alone_train_a_module_do_not_decide_it():
    """Three of seven, and the only ones with the module: the median over those who have it would be theirs."""
    clients, reference = near_cohort(0)
    honest = [without(update, "up") for update in clients[:4]]
    rng = np.random.default_rng(1)
    attackers = [adapter(rng, f"x{i}", scale=100.0, head=True) for i in range(3)]
    found = aggregate([*honest, *attackers], Median(), reference=reference, dense=True).update
    np.testing.assert_allclose(found.tensors["up.weight"], dense.dense(reference, "up"), atol=1e-5)
    alone = aggregate([*honest, *attackers], Median(), dense=True).update
    assert not alone.tensors["up.weight"].any()
    chosen = aggregate([*honest, *attackers], Krum(2), reference=reference)
    (name,) = [client for client, value in chosen.coefficients.items() if value]
    assert name.startswith("c")


def test_a_client_that_alone_counts_leaves_a_module_as_the_reference_has_it():
    updates, reference = fewer(mixed_cohort(4)), mixed_cohort(11)[1]
    found = aggregate(updates[2:3], Mean(), reference=reference).update
    for module, pair in found.modules.items():
        held = updates[2] if module in updates[2].modules else reference
        assert pair.scale == held.scaling[module]
        assert all(found.tensors[name].tobytes() == held.tensors[name].tobytes() for name in (pair.a, pair.b))


@pytest.mark.parametrize(("rank", "core"), [(None, "kept"), (2, None), ("full", "kept")])
def test_modules_that_only_others_have_are_no_part_of_what_is_chosen(rank, core):
    """Nobody said what the others' modules were before: 0, which no module is, too."""
    updates = fewer(mixed_cohort(4))
    passes = FactorPasses(updates, [update.client_id for update in updates], len(updates), rank=rank)
    alone = passes.combine(np.float32([0, 0, 1, 0, 0, 0, 0]), 1.0)
    assert alone.modules.keys() == alone.scaling.keys() == updates[2].modules.keys() == {"tiny"}
    assert alone.modules["tiny"].core == core or core is None
    for name in ("tiny.lora_A.weight", "tiny.lora_B.weight") if core else ():
        assert alone.tensors[name].tobytes() == updates[2].tensors[name].tobytes()
    tiny = alone.scaling["tiny"] * alone.tensors["tiny.lora_B.weight"] @ alone.tensors["tiny.lora_A.weight"]
    best = dense.truncated(dense.dense(updates[2], "tiny"), 2 if rank == 2 else 4)
    np.testing.assert_allclose(tiny, best, atol=1e-5)
    both = passes.combine(np.float32([1, 0, 1, 0, 0, 0, 0]), 2.0)
    assert both.modules.keys() == {"down", "tiny"}


@pytest.mark.parametrize("rule", [Krum(1), MultiKrum(1, m=3), MinimumDiameterAveraging(1)], ids=str)
def test_a_module_that_an_attacker_adds_changes_no_byte(rule):
    clients, _ = near_cohort(2)
    named = [without(update, "up") for update in clients[:-1]]
    before = aggregate([*named, without(clients[-1], "up")], rule)
    after = aggregate([*named, clients[-1]], rule)
    assert after.report["counted"] == before.report["counted"]
    assert after.update.digest() == before.update.digest()
    assert after.update.modules.keys() == {"down", "tiny"}
    if rule == Krum(1):
        (chosen,) = (update for update in named if after.coefficients[update.client_id])
        assert all(t.tobytes() == chosen.tensors[name].tobytes() for name, t in after.update.tensors.items())


def test_a_statistic_of_chosen_clients_has_their_modules():
    clients, _ = near_cohort(3)
    found = aggregate([*(without(update, "up") for update in clients[:-1]), clients[-1]], Bulyan(1))
    assert clients[-1].client_id not in found.report["counted"]
    assert found.update.modules.keys() == {"down", "tiny"}


@pytest.mark.parametrize("rank", [None, "full"])
def test_a_client_that_is_chosen_has_what_it_lacks_in_the_clients_dtype(rank):
    """The broadcast is in fp32, the clients are not: a chosen client's result is as every other rule's."""
    rng = np.random.default_rng(3)
    reference = adapter(rng, "r", scale=1.5)
    updates = [without(adapter(rng, f"c{i}", dtype="float16"), *(["up"] if i else [])) for i in range(5)]
    passes = FactorPasses(updates, [update.client_id for update in updates], 5, start=reference, rank=rank)
    chosen = passes.combine(np.float32([0, 0, 1, 0, 0]), 1.0)
    mean = passes.combine(np.ones(5, np.float32), 5.0)
    assert {t.dtype for t in chosen.tensors.values()} == {t.dtype for t in mean.tensors.values()} == {np.dtype("f2")}
    assert chosen.scaling == mean.scaling
    up, before = chosen.modules["up"], dense.dense(reference, "up")
    found = chosen.scaling["up"] * np.float64(chosen.tensors["up.lora_B.weight"]) @ chosen.tensors["up.lora_A.weight"]
    lost = np.linalg.norm(found - before) / np.linalg.norm(before)
    assert up.norm == pytest.approx(np.linalg.norm(before))
    assert up.residual == pytest.approx(lost, rel=1e-2)
    assert 0 < lost <= up.most
    for name in ("down.lora_A.weight", "down.lora_B.weight"):
        assert chosen.tensors[name].tobytes() == updates[2].tensors[name].tobytes()


def test_a_module_that_no_client_trained_stays_as_it_was():
    reference = mixed_cohort(11)[0]
    updates = [without(update, "up") for update in mixed_cohort(2)]
    for rule in (Mean(), Median(), Krum(1)):
        found = aggregate(updates, rule, reference=reference)
        before = dense.dense(reference, "up")
        np.testing.assert_allclose(dense.dense(found.update, "up"), before, atol=3e-6 * np.linalg.norm(before))


def test_from_files_and_as_peft_it_is_the_same(tmp_path):
    """The config of the result names every module, whichever a client's config named."""
    updates, reference = fewer(mixed_cohort(6)), mixed_cohort(11)[0]
    for update in updates:
        update.to_peft(tmp_path / update.client_id)
    opened, mapped = ([way(tmp_path / u.client_id) for u in updates] for way in (Update.open, Update.from_peft))
    for rule in (MultiKrum(2), Median()):
        one = aggregate(opened, rule, memory="1GB", reference=reference, weights=[1.0] * 7).update
        assert one.digest() == aggregate(mapped, rule, reference=reference, weights=[1.0] * 7).update.digest()
        name = type(rule).__name__
        one.to_peft(tmp_path / name)
        assert set(Update.from_peft(tmp_path / name).adapter_config["target_modules"]) == set(SHAPES)
    both = [update for update in opened if len(update.modules) < 3]
    part = aggregate(both, Mean(), weights=[1.0] * len(both)).update
    part.to_peft(tmp_path / "part")
    again = fc.Update.from_peft(tmp_path / "part")
    assert set(again.adapter_config["target_modules"]) == set(again.modules) == set(SHAPES)


def test_what_delta_space_cannot_take_is_named():
    rng = np.random.default_rng(0)
    one, two, reference = adapter(rng, "c0"), adapter(rng, "c1"), adapter(rng, "r")
    with pytest.raises(LayoutError, match="client 'c1': module 'up' is extra, the reference has none"):
        aggregate([without(one, "up"), two], Mean(), reference=without(reference, "up"))
    empty = Update.from_tensors({"head.weight": np.ones((4, 5), np.float32)}, client_id="c1")
    with pytest.raises(LayoutError, match="client 'c1': has no LoRA factors"):
        aggregate([adapter(rng, "c0", head=True), empty], Mean())
    with pytest.raises(LayoutError, match=r"client 'c1': tensor 'head.weight' is extra"):
        aggregate([one, adapter(rng, "c1", head=True)], Mean())
    with pytest.raises(LayoutError, match="use space='delta'"):
        aggregate([one, without(two, "up")], Mean(), "parameters")
    other = {name: (t[:, :-1] if name == "up.lora_A.weight" else t) for name, t in two.tensors.items()}
    with pytest.raises(LayoutError, match=r"client 'c1': module 'up' is 24 × 9, expected 24 × 10"):
        aggregate([one, Update.from_tensors(other, client_id="c1", scaling=two.scaling)], Mean())
    with pytest.raises(LayoutError, match=r"client 'c1': tensor 'down.lora_A.weight' is float16, expected float32"):
        aggregate([one, adapter(rng, "c1", dtype="float16")], Mean())
    tensors = {name: np.array(t) for name, t in reference.tensors.items()}
    tensors["up.lora_A.weight"][0, 0] = np.nan
    broken = Update.from_tensors(tensors, scaling=reference.scaling)
    with pytest.raises(NonFiniteError, match=r"the reference: tensor 'up.lora_A.weight'"):
        aggregate([one, without(two, "up")], Mean(), reference=broken, on_nonfinite="exclude")


def test_what_a_client_lacks_is_in_the_report():
    updates = fewer(mixed_cohort(7))
    for rule in (Mean(), Median(), Krum(1)):
        expected = {"c0": ["up"], "c2": ["down", "up"], "c4": ["tiny"]}
        assert aggregate(updates, rule).report["lacking"] == expected
        assert "lacking" not in aggregate(mixed_cohort(7), rule).report
    assert FlexLoRA().aggregate(updates).report["lacking"] == expected
    assert "lacking" not in FlexLoRA().aggregate(mixed_cohort(7)).report


def test_the_command_tells_of_a_module_that_one_adapter_lacks(tmp_path, capsys):
    """Nobody can tell a module under another name from one that was not trained."""
    lacking = {"a": ("tiny",), "b": ("tiny",), "c": ("tiny",), "d": ("up",)}
    for (name, modules), update in zip(lacking.items(), mixed_cohort(8, n=4), strict=True):
        without(update, *modules).to_peft(tmp_path / name)
    mixed_cohort(11)[0].to_peft(tmp_path / "start")
    given, key, start = [str(tmp_path / name) for name in "abcd"], str(tmp_path / "d"), str(tmp_path / "start")
    more = "; not in every adapter: 1 more, which --json lists\n"

    def told(*options: str) -> str:
        out = str(tmp_path / f"out{len(list(tmp_path.iterdir()))}")
        assert main(["aggregate", *options, "-o", out, "--weights", "equal"]) == 0
        return capsys.readouterr().err

    zero = "it counts there with 0 (--reference gives another start)"
    assert f"fedcore: note: client {key!r} lacks module 'up'; {zero}{more}" in told(*given)
    text = told(*given, "--reference", start)
    assert f"fedcore: note: client {key!r} lacks module 'up'; it counts there with what {start} has{more}" in text
    assert f"fedcore: note: client {key!r} lacks module 'up'; {zero}{more}" in told(*given, "--method", "flexlora")
    two = told(*given[:2], key)
    assert f"client {key!r} lacks module 'up'" in two
    assert "note" not in told(*given[:3])


def test_the_command_takes_directories_of_fewer_modules(tmp_path, capsys):
    """--reference is what they stand at, so that no note says that it changes nothing."""
    updates, reference = [without(u, "up") if i else u for i, u in enumerate(mixed_cohort(8, n=3))], mixed_cohort(11)[0]
    for update, name in [*zip(updates, "abc", strict=True), (reference, "start")]:
        update.to_peft(tmp_path / name)
    given = [str(tmp_path / name) for name in "abc"]
    told = ["--weights", "equal", "--reference", str(tmp_path / "start")]
    assert main(["aggregate", *given, "-o", str(tmp_path / "out"), *told]) == 0
    assert "changes nothing" not in capsys.readouterr().err
    found = Update.from_peft(tmp_path / "out")
    mean = (dense.dense(updates[0], "up") + 2 * dense.dense(reference, "up")) / 3
    best = dense.truncated(mean, found.modules["up"].rank)
    np.testing.assert_allclose(dense.dense(found, "up"), best, atol=1e-5 * np.linalg.norm(mean))
