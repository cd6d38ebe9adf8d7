"""A report that cannot be made takes neither the table of a finished run with it nor its own cause."""

from __future__ import annotations

import errno
import json
import os
import sys
from pathlib import Path

import fake_learner as fake
import pytest

from fedcore.cli import main
from fedcore.federation import simulation
from fedcore.report import html, plots
from fedcore.updates.atomic import refused

CONFIG = """
[run]
rounds = 1
[model]
source = "fake"
[data]
source = "texts.jsonl"
held_out = 0.2
questions = 4
[partition]
clients = 2
[[arms]]
name = "only"
"""


@pytest.fixture
def command(tmp_path: Path, monkeypatch) -> list[str]:
    """`fedcore run` of a configuration whose clients are the few-numbers learner."""
    monkeypatch.setattr(simulation, "QLoRALearner", lambda *_: fake.FakeLearner())
    rows = [json.dumps({"text": f"number {i} follows {i - 1} as it ever did before"}) for i in range(40)]
    (tmp_path / "texts.jsonl").write_text("\n".join(rows))
    (tmp_path / "own.toml").write_text(CONFIG)
    return ["run", str(tmp_path / "own.toml"), "-o", str(tmp_path / "out")]


def faulty(*_):
    raise ValueError("\nExpected end of text\nfound '$'  (at char 1)")


def full(path, data):
    error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    raise refused(path, error) from error


def lost(monkeypatch, cause: str) -> None:
    """Let no report be made from here on."""
    if cause == "a bug":
        monkeypatch.setattr(plots, "data_by_client", faulty)
    elif cause == "a full disk":
        monkeypatch.setattr(html, "write_atomically", full)
    else:
        monkeypatch.setitem(sys.modules, "matplotlib", None)


@pytest.mark.parametrize(
    ("cause", "said"),
    [
        (
            "a bug",
            "{out}/report.html: cannot be made (ValueError: Expected end of text found '$' (at char 1)); the run is "
            "complete but for it: report this as a bug, with what is shown by: fedcore report {out}",
        ),
        (
            "a full disk",
            "{out}/report.html: cannot be written (No space left on device); the run is complete but for its report: "
            "put that right, then make it with: fedcore report {out}",
        ),
        (
            "no matplotlib",
            "the report's plots need matplotlib; install fedcore[train]; the run is complete but for its report: put "
            "that right, then make it with: fedcore report {out}",
        ),
    ],
)
def test_a_run_without_its_report_shows_its_table_and_one_line(command, tmp_path, capsys, monkeypatch, cause, said):
    with monkeypatch.context() as patched:
        lost(patched, cause)
        assert main(command) == 1
        shown = capsys.readouterr()
        assert "local-only" in shown.out
        assert "adapter  " in shown.out
        assert "report.html" not in shown.out
        faults = [line for line in shown.err.splitlines() if line.startswith("fedcore: ")]
        assert faults == ["fedcore: error: " + said.format(out=tmp_path / "out")]
        assert "Traceback" not in shown.err
    # the command that it names
    assert main(faults[0].rpartition(": fedcore ")[2].split()) == 0
    assert (tmp_path / "out/report.html").is_file()


def test_json_of_a_run_without_its_report_has_the_table(command, tmp_path, capsys, monkeypatch):
    lost(monkeypatch, "a bug")
    assert main([*command, "--json"]) == 1
    said = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in said["table"]] == ["base", "local-only", "only"]
    assert said["report"] is None


def test_the_report_again_shows_the_table_and_a_fault_of_ours_whole(command, tmp_path, capsys, monkeypatch):
    assert main(command) == 0
    capsys.readouterr()
    lost(monkeypatch, "a bug")
    with pytest.raises(ValueError, match="Expected end of text"):
        main(["report", str(tmp_path / "out")])
    assert "local-only" in capsys.readouterr().out
    lost(monkeypatch, "no matplotlib")
    assert main(["report", str(tmp_path / "out"), "--json"]) == 1
    shown = capsys.readouterr()
    assert len(json.loads(shown.out)["table"]) == 3
    assert shown.err == "fedcore: error: the report's plots need matplotlib; install fedcore[train]\n"


def test_ctrl_c_while_the_report_is_made_says_how_to_go_on(command, tmp_path, capsys, monkeypatch):
    def pressed(_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(plots, "data_by_client", pressed)
        assert main(command) == 130
    assert "keeps 1 finished rounds" in capsys.readouterr().err.splitlines()[-1]
    assert main([*command, "--resume"]) == 0
