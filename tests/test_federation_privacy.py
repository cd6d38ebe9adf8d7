"""Private runs: what is released, what stays private, for every method and sampling."""

from __future__ import annotations

import json
import math

import fake_learner as fake
import numpy as np
import pytest
from private_runs import SMALL, B, budget, config, private_run, run, updates

import fedcore as fc
from fedcore.errors import PrivacyError, TrainingError
from fedcore.federation.folder import RunFolder
from fedcore.federation.private_run import read_plan
from fedcore.federation.sampling import sampled
from fedcore.lora import METHODS
from fedcore.privacy.central import Central
from fedcore.report.html import write_report
from fedcore.report.privacy import lines
from fedcore.report.table import rows

pytest.importorskip("dp_accounting", reason="budgets need dp-accounting, of the extra `train`")


def test_a_round_is_the_noisy_mean_of_clipped_terms_of_what_travels(finished):
    """Made again with plain arithmetic and the noise of the round's own charge, which the same inputs find again."""
    folder, plan = RunFolder.read(finished), read_plan(finished)
    start = fc.privacy.orthonormal(fake.FakeLearner().initial())
    a = np.asarray(start.tensors[f"{fake.MODULE}.lora_A.weight"], np.float64)
    assert np.allclose(a @ a.T, np.eye(2), atol=1e-6)
    mechanism, charged = Central(1.0, plan.charged, 5), budget(finished)
    for entry in folder.ledger.entries:
        number = entry["round"]
        assert entry["reference"] == start.digest()
        each = updates(finished, number, start)
        private = folder.private.kept("one", number)
        assert list(private["messages"]) == [f"client-{i}" for i in range(5)]
        changes = [np.float64(u.tensors[B]) - np.float64(start.tensors[B]) for u in each]
        assert private["norms"][""] == pytest.approx([float(np.linalg.norm(c)) for c in changes], rel=1e-5)
        clipped = sum(c * min(1.0, 1 / np.linalg.norm(c)) for c in changes) / 5
        reached = folder.rounds.load_global("one", number, entry["output"])
        noise = np.float64(reached.tensors[B]) - np.float64(start.tensors[B]) - clipped
        assert entry["privacy"]["noise_of_mean"] == pytest.approx(plan.charged / 5)
        assert 0 < np.abs(noise).max() < 6 * plan.charged / 5
        given = {"method": METHODS["ffa_lora"](), "reference": start, "number": number}
        given["label"] = private_run(folder).label("one", number)
        drawn = charged.reserve(mechanism.inputs_digest(each, **given))
        assert drawn.number == entry["privacy"]["charge"]
        again = mechanism.release(each, drawn, **given)
        assert np.array_equal(again.mean.tensors[B], reached.tensors[B])
        assert again.public["inputs"] == entry["privacy"]["inputs"]
        start = reached
    assert plan.charged == pytest.approx(fc.privacy.noise_multiplier(epsilon=20, rounds=2, delta=1e-5), rel=1e-3)
    assert len(charged.charges) == 2


def test_epsilon_is_in_metrics_table_and_page_and_ends_at_the_budget(finished):
    folder, z = RunFolder.read(finished), read_plan(finished).charged
    lines_of = folder.metrics.entries[1:]
    assert [line["arm"] for line in lines_of] == ["one", "one"]  # nobody trains alone in public
    for number, line in enumerate(lines_of, 1):
        assert line["epsilon"] == pytest.approx(fc.privacy.epsilon(noise_multiplier=z, rounds=number, delta=1e-5))
    assert 0.999 * 20 < lines_of[-1]["epsilon"] <= 20
    table = rows(folder.metrics.entries)
    assert [row.epsilon for row in table] == [None, lines_of[-1]["epsilon"]]
    said = lines(read_plan(finished), table, folder.ledger.entries)
    assert said[0].startswith("ε = 20 of 20 at δ = 1e-05, for one client of 5 (add_remove neighbours); every client")
    page = write_report(folder).read_text()
    assert "<h2>Privacy</h2>" in page
    assert ">ε</th>" in page
    assert "ε = 20 of 20" in page


def test_nothing_of_a_client_is_public(finished, tmp_path):
    """Poisoned or not, present or not: outside private/ there is no client, message, norm or count of them."""
    write_report(RunFolder.read(finished))
    private = [json.loads(path.read_text()) for path in (finished / "private/rounds").iterdir()]
    secrets = ["client-", *(sha for one in private for sha in one["messages"].values())]
    secrets += [repr(norm) for one in private for norm in one["norms"][""]]
    secrets += [one["inputs"] for one in private]
    public = [p for p in finished.rglob("*") if p.is_file() and "private" not in p.relative_to(finished).parts]
    assert {"ledger.jsonl", "metrics.jsonl", "report.html", "run.json", "privacy.json"} <= {p.name for p in public}
    for path in public:
        data = path.read_bytes()
        for secret in secrets:
            assert secret.encode() not in data, (path.name, secret)
    page = (finished / "report.html").read_text()
    assert "<h2>Who counted</h2>" not in page
    assert "<h2>Clients</h2>" not in page
    for line in RunFolder.read(finished).metrics.entries[1:]:
        assert line["seconds"].keys() <= {"evaluation"}
    for entry in RunFolder.read(finished).ledger.entries:
        assert not {"inputs", "coefficients", "excluded", "not_counted", "change_norms", "report"} & entry.keys()
    for name in ("", "secret", "budget.sealing-key"):
        assert (finished / "private" / name).stat().st_mode & 0o077 == 0
    # two runs on the same texts: a digest of them confirms no guess
    run(tmp_path / "again")
    facts = [json.loads((path / "run.json").read_text()) for path in (finished, tmp_path / "again")]
    assert facts[0]["texts"] != facts[1]["texts"]
    assert facts[0]["clients"] == []


def test_clients_are_drawn_as_the_sampling_says():
    people = list(range(10))
    keys = [bytes([i % 256, i // 256]) + bytes(30) for i in range(2000)]
    coins = np.array([[person in sampled(people, "poisson", 3, key) for person in people] for key in keys])
    assert abs(coins.mean() - 0.3) < 4 * math.sqrt(0.21 / coins.size)
    # the size is binomial, so that nobody's coin looks at another's
    assert abs(coins.sum(1).var() - 2.1) < 0.35
    fixed = np.array([[person in sampled(people, "fixed", 3, key) for person in people] for key in keys])
    assert set(fixed.sum(1)) == {3}
    assert np.abs(fixed.mean(0) - 0.3).max() < 5 * math.sqrt(0.21 / len(keys))
    assert sampled(people, "none", 10, keys[0]) == people == sampled(people, "poisson", 10, keys[0])


def test_a_sampled_run_trains_those_who_are_drawn_and_accounts_for_it(tmp_path):
    text = 'epsilon = 3\ndelta = 1e-2\nsampling = "fixed"\nclients_per_round = 2\n'
    learner = fake.FakeLearner()
    folder = run(tmp_path / "run", config(text), learner=learner)
    drawn = [folder.private.kept("one", number)["messages"] for number in (1, 2)]
    assert [len(members) for members in drawn] == [2, 2]
    assert learner.trained == [*drawn[0], *drawn[1]]
    plan = read_plan(folder.path)
    assert (plan.neighbours, plan.sampling_rate, plan.expected_clients) == ("replace_one", 0.4, 2)
    accounted = fc.privacy.epsilon(
        noise_multiplier=plan.charged,
        sampling_rate=0.4,
        rounds=2,
        delta=1e-2,
        sampling="fixed",
        neighbours="replace_one",
    )
    assert folder.metrics.entries[-1]["epsilon"] == pytest.approx(accounted)
    last = folder.metrics.entries[-1]
    assert (last["bytes_up"], last["bytes_down"]) == (2 * 4 * 12, 2 * 4 * 12)  # B, of the expected clients
    other = run(tmp_path / "other", config(text))
    found = [other.private.kept("one", number)["messages"] for number in (1, 2)]
    third = [run(tmp_path / f"{i}", config(text)).private.kept("one", 1)["messages"] for i in range(3)]
    assert len({str(list(each)) for each in [*drawn, *found, *third]}) > 1  # coins are of a run's own secret


def test_a_client_that_is_not_finite_or_cannot_train_counts_as_no_change(tmp_path):
    class Broken(fake.FakeLearner):
        def train(self, adapter, client, steps, seed, proximal_mu=0.0, **options):
            if client.id == "client-1":
                raise TrainingError("loss is not finite")
            update = super().train(adapter, client, steps, seed, **options)
            if client.id != "client-2":
                return update
            b = np.array(update.tensors[B]) * np.float32(np.nan)
            return self._update(b, np.array(update.tensors[f"{fake.MODULE}.lora_A.weight"]), client.id, 3)

    folder = run(tmp_path / "run", config(rounds=1), learner=Broken())
    private = folder.private.kept("one", 1)
    assert private["failed"] == ["client-1"]
    assert private["not_finite"] == 1
    assert private["norms"][""][1] == 0
    assert np.isfinite(folder.rounds.load_global("one", 1, folder.ledger.entries[0]["output"]).tensors[B]).all()


def test_what_fails_for_every_client_is_raised(tmp_path):
    class Failing(fake.FakeLearner):
        def train(self, *arguments, **options):
            raise TrainingError("no gradient")

    with pytest.raises(TrainingError, match="no gradient"):
        run(tmp_path / "run", learner=Failing())
    assert budget(tmp_path / "run").charges == []


@pytest.mark.parametrize("method", ["fedsvd", "rolora", "fedsb", "fedit"])
def test_each_method_noises_what_travels_and_does_the_rest_after(tmp_path, method):
    both = "both_factors = true\n" if method == "fedit" else ""
    folder = run(tmp_path / "run", config(SMALL + both, method))
    first, second = folder.ledger.entries
    start, reached = (folder.rounds.load_start("one", entry["round"], entry) for entry in (first, second))
    a, b = (f"{fake.MODULE}.lora_{factor}.weight" for factor in "AB")
    same_a = np.array_equal(start.adapter.tensors[a], reached.adapter.tensors[a])
    same_b = np.array_equal(start.adapter.tensors[b], reached.adapter.tensors[b])
    assert (same_a, same_b) == {"rolora": (False, True), "fedsb": (True, False)}.get(method, (False, False))
    assert read_plan(folder.path).numbers == {"fedsvd": 12, "rolora": 12, "fedsb": 4, "fedit": 20}[method]
    assert ("error_of_delta" in second["privacy"]) == (method == "fedit")
    if method == "fedsvd":
        assert second["privacy"]["output"] != second["output"]  # factorised after the noise
        turned = np.float64(reached.adapter.tensors[a])
        assert np.allclose(turned @ turned.T, np.eye(2), atol=1e-5)
    if method == "fedit":
        cost = second["privacy"]["error_of_delta"]
        assert cost["a and b"] > cost["b"] > 0
    if method == "fedsb":
        left = np.float64(reached.fixed.tensors[b])
        assert np.allclose(left @ (left.T @ reached.adapter.tensors[b]), reached.adapter.tensors[b], atol=1e-5)


def test_clips_by_module_and_adaptive_clips_move_from_round_to_round(tmp_path):
    text = "epsilon = 30\ndelta = 1e-3\nper_module = true\nadaptive = { count_noise = 0.4, quantile = 0.45 }\n"
    folder = run(tmp_path / "run", config(text, rounds=3))
    clips = [entry["privacy"]["clip"] for entry in folder.ledger.entries]
    moved = [entry["privacy"]["next_clip"] for entry in folder.ledger.entries]
    assert clips[0] == {fake.MODULE: 1.0}
    assert clips[1:] == moved[:-1]
    assert moved[0] != clips[0]  # no whole count makes a share of 0.45
    with pytest.raises(PrivacyError, match=r"count_noise: 0\.25 on 1 counts costs more"):
        run(tmp_path / "few", config("epsilon = 8\ndelta = 1e-5\nadaptive = {}\n"))
