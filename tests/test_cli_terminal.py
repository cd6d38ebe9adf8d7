"""What commands show where it cannot be shown: in another encoding, on a full disk, to a reader that went away."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cli_adapters import adapter
from cli_runs import configured

from fedcore.cli import main
from fedcore.cli.terminal import LiveProgress, lossy_stderr


def shown(arguments: list[object], encoding: str, folder: Path) -> bytes:
    """stdout of a command that ends well, in that encoding."""
    command = [sys.executable, "-m", "fedcore.cli", *map(os.fspath, arguments)]
    environment = os.environ | {"PYTHONIOENCODING": encoding, "PYTHONPATH": str(Path.cwd()), "COLUMNS": "300"}
    done = subprocess.run(command, capture_output=True, check=False, env=environment, cwd=folder)
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "utf-8:strict"])
def test_a_name_that_stdout_cannot_encode_is_shown_all_the_same(tmp_path, encoding):
    directories = [adapter(tmp_path, name) for name in ("α", "β")]
    json_to, table_to = tmp_path / "ε", tmp_path / os.fsdecode(b"o\xff")
    said = shown(["aggregate", *directories, "-o", json_to, "--json"], encoding, tmp_path)
    assert json.loads(said.decode("ascii"))["output"] == str(json_to)
    said = shown(["aggregate", *directories, "-o", table_to], encoding, tmp_path)
    assert rb"/o\udcff" in said


@pytest.mark.parametrize("how", [("--rule", "mean"), ("--method", "flora")])
def test_what_acts_on_a_terminal_is_shown_escaped(tmp_path, capsys, monkeypatch, how):
    monkeypatch.setenv("COLUMNS", "400")
    wipe = "\x1b[2J\r\x9b"
    directories = [adapter(tmp_path, f"{name}{wipe}") for name in ("a", "b")]
    assert main(["aggregate", *map(str, directories), "-o", str(tmp_path / f"out{wipe}"), *how]) == 0
    shown = capsys.readouterr().out
    assert all(f"{name}\\x1b[2J\\r\\x9b  " in shown for name in ("a", "b", "out"))
    assert not set("\x1b\r\x9b") & set(shown)
    assert main(["aggregate", str(tmp_path / f"none{wipe}"), "-o", str(tmp_path / "next"), *how]) == 1
    failed = capsys.readouterr().err
    assert (failed.count("\n"), set("\x1b\r\x9b") & set(failed)) == (1, set())


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("to", ["a full disk", "nobody"])
def test_a_run_goes_on_where_its_progress_cannot_be_shown(tmp_path, capfd, monkeypatch, to, terminal):
    config = configured(tmp_path, monkeypatch)
    monkeypatch.setattr("fedcore.report.html.write_report", lambda folder: folder.path / "report.html")
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
    number = os.open("/dev/full", os.O_WRONLY)
    if to == "nobody":
        os.close(number)
        reader, number = os.pipe()
        os.close(reader)
    stream = os.fdopen(number, "w", buffering=1)
    monkeypatch.setattr(sys, "stderr", stream)
    assert main(["run", str(config), "-o", str(tmp_path / "out"), "--json"]) == 0
    assert len(json.loads(capfd.readouterr().out)["table"]) == 4
    assert (tmp_path / "out" / "adapter").is_dir()
    # at the exit nothing is left to be written
    stream.close()


def test_an_error_that_cannot_be_shown_keeps_its_exit_code(tmp_path):
    for to in ("/dev/full", "&-"):
        command = f"{sys.executable} -m fedcore.cli report --nosuch {tmp_path} 2>{to}"
        done = subprocess.run(["sh", "-c", command], capture_output=True, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (2, b"", b"")


def test_what_stderr_takes_again_is_shown(monkeypatch):
    class Sometimes(io.StringIO):
        full = True

        def write(self, text: str) -> int:
            if self.full:
                raise OSError(28, "No space left on device")
            return super().write(text)

    stream = Sometimes()
    monkeypatch.setattr(sys, "stderr", stream)
    with lossy_stderr(), LiveProgress() as progress:
        progress("first", 1, 1)
        stream.full = False
        progress("second", 1, 1)
    assert stream.getvalue() == "second: done\n"
    assert sys.stderr is stream


def test_a_process_that_calls_main_keeps_its_streams(monkeypatch):
    class Log:
        """As little of a file as an embedding process may put in the place of stderr."""

        def __init__(self):
            self.said = ""

        def write(self, text):
            self.said += text

        def flush(self):
            pass

    out, log = io.TextIOWrapper(io.BytesIO(), "ascii", errors="strict"), Log()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", log)
    assert main(["aggregate", "nowhere", "-o", "out"]) == 1
    assert log.said.count("\n") == 1
    assert out.errors == "strict"
    out.close()
    assert main(["aggregate", "nowhere", "-o", "out"]) == 1
