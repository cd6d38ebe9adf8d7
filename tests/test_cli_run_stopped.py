"""`fedcore run` stopped by Ctrl+C, a failure or a full disk: one line on what is kept and the command that goes on."""

from __future__ import annotations

import errno
import io
import os
import sys
from pathlib import Path

import fake_learner as fake
import pytest
from cli_runs import configured, refused

from fedcore.cli import main
from fedcore.errors import TrainingError
from fedcore.federation import simulation


@pytest.fixture
def config(tmp_path: Path, monkeypatch) -> Path:
    return configured(tmp_path, monkeypatch)


class Stopping(fake.FakeLearner):
    """Ctrl+C while the twelfth client update is trained."""

    def train(self, *arguments):
        if len(self.trained) == 12:
            raise KeyboardInterrupt
        return super().train(*arguments)


def test_ctrl_c_says_what_was_kept_and_the_command_goes_on(config, tmp_path, capsys, monkeypatch):
    assert main(["run", str(config), "-o", str(tmp_path / "whole")]) == 0
    monkeypatch.setattr(simulation, "QLoRALearner", lambda *_: Stopping())
    out = tmp_path / "out"
    capsys.readouterr()
    line = refused(capsys, "run", config, "-o", out, code=130).splitlines()[-1]
    command = f"fedcore run {out}/config.toml --output {out} --resume"
    assert line == (
        f"fedcore: interrupted; {out} keeps 1 finished rounds (last: mean round 1) and 2 updates of mean round 2; "
        f"go on with: {command}"
    )
    monkeypatch.setattr(simulation, "QLoRALearner", lambda *_: fake.FakeLearner())
    assert main(command.split()[1:]) == 0
    for name in ("ledger.jsonl", "adapter/adapter_model.safetensors"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_ctrl_c_before_the_first_round_leaves_a_folder_that_goes_on(config, tmp_path, capsys, monkeypatch):
    class Early(fake.FakeLearner):
        def train(self, *arguments):
            if len(self.trained) == 2:
                raise KeyboardInterrupt
            return super().train(*arguments)

    monkeypatch.setattr(simulation, "QLoRALearner", lambda *_: Early())
    out = tmp_path / "out"
    assert "keeps 0 finished rounds; go on with" in refused(capsys, "run", config, "-o", out, code=130)
    assert not (out / "ledger.jsonl").exists()
    assert "to go on with it use --resume" in refused(capsys, "run", config, "-o", out)
    monkeypatch.setattr(simulation, "QLoRALearner", lambda *_: fake.FakeLearner())
    # no --output: the configuration inside a run folder belongs to that run
    assert main(["run", str(out / "config.toml"), "--resume"]) == 0
    assert (out / "report.html").is_file()


def test_a_failed_run_says_how_to_go_on(config, tmp_path, capsys, monkeypatch):
    class Failing(fake.FakeLearner):
        def train(self, *arguments):
            if len(self.trained) == 12:
                raise TrainingError("client c: the loss of step 3 is nan")
            return super().train(*arguments)

    monkeypatch.setattr(simulation, "QLoRALearner", lambda *_: Failing())
    said = refused(capsys, "run", config, "-o", tmp_path / "out").splitlines()[-2:]
    assert said[0] == "fedcore: error: client c: the loss of step 3 is nan"
    assert said[1].startswith("fedcore: stopped; ")
    assert said[1].endswith(f"--output {tmp_path / 'out'} --resume")


@pytest.mark.parametrize(
    ("number", "reason", "first"),
    [(errno.ENOSPC, "No space left on device", "free space"), (errno.EROFS, "Read-only file system", "put that right")],
)
def test_a_disk_that_is_full_in_mid_run_is_one_line_and_the_run_goes_on(
    config, tmp_path, capsys, monkeypatch, number, reason, first
):
    write = os.fsync
    files = 0

    def full(descriptor):
        nonlocal files
        files += 1
        if files > 60:
            raise OSError(number, os.strerror(number))
        write(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    out = tmp_path / "out"
    said = [line for line in refused(capsys, "run", config, "-o", out).splitlines() if line.startswith("fedcore")]
    assert len(said) == 1
    assert said[0].startswith(f"fedcore: error: {out}/")
    file, _, rest = said[0].removeprefix("fedcore: error: ").partition(": ")
    assert Path(file).parent.is_dir()
    command = f"fedcore run {out}/config.toml --output {out} --resume"
    assert rest.startswith(f"cannot be written ({reason}); {out} keeps ")
    assert rest.endswith(f"; {first}, then go on with: {command}")
    monkeypatch.setattr(os, "fsync", write)
    assert main(command.split()[1:]) == 0
    assert not list(out.rglob("*.part"))


@pytest.mark.parametrize(
    ("error", "said", "first"),
    [
        (OSError("got end of file during message"), "system: got end of file during message", ""),
        (OSError(errno.EIO, "Input/output error", "/data/a"), "/data/a: Input/output error", ""),
        (MemoryError("Unable to allocate 9. MiB"), "memory ran out (Unable to allocate 9. MiB)", "free some, then "),
        (MemoryError(), "memory ran out", "free some, then "),
    ],
)
def test_what_the_system_refuses_in_mid_run_is_one_line_beside_how_to_go_on(
    config, tmp_path, capsys, monkeypatch, error, said, first
):
    class Failing(fake.FakeLearner):
        def train(self, *arguments):
            raise error

    monkeypatch.setattr(simulation, "QLoRALearner", lambda *_: Failing())
    out = tmp_path / "out"
    lines = [line for line in refused(capsys, "run", config, "-o", out).splitlines() if line.startswith("fedcore")]
    assert lines == [
        f"fedcore: error: {said}",
        f"fedcore: stopped; {out} keeps 0 finished rounds; {first}go on with: fedcore run {out}/config.toml "
        f"--output {out} --resume",
    ]


def test_what_the_system_refuses_before_a_run_has_begun_is_one_line(config, tmp_path, capsys, monkeypatch):
    def failing(*_):
        raise OSError(errno.EIO, "Input/output error", "/data/a")

    monkeypatch.setattr(simulation, "QLoRALearner", failing)
    said = refused(capsys, "run", config, "-o", tmp_path / "out").splitlines()[-1]
    assert said == "fedcore: error: /data/a: Input/output error"


def test_a_report_that_memory_is_short_for_is_no_fault_of_the_program(config, tmp_path, capsys, monkeypatch):
    def failing(_):
        raise MemoryError

    monkeypatch.setattr("fedcore.report.html.write_report", failing)
    out = tmp_path / "out"
    assert main(["run", str(config), "-o", str(out)]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == (
        "fedcore: error: memory ran out; the run is complete but for its report: put that right, then make it with: "
        f"fedcore report {out}"
    )


def test_a_table_that_cannot_be_shown_is_said_to_be_kept(config, tmp_path, capsys, monkeypatch):
    class Full(io.StringIO):
        def flush(self):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(sys, "stdout", Full())
    out = tmp_path / "out"
    for command, done in (
        (("run", config, "-o", out), f"{out} is complete, and shown by: fedcore report {out}"),
        (("report", out), f"{out}/report.html is complete"),
        (("run", "--keys"), "free space or send it to another place"),
    ):
        assert main([str(argument) for argument in command]) == 1
        line = capsys.readouterr().err.splitlines()[-1]
        assert line == f"fedcore: error: standard output cannot be written (No space left on device); {done}"
