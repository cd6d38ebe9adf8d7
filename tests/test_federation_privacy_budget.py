"""Private runs and their budget: whatever is killed, changed, rolled back or spent by another run."""

from __future__ import annotations

import json
import os
import signal

import fake_learner as fake
import pytest
from private_runs import SMALL, Interrupting, budget, config, dies, run

import fedcore as fc
from fedcore.errors import BackendError, ConfigError, FormatError, MissingError, PrivacyBudgetError, PrivacyError
from fedcore.federation.folder import RunFolder
from fedcore.federation.journal import LineLog
from fedcore.federation.private_round import STOPPED
from fedcore.federation.private_run import read_plan
from fedcore.federation.sealing import sealing_key
from fedcore.federation.simulation import simulate
from fedcore.privacy.central import Central
from fedcore.report.html import write_report
from fedcore.report.privacy import lines
from fedcore.report.table import rows

pytest.importorskip("dp_accounting", reason="budgets need dp-accounting, of the extra `train`")


@pytest.mark.parametrize("step", ["urandom", "fsync", "link", "unlink"])
def test_a_kill_leaves_no_sealing_key_or_a_whole_one(tmp_path, step):
    """Half a key would be refused for ever, or, taken for one, could be guessed."""
    settings = config().privacy
    child = os.fork()
    if child == 0:
        setattr(os, step, lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
        sealing_key(settings, tmp_path)
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    path = tmp_path / "budget.sealing-key"
    before = path.read_bytes() if path.exists() else None
    key = sealing_key(settings, tmp_path)
    assert len(key) == 32
    assert before in (None, key)
    assert path.stat().st_mode & 0o777 == 0o600
    path.write_bytes(key[:9])
    with pytest.raises(FormatError, match=r"sealing-key: got 9 bytes, expected a sealing key of 32; restore it"):
        sealing_key(settings, tmp_path)


def test_a_stream_that_does_not_run_here_is_refused_before_there_is_a_key_a_folder_or_a_charge(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDCORE_BACKEND", "reference")
    masked = '[[arms]]\nname = "one"\nsecure = { stream = "aes256ctr" }\n'
    shared = f'{SMALL}budget = "{tmp_path}/people.budget"\n'
    for key, settings in (
        ("privacy", config(f'{shared}stream = "aes256ctr"\n')),
        ("secure", config(f'{shared}mode = "distributed"\n', arms=masked)),
    ):
        with pytest.raises(BackendError, match=rf"^{key}\.stream: keystream: backend 'reference' has no 'aes256ctr'"):
            simulate(settings, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


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
    public = [p for p in [path, *path.rglob("*")] if "private" not in p.relative_to(path).parts]
    times = {p.stat().st_mtime for p in public if "round-002" not in p.name and p not in (path, path / "arms/one")}
    assert len(times) == 1  # nothing public tells how long the last round took
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
    with pytest.raises(FormatError, match=r"has 0 records where the keys in budget\.keys tell of 2"):
        run(path, config(rounds=3), resume=True)
    (private / "budget").write_bytes(content)
    (private / "budget.sealing-key").unlink()
    with pytest.raises(MissingError, match=r"the sealing key of .* is missing"):
        run(path, config(rounds=3), resume=True)
    assert len(RunFolder.read(path).ledger.entries) == 2


def test_the_plan_that_is_used_is_the_one_that_was_checked(tmp_path, monkeypatch):
    """Whoever writes to the folder while it is read has no run go on with another plan."""
    path = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        run(path, config(rounds=3), learner=Interrupting(after=1))
    said, reads = json.loads((path / "privacy.json").read_text()), []

    def first_another(real):
        def read(file, *arguments, **options):
            if file.name == "privacy.json":
                reads.append(file)
                file.write_text(json.dumps(said | ({"charged": 0.1} if len(reads) == 1 else {})))
            return real(file, *arguments, **options)

        return read

    for name in ("read_text", "read_bytes"):
        monkeypatch.setattr(type(path), name, first_another(getattr(type(path), name)))
    with pytest.raises(FormatError, match=r"privacy\.json: was changed after the run began"):
        run(path, config(rounds=3), resume=True)


def test_a_plan_that_was_changed_releases_nothing(tmp_path):
    text = 'epsilon = 20\ndelta = 1e-2\nsampling = "fixed"\nclients_per_round = 2\n'
    path = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        run(path, config(text, rounds=20), learner=Interrupting(after=1))  # of two
    said = json.loads((path / "privacy.json").read_text())
    changes = [{"sampling_rate": 1e-6, "expected_clients": 5}, {"charged": 0.1}]
    for changed in [*changes, *({"mac": mac} for mac in ("0" * 64, "é", "\ud800", None))]:
        (path / "privacy.json").write_text(json.dumps(said | changed))
        with pytest.raises(FormatError, match=r"privacy\.json: was changed after the run began"):
            run(path, config(text, rounds=20), resume=True)
    (path / "privacy.json").write_text(json.dumps(said))
    for name in ("budget", "budget.head"):  # all that there is before the first charge
        (path / "private" / name).unlink()
    with pytest.raises(PrivacyError, match="does not continue it"):
        run(path, config(text, rounds=20), resume=True)


def test_a_run_stops_before_another_run_makes_it_pass_the_budget(tmp_path):
    """A population has one budget: what another run charges meanwhile is not there any more."""
    path = tmp_path / "run"
    learner = Interrupting(after=7, action=lambda: budget(path).reserve("0" * 64))
    folder = run(path, config(rounds=3), learner=learner)
    assert [line["round"] for line in folder.metrics.entries if line["arm"] == "one"] == [1, 2]
    assert folder.ledger.entries[-1] == {"arm": "one", "round": 3, "stopped": STOPPED}
    assert "budget: a charge at noise multiplier" in folder.private.kept("one", 3)["stopped"]
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
    with pytest.raises(PrivacyError, match=r"epsilon: got 10.*; a run that is to take less says so as its spend"):
        run(tmp_path / "fourth", config(shared.replace("epsilon = 20", "epsilon = 10"), rounds=1))
    with pytest.raises(PrivacyError, match=r"epsilon: got 30\.0, and the budget at .* was started with 20"):
        run(tmp_path / "third", config(shared.replace("epsilon = 20", "epsilon = 30"), rounds=1))


def test_a_run_with_a_share_of_the_budget_leaves_the_rest_to_others(tmp_path):
    """One that was interrupted finishes with the noise that it planned, whatever runs meanwhile."""
    shared = f'{SMALL}spend = 9\nbudget = "{tmp_path}/people.budget"\n'
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "first", config(shared), learner=Interrupting(after=7))
    between = run(tmp_path / "between", config(shared))
    first = run(tmp_path / "first", config(shared), resume=True)
    plans = [read_plan(tmp_path / name) for name in ("first", "between")]
    assert plans[0].charged == plans[1].charged
    assert plans[0].charged == pytest.approx(fc.privacy.noise_multiplier(epsilon=9, rounds=2, delta=1e-5), rel=1e-3)
    assert 9 < between.metrics.entries[-1]["epsilon"] < first.metrics.entries[-1]["epsilon"] <= 18
    assert lines(plans[0], rows(first.metrics.entries), first.ledger.entries)[0].startswith(
        "ε = 13.85 of 20 at δ = 1e-05, for one client of 5 (add_remove neighbours), 9 of it at most for this run; every"
    )
    rest = run(tmp_path / "rest", config(shared.replace("spend = 9", "spend = 19"), rounds=1))  # more than is left
    assert read_plan(rest.path).charged > 1.1 * fc.privacy.noise_multiplier(epsilon=19, delta=1e-5)
    assert 0.999 * 20 < rest.metrics.entries[-1]["epsilon"] <= 20
    with pytest.raises(ConfigError, match=r"spend: got 21 of epsilon = 20"):
        config(f"{SMALL}spend = 21\n")


@pytest.mark.parametrize("mode", ["central", "distributed"])
def test_nobody_trains_for_a_release_that_the_budget_does_not_hold(tmp_path, mode):
    path, private = tmp_path / "run", f'epsilon = 45\ndelta = 1e-3\nmode = "{mode}"\n'

    def spend():
        budget(path, concentrated=mode == "distributed").reserve("0" * 64)

    learner = Interrupting(after=2, action=spend)
    folder = run(path, config(private, rounds=2), learner=learner)
    assert folder.ledger.entries[-1]["stopped"] == STOPPED
    assert len(learner.trained) == 5
