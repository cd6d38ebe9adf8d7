"""Private runs that are refused; what expires, and what public files tell."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import fake_learner as fake
import numpy as np
import pytest
from private_runs import SMALL, Interrupting, budget, config, dies, interrupted, run

from fedcore.cli import main
from fedcore.errors import ConfigError, LayoutError, MissingError, PrivacyError, RangeError
from fedcore.federation import client_noise, private_round
from fedcore.federation.config_file import parse_config, to_toml
from fedcore.federation.folder import RunFolder
from fedcore.federation.privacy_notes import scope
from fedcore.federation.private_run import read_plan
from fedcore.lora import METHODS
from fedcore.privacy import Budget, Distributed, orthonormal
from fedcore.report.html import write_report

pytest.importorskip("dp_accounting", reason="budgets need dp-accounting, of the extra `train`")

LOCAL = config(SMALL + 'mode = "local"\n')


def test_the_private_journal_expires_and_says_so(finished, tmp_path, capsys):
    path = tmp_path / "run"
    shutil.copytree(finished, path)
    assert RunFolder.read(path).expired == 0
    inside = [p for p in (path / "private").rglob("*") if p.is_file() and "budget" not in str(p.relative_to(path))]
    old = [file for file in inside if file.name != "plan-key"]
    assert len(old) == len(inside) - 1 == 2 * 5 + 2 + 1
    for file in old:
        os.utime(file, (0, os.stat(file).st_mtime - 31 * 86400))
    assert main(["report", str(path)]) == 0
    assert "files of its private journal expired" in capsys.readouterr().err
    assert not [file for file in old if file.exists()]
    assert len(budget(path).charges) == 2  # what was spent stays spent
    assert main(["report", str(path), "--destroy-noise-keys"]) == 0
    assert "2 noise keys and the run's secret were deleted" in capsys.readouterr().err
    assert [key.suffix for key in (path / "private/budget.keys").iterdir()] == [".destroyed"] * 2
    with pytest.raises(MissingError, match="secret: expired or was destroyed"):
        run(path, resume=True)
    unfinished = interrupted(tmp_path / "unfinished")
    for file in (unfinished / "private").rglob("*"):
        os.utime(file, (0, 0))
    folder = run(unfinished, config(rounds=3), resume=True)
    assert len(folder.ledger.entries) == 3


@pytest.mark.parametrize("died", ["charged", "drawn"])
def test_keys_that_a_run_needs_to_go_on_are_not_destroyed(tmp_path, capsys, died):
    path = tmp_path / "run"
    if died == "charged":  # at the server, before its release
        dies(path, Budget, "reserve", 2)
    else:  # by each client, before it trains
        with pytest.raises(KeyboardInterrupt):
            run(path, LOCAL, learner=Interrupting(after=7))
    settings = None if died == "charged" else LOCAL
    assert main(["report", str(path), "--destroy-noise-keys"]) == 1
    assert "is not finished, and a round is charged, as number 3, and not released yet" in capsys.readouterr().err
    assert len(run(path, settings, resume=True).ledger.entries) == 2


def test_keys_are_destroyed_between_rounds_of_this_run_alone_and_while_nobody_else_runs_it(tmp_path, capsys):
    shared = config(f'{SMALL}spend = 10\nbudget = "{tmp_path}/people.budget"\n', rounds=3)
    run(tmp_path / "other", shared)
    path, destroy = tmp_path / "run", ["report", str(tmp_path / "run"), "--destroy-noise-keys"]
    with pytest.raises(KeyboardInterrupt):
        run(path, shared, learner=Interrupting(after=10))
    with RunFolder.read(path).hold():
        assert main(destroy) == 1
    assert "another process is running this" in capsys.readouterr().err
    plan = (path / "privacy.json").read_text()
    other = json.loads((tmp_path / "other/privacy.json").read_text())
    for said in (other, json.loads(plan) | {"run": other["run"]}):
        (path / "privacy.json").write_text(json.dumps(said))
        assert main(destroy) == 1
        assert "privacy.json: was changed after the run began" in capsys.readouterr().err
    assert len(list((tmp_path / "people.budget.keys").glob("*.sealed"))) == 5
    (path / "privacy.json").write_text(plan)
    assert main(destroy) == 0
    assert "2 noise keys but not the run's secret, with which it can go on, were deleted" in capsys.readouterr().err
    assert len(list((tmp_path / "people.budget.keys").glob("*.sealed"))) == 3
    assert len(run(path, shared, resume=True).ledger.entries) == 3


def test_public_files_tell_no_time_and_open_arms_are_named(tmp_path, finished, capsys):
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
    assert not any("not private" in note for note in read_plan(finished).notes)
    assert any("their number, 5, is public" in note for note in read_plan(finished).notes)
    dealt = 'partition.kind = "iid" deals one pile of texts: a neighbour has what one dealt share adds left out after'
    assert any(note.startswith(dealt) for note in read_plan(finished).notes)
    replaced = config(SMALL + 'neighbours = "replace_one"\n').privacy
    assert any("one dealt share adds replaced by another's after" in note for note in scope(replaced, 5, (), "iid"))
    assert not any("dealt" in note for note in scope(config().privacy, 5, ()))


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
        (
            {"privacy": SMALL + 'mode = "distributed"\nfewest_clients = 1\n'},
            "privacy.fewest_clients: got 1 of 5 clients, expected at least 2",
        ),
        (
            {"privacy": 'epsilon = 8\ndelta = 1e-12\nmode = "distributed"\n'},
            "privacy.delta: got 1e-12, expected more than 1.8e-12, the chance that masks fail in one of 2 rounds",
        ),
        (
            {
                "privacy": 'epsilon = 8\ndelta = 2e-12\nmode = "distributed"\n',
                "arms": '[[arms]]\nname = "one"\n[[arms]]\nname = "two"\n',
            },
            "privacy.delta: got 2e-12, expected more than 3.6e-12, the chance that masks fail in one of 4 rounds",
        ),
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
    assert parse_config(to_toml(made), "again", made.folder) == made
    assert made.aggregation_of(made.arms[0]).weights == "equal"
    assert set(METHODS) >= {"ffa_lora", "fedsvd", "rolora", "fedsb"}


@pytest.mark.parametrize(
    ("privacy", "said"),
    [
        ("clip = 1e40\n", "clip: got 1e+40"),
        ("clip = 1e200\n", "clip: got 1e+200"),
        ('clip = 1e-30\nmode = "local"\n', "clip: got 1e-30"),
        ("adaptive = { count_noise = 1e9 }\n", "count_noise: 1e+09 makes noise of"),
        ('clip = 1e40\nmode = "distributed"\n', "clip: got 1e+40"),
    ],
)
def test_what_cannot_be_released_is_refused_before_anybody_trains_or_is_charged(tmp_path, privacy, said):
    with pytest.raises(PrivacyError) as caught:
        run(tmp_path / "run", config(SMALL + privacy), learner=None)
    assert str(caught.value).startswith(said)
    assert not list(tmp_path.glob("run/rounds/*"))
    assert len((tmp_path / "run/private/budget").read_text().splitlines()) == 1  # its opening, and no charge


@pytest.mark.parametrize("mode", ["central", "correlated", "local", "distributed"])
def test_an_adapter_that_may_not_hold_its_noise_is_refused_before_anybody_trains_or_is_charged(tmp_path, mode):
    text = SMALL + f'mode = "{mode}"\nclip = 1e5\n' + "separation = 2\n" * (mode == "correlated")
    learner = fake.HalfLearner()
    with pytest.raises(RangeError, match=r"lora_B.weight': .*which does not fit float16; lower the clip"):
        run(tmp_path / "run", config(text), learner=learner)
    assert not learner.trained
    assert len((tmp_path / "run/private/budget").read_text().splitlines()) == 1  # its opening, and no charge
    run(tmp_path / "small", config(text.replace("1e5", "1.0")), learner=learner)


@pytest.mark.parametrize(("clip", "part"), [(16000.0, 4), (16000.0, 8), (8000.0, 4), (1.0, 4)])
def test_a_sum_that_no_clients_of_the_protocol_make_voids_its_round(tmp_path, monkeypatch, clip, part):
    """Also where the adapter holds it: the next round could not be charged for what it may come to."""
    honest = Distributed.encode

    def lying(self, update, noise):
        return ((honest(self, update, noise) + self.modulus // part) % self.modulus).astype(np.uint32)

    monkeypatch.setattr(Distributed, "encode", lying)
    text = SMALL + f'mode = "distributed"\nclip = {clip}\n'
    folder = run(tmp_path / "run", config(text), learner=fake.HalfLearner())
    assert [entry["privacy"].get("void") for entry in folder.ledger.entries] == [client_noise.TOO_LARGE] * 2
    assert len({entry["output"] for entry in folder.ledger.entries}) == 1
    assert len(budget(folder.path, concentrated=True).charges) == 2
    assert folder.private.kept("one", 1)["void"].startswith("a number of the mean is")


@pytest.mark.parametrize("mode", ["central", "distributed"])
def test_a_step_of_the_server_that_the_adapter_does_not_hold_voids_its_round(tmp_path, mode):
    server = 'server = { optimizer = "fedavgm", learning_rate = 1e5 }\n'
    text = SMALL + f'mode = "{mode}"\nclip = 1000.0\n'
    made = config(text, arms=f'[[arms]]\nname = "one"\n{server}')
    folder = run(tmp_path / "run", made, learner=fake.HalfLearner())
    start = orthonormal(fake.HalfLearner().initial())
    for entry in folder.ledger.entries:
        assert entry["privacy"]["void"] == private_round.NOT_HELD
        assert entry["output"] == entry["reference"] == start.digest()
        assert "lower server.learning_rate" in folder.private.kept("one", entry["round"])["void"]
    assert len(folder.ledger.entries) == len(budget(folder.path, concentrated=mode == "distributed").charges) == 2


class Narrow(fake.FakeLearner):
    """Its module has fewer rows than the rank."""

    def initial(self):
        return self._update(np.zeros((1, 2), np.float32), np.eye(2, 4, dtype=np.float32), "", 1)


@pytest.mark.parametrize("mode", ["central", "local", "distributed"])
def test_an_adapter_that_the_method_does_not_take_is_refused_before_anybody_trains(tmp_path, mode):
    learner = Narrow()
    with pytest.raises(LayoutError, match="rank"):
        run(tmp_path / "run", config(SMALL + f'mode = "{mode}"\n'), learner=learner)
    assert not learner.trained
    assert len((tmp_path / "run/private/budget").read_text().splitlines()) == 1


def test_a_clip_that_adapts_too_fast_stays_where_it_can_be_released(tmp_path):
    folder = run(tmp_path / "run", config(SMALL + "adaptive = { learning_rate = 1e4, count_noise = 20 }\n", rounds=3))
    assert len(folder.ledger.entries) == len(budget(folder.path).charges) == 3
