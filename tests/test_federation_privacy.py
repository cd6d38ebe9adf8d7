"""Private runs: what is released and charged, what stays private, whatever is killed, rolled back or expired."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
from pathlib import Path

import fake_learner as fake
import numpy as np
import pytest

import fedcore as fc
from fedcore.cli import main
from fedcore.errors import ConfigError, FormatError, MissingError, PrivacyBudgetError, PrivacyError, TrainingError, Void
from fedcore.federation.config_file import parse_config, to_toml
from fedcore.federation.folder import RunFolder
from fedcore.federation.journal import LineLog
from fedcore.federation.private_run import PrivateRun, read_plan
from fedcore.federation.sampling import sampled
from fedcore.federation.simulation import run_arms
from fedcore.lora import METHODS
from fedcore.privacy.central import Central
from fedcore.report.html import write_report
from fedcore.report.privacy import lines
from fedcore.report.table import rows

pytest.importorskip("dp_accounting", reason="budgets need dp-accounting, of the extra `train`")

B = f"{fake.MODULE}.lora_B.weight"
SMALL = "epsilon = 20\ndelta = 1e-5\n"


def config(
    privacy=SMALL, method="ffa_lora", rounds=2, aggregation="", model='source = "fake"', arms='[[arms]]\nname = "one"\n'
):
    return parse_config(
        f"[run]\nseed = 5\nrounds = {rounds}\n[model]\n{model}\n[partition]\nclients = 5\n"
        f'[aggregation]\nmethod = "{method}"\n{aggregation}[privacy]\n{privacy}{arms}',
        "c.toml",
    )


def run(path, settings=None, *, resume=False, learner=None):
    return run_arms(settings or config(), fake.texts(), learner or fake.FakeLearner(), path, resume=resume)


def budget(path, **changed):
    plan = read_plan(path)
    settings = {
        "epsilon": plan.epsilon,
        "delta": plan.delta,
        "noise_multiplier": plan.charged,
        "dimension": plan.samples,
        "sampling": "none",
        "neighbours": plan.neighbours,
        "population": 5,
        "sealing_key": (path / "private/budget.sealing-key").read_bytes(),
    }
    return fc.privacy.Budget(path / "private/budget", **settings | changed)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("private") / "run"
    run(path)
    return path


def updates(path, number, start):
    """The clients' adapters of a round: the start with the B that they sent."""
    found = []
    for client, receipt in RunFolder.read(path).journal.received("one", number).items():
        sent = fc.Update.from_bytes(receipt.open()).tensors[f"{fake.MODULE}.b"]
        found.append(
            fc.Update.from_tensors(dict(start.tensors) | {B: sent}, client_id=client, scaling=start.scaling)
        )  # fmt: skip
    return found


def test_a_round_is_the_noisy_mean_of_clipped_terms_of_what_travels(whole):
    """Made again with plain arithmetic and the noise of the round's own charge, which the same inputs find again."""
    folder, plan = RunFolder.read(whole), read_plan(whole)
    start = fc.privacy.orthonormal(fake.FakeLearner().initial())
    a = np.asarray(start.tensors[f"{fake.MODULE}.lora_A.weight"], np.float64)
    assert np.allclose(a @ a.T, np.eye(2), atol=1e-6)
    mechanism, charged = Central(1.0, plan.charged, 5), budget(whole)
    for entry in folder.ledger.entries:
        number = entry["round"]
        assert entry["reference"] == start.digest()
        each = updates(whole, number, start)
        private = folder.private.kept("one", number)
        assert list(private["messages"]) == [f"client-{i}" for i in range(5)]
        changes = [np.float64(u.tensors[B]) - np.float64(start.tensors[B]) for u in each]
        assert private["norms"][""] == pytest.approx([float(np.linalg.norm(c)) for c in changes], rel=1e-5)
        clipped = sum(c * min(1.0, 1 / np.linalg.norm(c)) for c in changes) / 5
        reached = folder.load_global("one", number, entry["output"])
        noise = np.float64(reached.tensors[B]) - np.float64(start.tensors[B]) - clipped
        assert entry["privacy"]["noise_of_mean"] == pytest.approx(plan.charged / 5)
        assert 0 < np.abs(noise).max() < 6 * plan.charged / 5
        given = {"method": METHODS["ffa_lora"](), "reference": start, "number": number}
        given["label"] = PrivateRun(config().privacy, plan, charged, folder.private.secret).label("one", number)
        drawn = charged.reserve(mechanism.inputs_digest(each, **given))
        assert drawn.number == entry["privacy"]["charge"]
        again = mechanism.release(each, drawn, **given)
        assert np.array_equal(again.mean.tensors[B], reached.tensors[B])
        assert again.public["inputs"] == entry["privacy"]["inputs"]
        start = reached
    assert plan.charged == pytest.approx(fc.privacy.noise_multiplier(epsilon=20, rounds=2, delta=1e-5), rel=1e-3)
    assert len(charged.charges) == 2


def test_epsilon_is_in_metrics_table_and_page_and_ends_at_the_budget(whole):
    folder, z = RunFolder.read(whole), read_plan(whole).charged
    lines_of = folder.metrics.entries[1:]
    assert [line["arm"] for line in lines_of] == ["one", "one"]  # nobody trains alone in public
    for number, line in enumerate(lines_of, 1):
        assert line["epsilon"] == pytest.approx(fc.privacy.epsilon(noise_multiplier=z, rounds=number, delta=1e-5))
    assert 0.999 * 20 < lines_of[-1]["epsilon"] <= 20
    table = rows(folder.metrics.entries)
    assert [row.epsilon for row in table] == [None, lines_of[-1]["epsilon"]]
    said = lines(read_plan(whole), table, folder.ledger.entries)
    assert said[0].startswith("ε = 20 of 20 at δ = 1e-05, for one client of 5 (add_remove neighbours); every client")
    page = write_report(folder).read_text()
    assert "<h2>Privacy</h2>" in page
    assert ">ε</th>" in page
    assert "ε = 20 of 20" in page


def test_nothing_of_a_client_is_public(whole, tmp_path):
    """Poisoned or not, present or not: outside private/ there is no client, message, norm or count of them."""
    write_report(RunFolder.read(whole))
    private = [json.loads(path.read_text()) for path in (whole / "private/rounds").iterdir()]
    secrets = ["client-", *(sha for one in private for sha in one["messages"].values())]
    secrets += [repr(norm) for one in private for norm in one["norms"][""]]
    secrets += [one["inputs"] for one in private]
    public = [p for p in whole.rglob("*") if p.is_file() and "private" not in p.relative_to(whole).parts]
    assert {"ledger.jsonl", "metrics.jsonl", "report.html", "run.json", "privacy.json"} <= {p.name for p in public}
    for path in public:
        data = path.read_bytes()
        for secret in secrets:
            assert secret.encode() not in data, (path.name, secret)
    page = (whole / "report.html").read_text()
    assert "<h2>Who counted</h2>" not in page
    assert "<h2>Clients</h2>" not in page
    for line in RunFolder.read(whole).metrics.entries[1:]:
        assert line["seconds"].keys() <= {"evaluation"}
    for entry in RunFolder.read(whole).ledger.entries:
        assert not {"inputs", "coefficients", "excluded", "not_counted", "change_norms", "report"} & entry.keys()
    for name in ("", "secret", "budget.sealing-key"):
        assert (whole / "private" / name).stat().st_mode & 0o077 == 0
    # two runs on the same texts: a digest of them confirms no guess
    run(tmp_path / "again")
    facts = [json.loads((path / "run.json").read_text()) for path in (whole, tmp_path / "again")]
    assert facts[0]["texts"] != facts[1]["texts"]
    assert facts[0]["clients"] == []


def dies(path, module, name, call):
    """Run in a child process that dies by SIGKILL after the given call of a function."""
    child = os.fork()
    if child == 0:
        real, calls = getattr(module, name), 0

        def killing(*arguments, **options):
            nonlocal calls
            calls += 1
            if module is LineLog and calls == call:
                os.kill(os.getpid(), signal.SIGKILL)
            result = real(*arguments, **options)
            if calls == call:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        setattr(module, name, killing)
        run(path, resume=path.exists())
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL


@pytest.mark.parametrize(
    ("module", "name", "call", "charged", "released"),
    [
        (fc.privacy.Budget, "reserve", 2, 2, 1),  # between charge and draw
        (Central, "release", 2, 2, 1),  # between draw and publish
        (LineLog, "append", 4, 2, 1),  # the adapter is written, the ledger does not know it: base, 1, metrics, 2
    ],
    ids=["charged", "drawn", "written"],
)
def test_a_kill_neither_loses_nor_doubles_a_release(tmp_path, module, name, call, charged, released):
    path = tmp_path / "run"
    dies(path, module, name, call)
    assert len(budget(path).charges) == charged
    assert len(RunFolder.read(path).ledger.entries) == released
    before = {p.name: p.read_bytes() for p in (path / "arms/one").glob("round-*")}
    keys = {p.name: p.read_bytes() for p in (path / "private/budget.keys").iterdir()}
    learner = fake.FakeLearner()
    folder = run(path, resume=True, learner=learner)
    assert learner.trained == []  # all messages had arrived
    assert len(budget(path).charges) == len(folder.ledger.entries) == 2
    assert folder.metrics.entries[-1]["epsilon"] <= 20
    assert {p.name: p.read_bytes() for p in (path / "private/budget.keys").iterdir()} == keys
    for file, data in before.items():
        assert (path / "arms/one" / file).read_bytes() == data  # the same set, the same noise
    if name == "append":
        assert "round-002.safetensors" in before


class Interrupting(fake.FakeLearner):
    """Does something before the given training, and stops there if it returns nothing."""

    def __init__(self, after, action=None):
        super().__init__()
        self.after, self.action = after, action

    def train(self, *arguments, **options):
        if len(self.trained) == self.after:
            if self.action is None:
                raise KeyboardInterrupt
            self.action()
        return super().train(*arguments, **options)


def interrupted(path):
    with pytest.raises(KeyboardInterrupt):
        run(path, config(rounds=3), learner=Interrupting(after=10))
    return path


def test_a_budget_that_was_changed_or_rolled_back_releases_nothing(tmp_path):
    path = tmp_path / "run"
    private, earlier = path / "private", {}

    def keep():
        earlier.update({name: (private / name).read_bytes() for name in ("budget", "budget.head")})
        raise KeyboardInterrupt

    for after, resume in ((5, False), (5, True)):
        with pytest.raises(KeyboardInterrupt):
            run(path, config(rounds=3), resume=resume, learner=Interrupting(after, None if resume else keep))
    content = (private / "budget").read_bytes()
    (private / "budget").write_bytes(content.replace(b'"number":2', b'"number":3', 1))
    with pytest.raises(FormatError, match="tampered with, rolled back or damaged"):
        run(path, config(rounds=3), resume=True)
    (private / "budget").write_bytes(content)
    # file and head together: only the run's public ledger can tell
    for name, data in earlier.items():
        (private / name).write_bytes(data)
    with pytest.raises(PrivacyError, match="rolled back together"):
        run(path, config(rounds=3), resume=True)
    for name in ("budget", "budget.head"):
        (private / name).unlink()
    with pytest.raises(PrivacyError, match="does not continue it"):
        run(path, config(rounds=3), resume=True)
    (private / "budget").write_bytes(content)
    (private / "budget.sealing-key").unlink()
    with pytest.raises(MissingError, match=r"the sealing key of .* is missing"):
        run(path, config(rounds=3), resume=True)
    assert len(RunFolder.read(path).ledger.entries) == 2


def test_a_plan_that_was_changed_releases_nothing(tmp_path):
    text = 'epsilon = 20\ndelta = 1e-2\nsampling = "poisson"\nclients_per_round = 2\n'
    path = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        run(path, config(text, rounds=20), learner=Interrupting(after=2))
    said = json.loads((path / "privacy.json").read_text())
    for changed in ({"sampling_rate": 1e-6, "expected_clients": 5}, {"charged": 0.1}, {"mac": "0" * 64}):
        (path / "privacy.json").write_text(json.dumps(said | changed))
        with pytest.raises(FormatError, match=r"privacy\.json: was changed after the run began"):
            run(path, config(text, rounds=20), resume=True)


def test_a_run_stops_before_another_run_makes_it_pass_the_budget(tmp_path):
    """A population has one budget: what another run charges meanwhile is not there any more."""
    path = tmp_path / "run"
    learner = Interrupting(after=7, action=lambda: budget(path).reserve("0" * 64))
    folder = run(path, config(rounds=3), learner=learner)
    assert [line["round"] for line in folder.metrics.entries if line["arm"] == "one"] == [1, 2]
    assert "would bring epsilon to" in folder.ledger.entries[-1]["stopped"]
    assert budget(path).spent <= 20
    assert len(budget(path).charges) == 3
    assert (path / "adapter").is_dir()
    trained = len(learner.trained)
    assert run(path, config(rounds=3), learner=learner, resume=True).ledger.entries == folder.ledger.entries
    assert len(learner.trained) == trained
    said = lines(read_plan(path), rows(folder.metrics.entries), folder.ledger.entries)
    assert any(line.startswith("one stopped before round 3") for line in said)
    write_report(folder)


def test_runs_that_share_a_budget_share_its_epsilon(tmp_path):
    shared = f'{SMALL}budget = "{tmp_path}/people.budget"\nsealing_key = "{tmp_path}/elsewhere.key"\n'
    (tmp_path / "elsewhere.key").write_bytes(bytes(range(32)))
    opened = {"sealing_key": bytes(range(32)), "noise_multiplier": 0.5, "sampling": "none", "population": 5}
    fc.privacy.Budget(tmp_path / "people.budget", 20, 1e-5, **opened).reserve("0" * 64)
    first = run(tmp_path / "first", config(shared, rounds=1))
    assert 0.999 * 20 < first.metrics.entries[-1]["epsilon"] <= 20
    with pytest.raises(PrivacyBudgetError, match="is spent by 2 earlier charges"):
        run(tmp_path / "second", config(shared, rounds=1))  # the first was planned to spend the rest
    assert not (tmp_path / "second/ledger.jsonl").exists()
    with pytest.raises(PrivacyError, match=r"epsilon: got 30\.0, and the budget at .* was started with 20"):
        run(tmp_path / "third", config(shared.replace("20", "30"), rounds=1))


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
    assert np.isfinite(folder.load_global("one", 1, folder.ledger.entries[0]["output"]).tensors[B]).all()


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
    start, reached = (folder.load_start("one", entry["round"], entry) for entry in (first, second))
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
    text = "epsilon = 30\ndelta = 1e-3\nper_module = true\nadaptive = { count_noise = 0.4 }\n"
    folder = run(tmp_path / "run", config(text, rounds=3))
    clips = [entry["privacy"]["clip"] for entry in folder.ledger.entries]
    moved = [entry["privacy"]["next_clip"] for entry in folder.ledger.entries]
    assert clips[0] == {fake.MODULE: 1.0}
    assert clips[1:] == moved[:-1]
    assert moved[0] != clips[0]
    with pytest.raises(PrivacyError, match=r"count_noise: 0\.25 on 1 counts costs more"):
        run(tmp_path / "few", config("epsilon = 8\ndelta = 1e-5\nadaptive = {}\n"))


def test_noise_at_each_client_adds_up_and_nothing_else_leaves_it(tmp_path):
    folder, plan = run(tmp_path / "run", config(SMALL + 'mode = "local"\n', rounds=1)), read_plan(tmp_path / "run")
    assert plan.neighbours == "replace_one"
    assert plan.charged == pytest.approx(2 * fc.privacy.noise_multiplier(epsilon=20, delta=1e-5), rel=1e-3)
    _, alone, note = plan.notes
    assert "the budget is of this run alone" in alone
    assert f"signal-to-noise ratio of a round is at most {math.sqrt(5) / plan.charged / math.sqrt(12):.2g}" in note
    learner, start = fake.FakeLearner(), fc.privacy.orthonormal(fake.FakeLearner().initial())
    total, noise = np.zeros(12), []
    for client, receipt in folder.journal.received("one", 1).items():
        sent = np.frombuffer(receipt.path.read_bytes()[-48:], np.float32).astype(np.float64)
        own = next(c for c in fake.texts().clients if c.id == client)
        true = np.float64(learner.train(start, own, 12, fake_seed(client), trains=("b",)).tensors[B]).ravel()
        noise.append(sent - true * min(1, 1 / np.linalg.norm(true)))
        total += sent
    assert 0.7 < np.std(noise) / plan.charged < 1.3  # 60 draws
    reached = folder.load_global("one", 1, folder.ledger.entries[0]["output"]).tensors[B]
    assert np.allclose(np.ravel(reached), total / 5, atol=1e-5)
    assert len(budget(tmp_path / "run").charges) == 1


def fake_seed(client):
    from fedcore.federation.messages import client_seed

    return client_seed(config(), 1, client)


def test_noise_of_all_clients_together_hides_the_sum_and_too_few_void_the_round(tmp_path):
    text = 'epsilon = 45\ndelta = 1e-3\nmode = "distributed"\nfewest_clients = 4\n'
    folder, plan = run(tmp_path / "run", config(text, rounds=1)), read_plan(tmp_path / "run")
    (entry,) = folder.ledger.entries
    assert entry["privacy"]["epsilon"] == pytest.approx(45, rel=2e-3)
    assert entry["privacy"]["epsilon"] <= 45
    # of five honest clients where the noise is made for four
    assert entry["privacy"]["noise_of_mean"] == pytest.approx(plan.charged * math.sqrt(5 / 4) / 5, rel=0.1)
    reached = np.float64(folder.load_global("one", 1, entry["output"]).tensors[B])
    learner, start = fake.FakeLearner(), fc.privacy.orthonormal(fake.FakeLearner().initial())
    true = [learner.train(start, c, 12, fake_seed(c.id), trains=("b",)).tensors[B] for c in fake.texts().clients]
    mean = sum(np.float64(b) * min(1, 1 / np.linalg.norm(b)) for b in true) / 5
    assert np.abs(reached - mean).max() < 6 * entry["privacy"]["noise_of_mean"]

    from fedcore.federation import private_modes

    real = private_modes.DistributedMode.release
    few = lambda self, receipts: real(self, dict(list(receipts.items())[:3]))  # noqa: E731
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(private_modes.DistributedMode, "release", few)
        folder = run(tmp_path / "void", config(text))
    assert budget(tmp_path / "void", concentrated=True).charges == []
    assert [entry["privacy"]["epsilon"] for entry in folder.ledger.entries] == [0, 0]
    assert len({entry["output"] for entry in folder.ledger.entries} | {start.digest()}) == 1
    said = lines(read_plan(tmp_path / "void"), rows(folder.metrics.entries), folder.ledger.entries)
    assert "one round 1: 3 messages of at least 4: the round is void, nothing is released" in said


def test_a_sum_is_charged_before_it_is_unmasked_and_a_void_under_masks_stays_charged(tmp_path, monkeypatch):
    from fedcore.federation import private_modes

    def failing(self, receipts):
        assert len(budget(path, concentrated=True).charges) == 1
        raise Void("5 of 5 clients are gone")

    path = tmp_path / "run"
    monkeypatch.setattr(private_modes.DistributedMode, "_total", failing)
    folder = run(path, config('epsilon = 45\ndelta = 1e-3\nmode = "distributed"\n', rounds=1))
    (entry,) = folder.ledger.entries
    assert entry["privacy"]["void"] == "5 of 5 clients are gone; its charge stays"
    assert entry["privacy"]["epsilon"] == pytest.approx(45, rel=2e-3)
    assert "5 of 5 clients are gone" in write_report(folder).read_text()


@pytest.mark.parametrize("mode", ["central", "distributed"])
def test_nobody_trains_for_a_release_that_the_budget_does_not_hold(tmp_path, mode):
    path, private = tmp_path / "run", f'epsilon = 45\ndelta = 1e-3\nmode = "{mode}"\n'

    def spend():
        budget(path, concentrated=mode == "distributed").reserve("0" * 64)

    learner = Interrupting(after=2, action=spend)
    folder = run(path, config(private, rounds=2), learner=learner)
    assert "would bring epsilon to" in folder.ledger.entries[-1]["stopped"]
    assert len(learner.trained) == 5


def test_the_private_journal_expires_and_says_so(whole, tmp_path, capsys):
    path = tmp_path / "run"
    shutil.copytree(whole, path)
    assert RunFolder.read(path).expired == 0
    old = [p for p in (path / "private").rglob("*") if p.is_file() and "budget" not in str(p.relative_to(path))]
    assert len(old) == 2 * 5 + 2 + 1
    for file in old:
        os.utime(file, (0, os.stat(file).st_mtime - 31 * 86400))
    assert main(["report", str(path)]) == 0
    assert "files of its private journal expired" in capsys.readouterr().err
    assert not [file for file in old if file.exists()]
    assert len(budget(path).charges) == 2  # what was spent stays spent
    assert main(["report", str(path), "--destroy-noise-keys"]) == 0
    assert "2 noise keys and the run's secret were deleted" in capsys.readouterr().err
    assert list((path / "private/budget.keys").iterdir()) == []
    with pytest.raises(MissingError, match="secret: expired or was destroyed"):
        run(path, resume=True)
    unfinished = interrupted(tmp_path / "unfinished")
    for file in (unfinished / "private").rglob("*"):
        os.utime(file, (0, 0))
    folder = run(unfinished, config(rounds=3), resume=True)
    assert len(folder.ledger.entries) == 3


def test_a_client_with_noise_of_its_own_sends_one_message_a_round(tmp_path):
    """Lost messages come again bit for bit; others, which no charge covers, do not leave."""
    path, settings = tmp_path / "run", config(SMALL + 'mode = "local"\n', rounds=2)
    with pytest.raises(KeyboardInterrupt):
        run(path, settings, learner=Interrupting(after=8))
    sent, *others = sorted((path / "private/updates/one/round-002").iterdir())
    for file in (sent, *others):
        os.utime(file, (0, 0))
    assert RunFolder.read(path).expired == 0
    sent.unlink()

    class Other(fake.FakeLearner):
        def train(self, adapter, client, steps, seed, *arguments, **options):
            return super().train(adapter, client, steps + 1, seed + 1, *arguments, **options)

    with pytest.raises(PrivacyError, match="client-0 sent another message in one round 2"):
        run(path, settings, resume=True, learner=Other())
    folder = run(path, settings, resume=True)
    assert sent.is_file()
    assert len(folder.ledger.entries) == 2
    assert main(["report", str(path), "--destroy-noise-keys"]) == 0
    assert not (path / "private/secret").exists()


def test_public_files_tell_no_time_and_open_arms_are_named(tmp_path, whole, capsys):
    text = 'epsilon = 20\ndelta = 1e-2\narms = ["one"]\nsampling = "poisson"\nclients_per_round = 2\n'
    arms = '[[arms]]\nname = "one"\n[[arms]]\nname = "bare"\n'
    path = tmp_path / "run"
    write_report(run(path, config(text, rounds=1, arms=arms)))
    public = [p for p in path.rglob("*") if p.relative_to(path).parts[0] != "private" or p.name == "private"]
    assert len({p.stat().st_mtime for p in [path, *public]}) == 1
    assert main(["report", str(path), "--json"]) == 0
    notes = json.loads(capsys.readouterr().out)["privacy"]
    assert any(note.startswith("warning: bare: not private, on the same clients") for note in notes)
    assert any("who watches the clock" in note for note in notes)
    assert "warning: bare: not private" in (path / "report.html").read_text()
    assert not any("not private" in note for note in read_plan(whole).notes)
    assert any("their number, 5, is public" in note for note in read_plan(whole).notes)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"privacy": "epsilon = 0\ndelta = 1e-5\n"}, "privacy.epsilon: got 0"),
        ({"privacy": "epsilon = 8\ndelta = 0.2\n"}, "privacy.delta: got 0.2 for a population of 5"),
        ({"privacy": "epsilon = 8\n"}, "privacy.delta: missing"),
        ({"privacy": SMALL + "clipp = 1\n"}, "privacy.clipp: unknown key; did you mean 'clip'?"),
        ({"privacy": SMALL + "adaptive = { quantil = 0.5 }\n"}, "privacy.adaptive.quantil: unknown key"),
        ({"privacy": SMALL + 'sampling = "poisson"\n'}, "privacy: clients_per_round: missing"),
        ({"privacy": SMALL + "clients_per_round = 2\n"}, 'clients_per_round: got 2 with sampling = "none"'),
        ({"privacy": SMALL + 'sampling = "poisson"\nclients_per_round = 6\n'}, "clients_per_round: got 6 of 5 clients"),
        (
            {"privacy": SMALL + 'sampling = "fixed"\nclients_per_round = 2\nneighbours = "add_remove"\n'},
            'neighbours: got "add_remove" with sampling = "fixed"',
        ),
        (
            {"privacy": SMALL + 'sampling = "poisson"\nclients_per_round = 2\nmode = "distributed"\n'},
            "a sample hides nobody",
        ),
        ({"privacy": SMALL + 'mode = "local"\nper_module = true\n'}, "need the norms at the server"),
        ({"privacy": SMALL + "fewest_clients = 3\n"}, 'are of mode = "distributed"'),
        ({"privacy": SMALL + 'mode = "distributed"\ncorrupt_clients = 5\n'}, "privacy.corrupt_clients: got 5"),
        ({"aggregation": 'weights = "counts"\n'}, 'aggregation.weights: got "counts" with [privacy]'),
        ({"model": "[model.pretrain]"}, "model.pretrain.label: missing with [privacy]"),
        ({"method": "fedit"}, "their noises multiply in B · A"),
        ({"method": "flexlora", "privacy": SMALL + "both_factors = true\n"}, "their noises multiply in B · A"),
        ({"method": "fedsa_lora"}, "clients keep factors of their own"),
        ({"arms": '[[arms]]\nname = "k"\nrule = "krum"\nparameters = { f = 1 }\n'}, "noise that hides a clip hides"),
        ({"arms": '[[arms]]\nname = "k"\nrule = "median"\n'}, "noise that hides a clip hides nothing"),
        ({"arms": '[[arms]]\nname = "k"\nrule = "mean"\n'}, "space 'delta' clips B · A"),
        ({"arms": '[[arms]]\nname = "k"\nrule = "mean"\nspace = "parameters"\n'}, "aggregation.method: missing"),
        ({"arms": '[[arms]]\nname = "k"\nattack = { clients = 1 }\n'}, "attack: got one with [privacy]"),
        ({"arms": '[adapter]\nranks = [2, 4]\n[[arms]]\nname = "k"\n'}, "adapter.ranks: got [2, 4] with [privacy]"),
    ],
)
def test_what_is_not_private_is_refused_by_name_before_any_work(change, said):
    with pytest.raises(ConfigError) as caught:
        config(**change)
    assert said in str(caught.value)


def test_the_table_of_privacy_survives_the_round_trip_and_its_files_are_beside_the_configuration():
    made = parse_config(
        f'[model]\nsource = "m"\n[aggregation]\nmethod = "rolora"\n[privacy]\n{SMALL}budget = "b"\nadaptive = {{}}\n',
        "c.toml",
        Path("/somewhere"),
    )
    assert made.privacy.budget == "/somewhere/b"
    assert parse_config(to_toml(made), "again") == made
    assert made.aggregation_of(made.arms[0]).weights == "equal"
    assert set(METHODS) >= {"ffa_lora", "fedsvd", "rolora", "fedsb"}
