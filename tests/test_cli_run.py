"""`fedcore run`, `demo`, `report`: results, one-line errors, and what is refused before any work."""

from __future__ import annotations

import errno
import importlib
import io
import json
import os
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import fake_learner as fake
import pytest
from cli_runs import CONFIG, configured, refused

from fedcore.cli import main
from fedcore.cli.run import carry_out
from fedcore.federation import simulation
from fedcore.lora import METHODS

demo_command = importlib.import_module("fedcore.cli.demo")


@pytest.fixture
def config(tmp_path: Path, monkeypatch) -> Path:
    return configured(tmp_path, monkeypatch)


def test_a_run_shows_its_table_and_leaves_its_folder(config, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["run", str(config), "-o", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    for name in ("base", "local-only", "mean", "krum", "loss", "accuracy"):
        assert name in shown
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert left == {
        "config.toml", "run.json", "metrics.jsonl", "ledger.jsonl", "updates", "arms", "adapter", "report.html",
    }  # fmt: skip


def test_json_is_one_object_and_nothing_else(config, tmp_path, capsys):
    assert main(["run", str(config), "-o", str(tmp_path / "out"), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in said["table"]] == ["base", "local-only", "mean", "krum"]
    assert Path(said["report"]).is_file()
    assert (Path(said["adapter"]) / "adapter_model.safetensors").is_file()


def test_the_exact_configuration_of_a_run_repeats_it(config, tmp_path, capsys):
    assert main(["run", str(config), "-o", str(tmp_path / "one")]) == 0
    assert main(["run", str(tmp_path / "one/config.toml"), "-o", str(tmp_path / "two")]) == 0
    for name in ("ledger.jsonl", "config.toml", "adapter/adapter_model.safetensors"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_a_typo_is_one_line_with_file_and_key(config, tmp_path, capsys):
    config.write_text(CONFIG.replace("rounds = 2", "ruonds = 2"))
    line = refused(capsys, "run", config, "-o", tmp_path / "out")
    assert line == f"fedcore: error: {config}: run.ruonds: unknown key; did you mean 'rounds'?\n"
    assert not (tmp_path / "out").exists()


def test_an_existing_folder_a_missing_file_and_a_wrong_option(config, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    assert "out: already exists; choose another --output or remove it" in refused(
        capsys, "run", config, "-o", tmp_path / "out"
    )
    assert list((tmp_path / "out").iterdir()) == []
    assert "gone.toml: no such configuration file" in refused(capsys, "run", tmp_path / "gone.toml")
    assert "--outptu" in refused(capsys, "run", config, "--outptu", "x", code=2)
    assert "nothing to resume; leave out --resume" in refused(
        capsys, "run", config, "-o", tmp_path / "none", "--resume"
    )
    assert "no config.toml in it" in refused(capsys, "report", tmp_path)
    assert "--seed" in refused(capsys, "demo", "--seed", "-1", code=2)


def test_a_folder_that_cannot_be_made_is_one_line(config, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    line = refused(capsys, "run", config, "-o", tmp_path / "file" / "out").splitlines()[-1]
    assert "cannot be written (Not a directory)" in line
    assert (tmp_path / "file").read_text() == ""


def test_what_cannot_be_is_refused_before_texts_and_base(config, tmp_path, capsys, monkeypatch):
    assert main(["run", str(config), "-o", str(tmp_path / "out")]) == 0
    capsys.readouterr()

    def too_late(*_):
        raise AssertionError("read too early")

    monkeypatch.setattr(simulation, "load_texts", too_late)
    config.write_text(CONFIG.replace("seed = 1", "seed = 2"))
    assert "run.seed: got 2, this run began with 1 (" in refused(
        capsys, "run", config, "-o", tmp_path / "out", "--resume"
    )
    (tmp_path / "file").write_text("")
    assert "cannot be written" in refused(capsys, "run", config, "-o", tmp_path / "file" / "out")
    (tmp_path / "empty").mkdir()
    for source, said in (("./mistyped", "no such directory"), ("empty", "no config.json in it")):
        config.write_text(CONFIG.replace('"fake"', f'"{source}"'))
        [line] = refused(capsys, "run", config, "-o", tmp_path / "new").splitlines()
        assert line.startswith("fedcore: error: model ")
        assert f": {said} (looked at {tmp_path / source}); give " in line
    assert not (tmp_path / "new").exists()


def test_clients_by_column_are_counted_before_the_base(config, tmp_path, capsys, monkeypatch):
    def too_late(*_):
        raise AssertionError("the base was made")

    monkeypatch.setattr(simulation, "QLoRALearner", too_late)
    by_column = CONFIG.replace("clients = 5\n", 'kind = "column"\ncolumn = "kind"\n', 1)
    config.write_text(by_column)
    assert "f=1 with n=2" in refused(capsys, "run", config, "-o", tmp_path / "out")
    config.write_text(
        by_column.replace("clients = 1", "clients = 2").replace('rule = "krum"\nparameters = { f = 1 }', "")
    )
    assert "got 2 of 2 clients, expected at most 1" in refused(capsys, "run", config, "-o", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_keys_lists_the_whole_configuration(capsys):
    assert main(["run", "--keys"]) == 0
    said = capsys.readouterr().out
    assert "run.rounds (integer, default 3)\n    federated rounds in each arm\n" in said
    assert "arms[].attack.clients" in said


@pytest.mark.parametrize("command", [[], ["--help"], ["run", "--help"], ["keys"], ["keys", "new", "--help"]])
def test_help_that_cannot_be_shown_is_one_line_about_stdout(capsys, monkeypatch, command):
    class Full(io.StringIO):
        def write(self, _):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(sys, "stdout", Full())
    assert main(command) == 1
    assert capsys.readouterr().err == (
        "fedcore: error: standard output cannot be written (No space left on device); free space or send it to another "
        "place\n"
    )


def test_torch_is_told_not_to_spin(monkeypatch):
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    assert main(["run", "--keys"]) == 0
    assert os.environ["GOMP_SPINCOUNT"] == "10000"
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    assert main(["run", "--keys"]) == 0
    assert os.environ["GOMP_SPINCOUNT"] == "7"


def test_report_is_written_again(config, tmp_path, capsys):
    assert main(["run", str(config), "-o", str(tmp_path / "out"), "--json"]) == 0
    page = tmp_path / "out" / "report.html"
    before = page.read_bytes()
    page.unlink()
    capsys.readouterr()
    assert main(["report", str(tmp_path / "out"), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["table"]) == 4
    assert page.read_bytes() == before


def test_demo_has_an_arm_for_every_method_where_it_is_asked_for(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(simulation, "QLoRALearner", lambda *_: fake.FakeLearner())
    monkeypatch.setattr(simulation, "Workers", lambda _: nullcontext())
    # one round of the same clients
    monkeypatch.setattr(demo_command, "carry_out", lambda config, *rest: carry_out(one_round(config), *rest))
    assert main(["demo", "--methods", "-o", str(tmp_path / "out"), "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["table"]}
    arms = ["honest-mean", "poisoned-mean", "poisoned-krum", "secure-mean", "secure-dp"]
    assert list(rows) == ["base", "local-only", *arms, *METHODS]
    for name in METHODS:
        row = rows[name]
        assert min(row["bytes_up"], row["loss"], row["perplexity"], row["accuracy"], row["training"]) > 0
    # the same clients send A and B under the plain mean and under FedIT, and A alone under FedSA-LoRA
    assert rows["fedit"]["bytes_up"] == rows["honest-mean"]["bytes_up"]
    assert rows["fedsa_lora"]["bytes_up"] * 10 == rows["fedit"]["bytes_up"] * 4
    assert json.loads((tmp_path / "out" / "run.json").read_text())["clients"][7]["examples"] > 1


def one_round(config):
    return config.model_copy(update={"run": config.run.model_copy(update={"rounds": 1})})


def test_demo_prints_its_configuration_and_takes_a_seed(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(simulation, "QLoRALearner", lambda *_: fake.FakeLearner())
    monkeypatch.setattr(simulation, "Workers", lambda _: nullcontext())
    assert main(["demo", "-o", str(tmp_path / "out"), "--seed", "3"]) == 0
    out = capsys.readouterr().out
    assert "[[arms]]" in out
    assert "seed = 3" in out
    assert "seed = 3" in (tmp_path / "out/config.toml").read_text()


def test_help_is_quick_and_loads_no_model_library():
    script = "import sys; from fedcore.cli import main; main(['--help'])"
    script += "; print(sorted({'torch', 'transformers', 'matplotlib', 'pydantic'} & set(sys.modules)))"
    times = []
    for _ in range(3):
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        times.append(time.perf_counter() - start)
    assert done.stdout.splitlines()[-1] == "[]"
    assert all(command in done.stdout for command in ("demo", "run", "aggregate", "report", "doctor"))
    # 0.25 s on an idle machine; the bound leaves room for a busy one
    assert min(times) < 2.0
