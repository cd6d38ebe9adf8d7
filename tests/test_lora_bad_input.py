"""What LoRA methods refuse, each in one line that names the client, tensor or module; and bugs of published code."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

import fedcore as fc
from fedcore import lora
from fedcore.errors import FedcoreError, FormatError, LayoutError, NonFiniteError, RuleError, ShapeError, WeightError
from tests.method_cohorts import SHAPES, adapter, alike, cores, frozen, mean_delta, mixed, parts, shares
from tests.oracles import delta as dense
from tests.oracles import lora as oracle

NEEDS_ALIKE = {"fedit", "rolora", "lora_fair", "frlora", "fedsvd", "fedsb"}


def changed(update, client_id="odd", base=None, **tensors):
    """An adapter with some tensors replaced; None removes one. "up__B" stands for "up.lora_B.weight"."""
    found = dict(update.tensors)
    for name, values in tensors.items():
        found[name.replace("__", ".lora_") + ".weight"] = values
    kept = {name: values for name, values in found.items() if values is not None}
    return fc.Update.from_tensors(kept, scaling=update.scaling, client_id=client_id, base=base)


def said(error, *words):
    text = str(error.value)
    assert "\n" not in text
    assert isinstance(error.value, FedcoreError)
    for word in words:
        assert word in text, text


@pytest.mark.parametrize("name", lora.METHODS)
def test_mixed_ranks_are_taken_or_refused_as_the_traits_say(name):
    method = lora.METHODS[name]()
    assert method.traits.mixed == (name not in NEEDS_ALIKE)
    known = {"reference": cores()[1]} if method.traits.reference else {}
    if method.traits.mixed:
        updates = mixed(**frozen("a")) if name == "ffa_lora" else mixed()
        assert method.aggregate(updates, **known).update.modules.keys() == SHAPES.keys()
        return
    for updates, words in (
        (mixed()[:2], ("rank 1", "expected 4")),
        ([adapter(0, "a"), adapter(1, "b", scale=3.0)], ("scale 6",)),
        ([adapter(0, "a"), adapter(1, "b", modules=("up",))], ("'down'", "missing")),
    ):
        with pytest.raises(LayoutError) as error:
            method.aggregate(updates, **known)
        said(error, "client '", name, *words)


def test_factors_that_do_not_fit_are_named():
    good = adapter(0, "good")
    with pytest.raises(LayoutError) as error:
        changed(good, up__B=None)
    said(error, "up.lora_A.weight", "partner", "missing")
    with pytest.raises(LayoutError) as error:
        changed(good, up__A=np.zeros((0, 10), np.float32), up__B=np.zeros((24, 0), np.float32))
    said(error, "up.lora_A.weight", "rank")
    with pytest.raises(LayoutError) as error:
        changed(good, up__A=np.zeros((10, 4), np.float32))
    said(error, "up.lora_B.weight", "rank 4", "(10, 4)")
    # both transposed: the shapes fit each other, as a rank of 10 for a Δ of 4 × 4
    flipped = changed(good, up__A=np.ones((10, 4), np.float32), up__B=np.ones((4, 10), np.float32))
    with pytest.raises(LayoutError) as error:
        lora.FlexLoRA().aggregate([good, flipped])
    said(error, "client 'odd'", "'up'", "rank 10", "4 × 4", "A is (rank, d_in)")
    other = changed(good, up__A=np.ones((4, 11), np.float32))
    with pytest.raises(LayoutError) as error:
        lora.FLoRA().aggregate([good, other])
    said(error, "client 'odd'", "24 × 11", "24 × 10")
    with pytest.raises(LayoutError) as error:
        lora.FLoRA().aggregate([good, changed(good, up__A=np.float16(good.tensors["up.lora_A.weight"]))])
    said(error, "client 'odd'", "up.lora_A.weight", "float16")
    with pytest.raises(LayoutError) as error:
        lora.FlexLoRA(rank=9).aggregate([good])
    said(error, "rank 9", "at most 7", "'down'")
    with pytest.raises(LayoutError) as error:
        lora.FedIT().aggregate([fc.Update.from_tensors({"w": np.ones(3, np.float32)}, client_id="full")])
    said(error, "client 'full'", "no LoRA factors")
    extra = fc.Update.from_tensors(
        dict(good.tensors) | {"head.weight": np.ones(2, np.float32)}, scaling=good.scaling, client_id="odd"
    )
    with pytest.raises(LayoutError) as error:
        lora.FLoRA().aggregate([good, extra])
    said(error, "client 'odd'", "head.weight", "extra")


@pytest.mark.parametrize("method", [lora.FFALoRA(), lora.FedSVD()])
def test_a_factor_that_should_be_frozen_is_compared_in_every_bit(method):
    good = alike(3, **frozen("a"))
    a = np.array(good[1].tensors["down.lora_A.weight"])
    a[2, 5] = np.nextafter(a[2, 5], np.float32(9))
    with pytest.raises(LayoutError) as error:
        method.aggregate([*good, changed(good[1], down__A=a)])
    said(error, "client 'odd'", "'down'", "A is frozen")


def test_a_reference_that_counts_for_a_client_has_the_frozen_factor_too():
    clients, other = mixed(**frozen("a")), adapter(50, "global", **frozen("a", seed=98))
    assert "up" not in clients[-1].modules
    assert lora.FFALoRA().aggregate(clients, reference=adapter(50, "global", **frozen("a"))).update.modules
    with pytest.raises(LayoutError) as error:
        lora.FFALoRA().aggregate(clients, reference=other)
    said(error, "the reference", "A is frozen")


def test_rolora_names_the_factor_of_the_round():
    with pytest.raises(LayoutError) as error:
        lora.RoLoRA().aggregate(alike(**frozen("a")), number=2)
    said(error, "B is frozen")


def test_fed_sb_finds_a_factor_that_left_its_span():
    clients, fixed = cores()
    b = np.array(clients[0].tensors["up.lora_B.weight"])
    b[0] += 1
    with pytest.raises(LayoutError) as error:
        lora.FedSB().aggregate([*clients, changed(clients[0], up__B=b)], reference=fixed)
    said(error, "client 'odd'", "'up'", "core")


def test_what_is_missing_or_out_of_range_is_named():
    good = alike(2)
    for make, words in (
        (lambda: lora.FlexLoRA(rank=0), ("flexlora", "rank=0")),
        (lambda: lora.FedSVD(every=0), ("fedsvd", "every=0")),
        (lambda: lora.LoRAFAIR(0.0), ("lora_fair", "0.0")),
        (lambda: lora.FLoRA(side_rank=0), ("flora", "side_rank=0")),
        (lambda: lora.RandomizedSketch(size=0), ("size=0",)),
        (lambda: lora.RandomizedSketch(passes=3), ("passes=3",)),
        (lambda: lora.FlexLoRA(rank=True), ("flexlora", "rank=True")),
        (lambda: lora.FlexLoRA(error_feedback="no"), ("flexlora", "error_feedback='no'")),
        (lambda: lora.RaFLoRA(error_feedback=1), ("raflora", "error_feedback=1")),
        (lambda: lora.FedSVD(every=True), ("fedsvd", "every=True")),
        (lambda: lora.LoRAFAIR(True), ("lora_fair", "True")),
        (lambda: lora.FLoRA(side_rank=True), ("flora", "side_rank=True")),
        (lambda: lora.FLoRA(seed=-1), ("flora", "seed=-1")),
        (lambda: lora.RandomizedSketch(seed=-1), ("randomized_sketch", "seed=-1")),
        (lambda: lora.RandomizedSketch(size=True), ("size=True",)),
        (lambda: lora.RandomizedSketch(passes=True), ("passes=True",)),
        (lambda: lora.FedIT().aggregate(good, number=True), ("number", "True")),
        (lambda: lora.FedIT().aggregate(good, number=0), ("number", "0")),
        (lambda: lora.FedIT().aggregate(good, side=adapter(5, "side")), ("side", "fedit")),
    ):
        with pytest.raises(RuleError) as error:
            make()
        said(error, *words)
    for name in ("frlora", "fedsb"):
        with pytest.raises(LayoutError) as error:
            lora.METHODS[name]().aggregate(good)
        said(error, "reference: missing", name)
    with pytest.raises(WeightError) as error:
        lora.FLoRA().aggregate(good, weights=[1.0, 0.0])
    said(error, "client 'c1'")
    with pytest.raises(ShapeError) as error:
        lora.FLoRA().aggregate(good, weights={"c0": 1.0})
    said(error, "client 'c1'")


def test_nan_and_another_base_are_named():
    good = alike(2)
    a = np.array(good[0].tensors["up.lora_A.weight"])
    a[1, 2] = np.nan
    with pytest.raises(NonFiniteError) as error:
        lora.FlexLoRA().aggregate([*good, changed(good[0], up__A=a)])
    said(error, "client 'odd'", "up.lora_A.weight", "element 12")
    with pytest.raises(LayoutError) as error:
        lora.FedIT().aggregate([changed(good[0], "a", base="1" * 64), changed(good[1], "b", base="2" * 64)])
    said(error, "client 'b'", "2222")
    side = lora.FLoRA().aggregate([changed(good[0], "a", base="1" * 64)]).side
    with pytest.raises(LayoutError) as error:
        lora.FLoRA().aggregate([changed(good[1], "b", base="2" * 64)], side=side)
    said(error, "the side adapter", "base")


def test_directories_with_two_adapters_no_alpha_or_dora(tmp_path):
    def directory(name, **config):
        alike(1)[0].to_peft(tmp_path / name)
        path = tmp_path / name / "adapter_config.json"
        found = json.loads(path.read_text()) | config
        path.write_text(json.dumps({key: value for key, value in found.items() if value is not None}))
        return tmp_path / name

    two = directory("two")
    shutil.copy(two / "adapter_model.safetensors", two / "second.safetensors")
    for path, words in (
        (two, ("second.safetensors", "one adapter")),
        (directory("alpha", lora_alpha=None), ("lora_alpha",)),
        (directory("dora", use_dora=True), ("use_dora", "DoRA")),
        (directory("rank", r=0), ("r 0",)),
    ):
        with pytest.raises((FormatError, LayoutError)) as error:
            lora.FlexLoRA().aggregate([path])
        said(error, str(path), *words)


def one_module(d_out, d_in, n=3):
    """Clients of one module."""
    rng, clients = np.random.default_rng(0), []
    for i in range(n):
        sizes = (("A", (4, d_in)), ("B", (d_out, 4)))
        tensors = {f"m.lora_{x}.weight": np.float32(rng.standard_normal(s)) for x, s in sizes}
        clients.append(fc.Update.from_tensors(tensors, scaling={"m": 2.0}, client_id=f"c{i}", num_examples=i + 1))
    return clients


def published(bug, found, p):
    """What the bug makes of a module: FederatedLLM, FedEx-LoRA, NVFlare's HLoRA, FlexLoRA."""
    mean = oracle.fedit(found, p)
    return {
        "misspelt name: the first client alone": lambda: oracle.fedit(found[:1], [1.0]),
        "transposed residual": lambda: mean + (oracle.target(found, p) - mean).T,
        "no alpha / r": lambda: oracle.target([(1.0, b, a) for _, b, a in found], p),
        "16 / rank for every alpha": lambda: oracle.target([(16 / len(a), b, a) for _, b, a in found], p),
    }[bug]()


@pytest.mark.parametrize(
    "bug",
    [
        "misspelt name: the first client alone",
        "transposed residual",
        "no alpha / r",
        "16 / rank for every alpha",
    ],
)
def test_bugs_of_published_code_are_not_ours(bug):
    # a transposed residual goes unnoticed where a module is square, and nowhere else
    updates = one_module(8, 8 if bug == "transposed residual" else 13)
    expected = mean_delta(updates, "m")
    size = np.linalg.norm(expected)
    assert np.linalg.norm(published(bug, parts(updates, "m"), shares(updates)) - expected) > 0.1 * size
    for method in (lora.FedExLoRA(), lora.FLoRA(), lora.FlexLoRA(error_feedback=True)):
        result = method.aggregate(updates)
        found = dense.dense(result.update, "m") + (dense.dense(result.side, "m") if result.side else 0.0)
        assert np.linalg.norm(found - expected) < 1e-6 * size


def test_numbers_of_numpy_are_taken_and_kept_as_pythons_own():
    for made, again in (
        (lora.FlexLoRA(3, True), lora.FlexLoRA(np.int64(3), np.True_)),
        (lora.FedSVD(2), lora.FedSVD(np.int8(2))),
        (lora.LoRAFAIR(0.5), lora.LoRAFAIR(np.float32(0.5))),
        (
            lora.RandomizedSketch(size=8, seed=3, passes=1),
            lora.RandomizedSketch(size=np.uint8(8), seed=3, passes=np.int8(1)),
        ),
        (lora.FRLoRA(side_rank=3), lora.FRLoRA(side_rank=np.int64(3))),
    ):
        assert repr(again) == repr(made)
        assert json.loads(json.dumps(vars(again))) == vars(made)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: lora.FlexLoRA(True), "flexlora: got rank=True, expected a whole number of at least 1"),
        (
            lambda: lora.FlexLoRA(rank=-(10**5000)),
            "flexlora: got rank=a negative integer of 16610 bits, ",
        ),
        (lambda: lora.FlexLoRA(error_feedback=1), "flexlora: got error_feedback=1, expected True or False"),
        (lambda: lora.LoRAFAIR(True), "lora_fair: got regularization=True, expected a finite number above 0"),
        (lambda: lora.LoRAFAIR(10**5000), "lora_fair: got regularization=an integer of 16610 bits, expected"),
        (
            lambda: lora.RandomizedSketch(passes=True),
            "randomized_sketch: got passes=True, expected a whole number",
        ),
        (lambda: lora.FRLoRA(side_rank=0), "frlora: got side_rank=0, expected a whole number of at least 1"),
    ],
)
def test_a_parameter_that_is_none_is_named(make, text):
    with pytest.raises(RuleError) as error:
        make()
    said(error, text)
