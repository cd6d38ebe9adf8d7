"""A run goes on with the configuration that it began with, whatever became of the file in its folder since."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import fake_learner as fake
import private_runs
import pytest
from test_federation_references import Learner, texts

from fedcore.cli import main
from fedcore.errors import ConfigError, MissingError
from fedcore.federation import simulation
from fedcore.federation.config_file import load_config
from fedcore.federation.folder import RunFolder
from fedcore.federation.simulation import run_arms


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "run"
    run_arms(fake.config(), fake.texts(), fake.FakeLearner(), path, resume=False)
    return path


@pytest.fixture
def run(whole, tmp_path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "run"))


def edit(path: Path, *changes: tuple[str, str]) -> Path:
    text = path.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    path.write_text(text)
    return path


def resume(run: Path, file: Path):
    learner = fake.FakeLearner()
    try:
        return run_arms(load_config(file), fake.texts(), learner, run, resume=True)
    finally:
        assert learner.trained == []


STEPS, ROUNDS = ("steps = 12\n", "steps = 9\n"), ("rounds = 3\n", "rounds = 4\n")


def test_an_edited_configuration_in_the_run_folder_is_refused(run):
    own = edit(run / "config.toml", STEPS)
    with pytest.raises(ConfigError) as caught:
        resume(run, own)
    assert str(caught.value) == (
        f"{own}: training.steps: got 9, this run began with 12 ({run}/run.json); put it back, or start a new run with "
        "it in another folder"
    )
    # nor does the right one make the wrong one in the folder true
    with pytest.raises(ConfigError, match=r"run/config\.toml: training\.steps: got 9"):
        run_arms(fake.config(), fake.texts(), fake.FakeLearner(), run, resume=True)


def test_it_is_refused_on_the_command_line_before_any_text_is_read(run, capsys, monkeypatch):
    def too_late(*_):
        raise AssertionError("read too early")

    monkeypatch.setattr(simulation, "load_texts", too_late)
    own = edit(run / "config.toml", STEPS, ROUNDS)
    assert main(["run", str(own), "--resume"]) == 1
    [said] = capsys.readouterr().err.splitlines()
    assert said.startswith(f"fedcore: error: {own}: run.rounds: got 4, this run began with 3 (")
    assert "run.json), and training.steps differs; " in said


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ([STEPS], "training.steps: got 9, this run began with 12 ("),
        ([("f = 1", "f = 0")], "arms[2].parameters.f: got 0, this run began with 1 ("),
        ([('name = "krum"', 'name = "other"')], "arms[2].name: got 'other', this run began with 'krum' ("),
        ([("proximal_mu = 0.0", "proximal_mu = 0.5")], "training.proximal_mu: got 0.5, this run began with 0.0 ("),
        ([("[message]", '[message]\nformat = "int8"')], "message.format: got 'int8', this run began without it ("),
        ([("parameters = { f = 1 }", "parameters = {}"), ('rule = "krum"', 'rule = "mean"')],
         "arms[2].rule: got 'mean', this run began with 'krum' ("),
    ],
)  # fmt: skip
def test_an_edited_copy_is_refused_by_key_and_values(run, tmp_path, changes, said):
    copy = edit(Path(shutil.copy(run / "config.toml", tmp_path / "copy.toml")), *changes)
    with pytest.raises(ConfigError) as caught:
        resume(run, copy)
    assert str(caught.value).startswith(said)
    assert str(caught.value).endswith(f"; resume with {run}/config.toml")
    assert "\n" not in str(caught.value)


def test_a_table_without_keys_is_not_one_that_is_left_out(run):
    """Parameters of an arm that are {} take none of [aggregation]'s, absent ones take all."""
    own = edit(run / "config.toml", ('name = "mean"\n', 'name = "mean"\nparameters = {}\n'))
    with pytest.raises(ConfigError, match=r"arms\[0\]\.parameters: got \{\}, this run began without it"):
        resume(run, own)


def test_a_key_that_is_gone_is_named(run, tmp_path):
    copy = edit(Path(shutil.copy(run / "config.toml", tmp_path / "copy.toml")), ("clients = 5\n", ""))
    with pytest.raises(ConfigError, match=r"^partition\.clients: missing, this run began with 5 \("):
        resume(run, copy)


def test_workers_the_output_and_the_layout_of_the_file_may_differ(run):
    own = run / "config.toml"
    edit(own, ("workers = 1\n", "workers = 7\noutput = 'elsewhere'\n"), ("steps = 12\n", "# by hand\nsteps   =  12\n"))
    assert len(resume(run, own).ledger.entries) == 9


@pytest.mark.parametrize("table", ["data", "server"])
def test_files_may_have_moved_but_keep_their_names(tmp_path, table):
    """What is in them is compared by its digest; runs of a folder that was moved as a whole go on."""
    key = {"data": "source", "server": "data"}[table]
    arm = '[[arms]]\nname = "trust"\nrule = "fltrust"\n' if table == "server" else ""
    text = f'{fake.CONFIG}{arm}\n[{table}]\n{key} = "texts.jsonl"\n'
    held, learner = (texts(), Learner()) if arm else (fake.texts(), fake.FakeLearner())
    for name in ("there", "here"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "own.toml").write_text(text)
    run, here = tmp_path / "there/run", tmp_path / "here/own.toml"
    run_arms(load_config(tmp_path / "there/own.toml"), held, learner, run, resume=False)
    moved = run.rename(tmp_path / "here/run")
    assert run_arms(load_config(here), held, learner, moved, resume=True).ledger.entries
    edit(here, ("texts.jsonl", "others.jsonl"))
    with pytest.raises(ConfigError, match=rf"^{table}\.{key}: got '.*/here/others\.jsonl', .* with '.*/texts\.jsonl'"):
        resume(tmp_path / "here/run", here)


def test_a_report_says_that_the_configuration_was_changed_and_shows_the_one_of_the_run(run, capsys):
    assert RunFolder.read(run).changed() == ""
    edit(run / "config.toml", STEPS)
    assert main(["report", str(run)]) == 0
    [said] = capsys.readouterr().err.splitlines()
    what = f"{run}/config.toml: training.steps: got 9, this run began with 12 ({run}/run.json)"
    assert said == f"fedcore: {what}; the report shows what it began with"
    page = (run / "report.html").read_text()
    assert f"Changed after the run began: {what}. The run began with:" in page
    assert "steps = 12\n" in page
    assert "steps = 9\n" not in page


def test_a_run_whose_facts_lack_the_configuration_is_refused(run):
    facts = json.loads((run / "run.json").read_text())
    for damaged in ({k: v for k, v in facts.items() if k != "config"}, facts | {"config": 3}):
        (run / "run.json").write_text(json.dumps(damaged))
        with pytest.raises(MissingError, match=r"run\.json: has not the run's configuration; restore it from"):
            resume(run, run / "config.toml")


def test_a_private_run_expires_and_destroys_by_what_it_began_with(tmp_path, capsys):
    pytest.importorskip("dp_accounting", reason="budgets need dp-accounting, of the extra `train`")
    run = tmp_path / "run"
    private_runs.interrupted(run)
    own = edit(run / "config.toml", ("rounds = 3\n", "rounds = 2\n"), ("journal_days = 30\n", "journal_days = 1\n"))
    kept = [path for path in (run / "private").rglob("*") if path.is_file()]
    for path in kept:
        os.utime(path, (0, os.stat(path).st_mtime - 3 * 86400))
    assert main(["report", str(run)]) == 0
    assert all(path.exists() for path in kept)
    assert main(["report", str(run), "--destroy-noise-keys"]) == 0
    assert "but not the run's secret" in capsys.readouterr().err
    assert (run / "private/secret").exists()
    with pytest.raises(ConfigError, match=r"run\.rounds: got 2, .*, and privacy\.journal_days differs; put it back"):
        private_runs.run(run, load_config(own), resume=True)


def test_no_place_of_a_private_run_is_in_its_facts_or_its_report(tmp_path, capsys):
    pytest.importorskip("dp_accounting", reason="budgets need dp-accounting, of the extra `train`")
    place, run = tmp_path / "hidden-place", tmp_path / "run"
    place.mkdir()
    (place / "key").write_bytes(bytes(range(32)))
    settings = private_runs.config(f'{private_runs.SMALL}budget = "{place}/budget"\nsealing_key = "{place}/key"\n')
    private_runs.run(run, settings)
    assert b"hidden-place" not in (run / "run.json").read_bytes()
    public = shutil.copytree(run, tmp_path / "public", ignore=shutil.ignore_patterns("private"))
    assert main(["report", str(public)]) == 0
    assert "Changed after the run began" not in (public / "report.html").read_text()
    assert "changed" not in capsys.readouterr().err
    edit(run / "config.toml", ('budget = ""', f'budget = "{tmp_path}/other"'))
    assert main(["report", str(run)]) == 0
    said = capsys.readouterr().err
    assert "config.toml: privacy.budget: differs from what this run began with" in said
    assert "hidden-place" not in said
    assert "hidden-place" not in (run / "report.html").read_text()
    with pytest.raises(ConfigError, match=r"privacy\.budget: differs from what this run began with"):
        private_runs.run(run, load_config(run / "config.toml"), resume=True)
