"""Cohorts in files whose terms are many enough for the block iteration, against dense matrices in fp64."""

from __future__ import annotations

import numpy as np
import pytest

from fedcore import Update, aggregate, lora
from fedcore.dtypes import round_from_float64, to_float64
from fedcore.errors import BudgetError, NonFiniteError
from fedcore.lora import measure, residual
from fedcore.rules import ARC, GeometricMedian, Krum, Mean, Median, NormClipping
from fedcore.rules.budget import parse_memory
from tests.oracles import delta as dense


def many_terms(folder, dtype: str = "bfloat16") -> list[Update]:
    """Clients in files whose terms are many enough for the block iteration; a small module and a wide one."""
    rng = np.random.default_rng(0)
    shapes = {"small": (40, 30), "wide": (96, 200)}
    common = {module: (rng.standard_normal((d, 4)), rng.standard_normal((4, k))) for module, (d, k) in shapes.items()}
    updates = []
    for i in range(70):
        rank, tensors = 4 + 4 * (i % 3), {}
        for module, (d, k) in shapes.items():
            b, a = rng.standard_normal((d, rank)), rng.standard_normal((rank, k))
            b[:, :4], a[:4] = b[:, :4] + common[module][0], a[:4] + common[module][1]
            tensors[f"{module}.lora_A.weight"] = round_from_float64(a, dtype)
            tensors[f"{module}.lora_B.weight"] = round_from_float64(b, dtype)
        scaling = {"small": 1.0, "wide": 0.5 + i / 70}
        update = Update.from_tensors(tensors, num_examples=i + 1, client_id=f"c{i:02}", scaling=scaling)
        path = folder / f"c{i:02}.safetensors"
        path.write_bytes(update.to_bytes())
        updates.append(Update.open(path))
    return updates


def dense_bf16(update: Update, module: str) -> np.ndarray:
    pair = update.modules[module]
    return pair.scale * to_float64(update.tensors[pair.b]) @ to_float64(update.tensors[pair.a])


@pytest.mark.parametrize("rule", [Mean(), NormClipping(300.0)])
def test_a_cohort_of_many_terms_is_nearly_the_dense_mean_and_says_how_near(tmp_path, rule):
    """Mean reads files once and measures on the way, a clip has measured before."""
    updates = many_terms(tmp_path)
    result = aggregate(updates, rule, weights=[1.0] * 70)
    share = np.array([result.coefficients[u.client_id] for u in updates]) / result.report["divisor"]
    for module, core in (("small", "qr"), ("wide", "block")):
        mean = sum(c * dense_bf16(u, module) for c, u in zip(share, updates, strict=True))
        report, size = result.report["modules"][module], np.linalg.norm(mean)
        best = np.linalg.norm(mean - dense.truncated(mean, 12)) / size
        assert (report["core"], report["rank"]) == (core, 12)
        assert report["norm"] == pytest.approx(size, rel=1e-6)
        assert report["residual"] == pytest.approx(best, rel=5e-3)
        assert report["least"] <= best * (1 + 1e-9)
        assert best <= report["most"] * (1 + 1e-9)
        # the factors are rounded to bf16
        ours = np.linalg.norm(mean - dense_bf16(result.update, module)) / size
        assert ours == pytest.approx(report["residual"], abs=5e-3)
    again = aggregate(updates, rule, weights=[1.0] * 70)
    assert again.update.digest() == result.update.digest()


def test_among_many_terms_a_client_that_hides_its_update_is_rebuilt_or_refused(tmp_path):
    updates = many_terms(tmp_path, "float32")
    honest = aggregate(updates, Mean(), weights=[1.0] * 70)
    for size, excluded in ((2.0**9, False), (2.0**30, True)):
        tensors = {name: np.array(t) for name, t in updates[3].tensors.items()}
        pair = updates[3].modules["wide"]
        pad = np.round(4 * np.random.default_rng(1).standard_normal((96 + 200, 1))).astype(np.float32) * np.float32(
            size
        )
        tensors[pair.b] = np.hstack((tensors[pair.b], pad[:96], -pad[:96]))
        tensors[pair.a] = np.vstack((tensors[pair.a], pad[96:].T, pad[96:].T))
        hiding = Update.from_tensors(tensors, client_id="c03", scaling=updates[3].scaling)
        cohort = [*updates[:3], hiding, *updates[4:]]
        if excluded:
            with pytest.raises(NonFiniteError, match="client 'c03': module 'wide': its factors cancel") as caught:
                aggregate(cohort, Mean(), weights=[1.0] * 70)
            assert caught.value.row == 3
            continue
        found = aggregate(cohort, Mean(), weights=[1.0] * 70)
        expected = dense.dense(honest.update, "wide")
        assert found.report["modules"]["wide"]["core"] == "block"
        difference = np.linalg.norm(dense.dense(found.update, "wide") - expected)
        assert difference <= 1e-2 * np.linalg.norm(expected)


def test_among_many_terms_nan_is_named_by_client_tensor_and_element(tmp_path):
    updates = many_terms(tmp_path)
    tensors = {name: np.array(t) for name, t in updates[2].tensors.items()}
    tensors["wide.lora_B.weight"].view(np.uint16)[1, 2] = 0x7FC0
    updates[2] = Update.from_tensors(tensors, client_id="c02", scaling=updates[2].scaling)
    with pytest.raises(NonFiniteError, match=r"client 'c02': tensor 'wide.lora_B.weight'.*element 14") as caught:
        aggregate(updates, Mean())
    assert caught.value.row == 2


def random_clients(n: int, rank: int, d_out: int, d_in: int, pad: float = 0.0) -> list[Update]:
    """fp32 clients of one module; `pad` is how large three of their terms are, whose sum is nearly nothing."""
    rng, updates = np.random.default_rng(5), []
    for i in range(n):
        b, a = rng.standard_normal((d_out, rank)), rng.standard_normal((rank, d_in))
        if pad:
            b[:, :3], a[:3] = pad * np.outer(rng.standard_normal(d_out), (1.0, -0.3, -0.7)), pad * a[0]
        tensors = {"m.lora_A.weight": np.float32(a), "m.lora_B.weight": np.float32(b)}
        updates.append(Update.from_tensors(tensors, client_id=f"c{i:03}", scaling={"m": 1.0}))
    return updates


@pytest.mark.parametrize(("method", "exact"), [(lora.FlexLoRA(), False), (lora.FLoRA(), True)])
def test_a_method_on_a_thousand_terms_tells_its_residual_from_grams(method, exact, monkeypatch):
    """R independent terms have Σ ‖b‖‖a‖ ≈ √R ‖Δ‖, which hides nothing; QR of them all would take most of the time."""
    updates = random_clients(280, 4, 60, 50)
    monkeypatch.setattr(residual, "product_norm", None)
    result = method.aggregate(updates)
    mean = sum(dense.dense(u, "m") for u in updates) / len(updates)
    held = dense.dense(result.update, "m") + (dense.dense(result.side, "m") if result.side else 0.0)
    report, size = result.report["modules"]["m"], np.linalg.norm(mean)
    assert report["norm"] == pytest.approx(size, rel=1e-9)
    # below what squares keep it is an estimate
    expected = pytest.approx(np.linalg.norm(mean - held) / size, rel=0.3 if exact else 1e-9)
    assert report["residual"] == expected


def test_a_norm_of_a_thousand_terms_is_that_of_their_grams(monkeypatch):
    rng = np.random.default_rng(0)
    b, a = rng.standard_normal((30, 1200)), rng.standard_normal((1200, 40))
    monkeypatch.setattr(measure, "product_norm", None)
    assert measure.norm_of(b, a) == pytest.approx(np.linalg.norm(b @ a), rel=1e-12)


@pytest.mark.parametrize("pad", [10.0, 100.0, 1e4])
def test_terms_that_cancel_change_no_report(pad):
    """Few terms, many times as large as Δ: more than squares can bear, so the small residual is told another way."""
    updates = random_clients(3, 4, 60, 50, pad)
    for method in (lora.FlexLoRA(), lora.FLoRA()):
        result = method.aggregate(updates)
        mean = sum(dense.dense(u, "m") for u in updates) / len(updates)
        held = dense.dense(result.update, "m") + (dense.dense(result.side, "m") if result.side else 0.0)
        report, size = result.report["modules"]["m"], np.linalg.norm(mean)
        assert report["norm"] == pytest.approx(size, rel=1e-6)
        assert report["residual"] == pytest.approx(np.linalg.norm(mean - held) / size, rel=0.3, abs=1e-12)


def test_a_budget_has_room_for_the_gram_of_each_thread(tmp_path):
    """lora_gram holds two R × R matrices and one a thread; a mean makes none."""
    for update in random_clients(40, 8, 7 * 1024, 9):
        update.to_peft(tmp_path / update.client_id)
    opened = [Update.open(path) for path in sorted(tmp_path.iterdir())]
    terms, least = 40 * 8, {}
    for rule in (Mean(), Krum(1)):
        for threads in (1, 16, 64):
            with pytest.raises(BudgetError, match="LoRA factors of 40 updates") as refused:
                aggregate(opened, rule, memory="65MB", threads=threads)
            least[rule, threads] = parse_memory(str(refused.value).partition("at least ")[2].partition(" for")[0])
    # a decision over a Gram holds some matrices of (n, n) and what forms distances again
    assert least[Mean(), 1] == least[Mean(), 64] < least[Krum(1), 1]
    # one chunk of B or of A is an item of work, and there are eight; beside them lies what the decision takes of (n, n)
    decision = {threads: 8 * 40**2 * max(threads + 3, Krum(1).matrices) for threads in (1, 16, 64)}
    more = (8 + 2 - 6) * 8 * terms**2 + 8 * 2048 * terms
    for threads in (16, 64):  # said to three digits
        wanted = more + decision[threads] - decision[1]
        assert least[Krum(1), threads] - least[Krum(1), 1] == pytest.approx(wanted, abs=1e6)


@pytest.mark.parametrize("rule", [Mean(), Krum(1), GeometricMedian(), ARC(1), Median()], ids=repr)
def test_the_least_that_is_said_works_where_tensors_lie_beside_factors(tmp_path, rule):
    rng, shapes = (
        np.random.default_rng(0),
        {"x.lora_A.weight": (2, 40), "x.lora_B.weight": (50, 2), "head.weight": (6,)},
    )
    paths = []
    for i in range(5):
        tensors = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
        paths.append(tmp_path / f"{i}.safetensors")
        paths[i].write_bytes(Update.from_tensors(tensors, client_id=f"c{i}", scaling={"x": 1.0}).to_bytes())
    with pytest.raises(BudgetError, match="expected at least") as refused:
        aggregate(paths, rule, memory=1)
    least = str(refused.value).partition("at least ")[2].partition(" for")[0]
    expected = aggregate([Update.from_bytes(path.read_bytes()) for path in paths], rule)
    assert aggregate(paths, rule, memory=least).update.digest() == expected.update.digest()
