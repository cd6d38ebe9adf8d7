"""Commands that are asked to end: one line, the exit code of the signal, and nothing half-written."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import fake_learner as fake
import pytest
from cli_adapters import five_adapters
from cli_runs import configured, refused

from fedcore.cli import main, signals
from fedcore.federation import simulation
from fedcore.federation.folder import RunFolder
from fedcore.privacy.secagg import roster_file
from fedcore.report import html
from fedcore.updates import Update, atomic

ENDS = [
    (signal.SIGINT, "interrupted", 130),
    (signal.SIGTERM, "interrupted by SIGTERM", 143),
    (signal.SIGHUP, "interrupted by SIGHUP", 129),
]


@pytest.fixture(autouse=True)
def usual():
    """Handlers as a shell's command has them, however the tests were started."""
    handlers = (signal.default_int_handler, signal.SIG_DFL, signal.SIG_DFL)
    before = [signal.signal(number, handler) for (number, _, _), handler in zip(ENDS, handlers, strict=True)]
    yield
    for (number, _, _), handler in zip(ENDS, before, strict=True):
        signal.signal(number, handler)


@pytest.fixture
def config(tmp_path: Path, monkeypatch) -> Path:
    return configured(tmp_path, monkeypatch)


def sent(number: int):
    """A function that sends this process the signal."""
    return lambda *_, **__: os.kill(os.getpid(), number)


class Stopping(fake.FakeLearner):
    """Gets a signal while the twelfth client update is trained."""

    def __init__(self, number: int):
        super().__init__()
        self.number = number

    def train(self, *arguments):
        if len(self.trained) == 12:
            os.kill(os.getpid(), self.number)
        return super().train(*arguments)


def test_every_command_says_that_it_was_interrupted(config, tmp_path, capsys, monkeypatch):
    adapters = five_adapters(tmp_path)
    assert main(["run", str(config), "-o", str(tmp_path / "run")]) == 0
    capsys.readouterr()
    monkeypatch.setattr(Update, "to_peft", sent(signal.SIGINT))
    monkeypatch.setattr(roster_file, "new_key", sent(signal.SIGINT))
    monkeypatch.setattr(html, "write_report", sent(signal.SIGINT))
    for command in (
        ["aggregate", *adapters, "-o", tmp_path / "out"],
        ["aggregate", *adapters, "-o", tmp_path / "out", "--method", "fedit", "--json"],
        ["keys", "new", tmp_path / "key"],
        ["report", tmp_path / "run"],
        ["report", tmp_path / "run", "--json"],
    ):
        assert refused(capsys, *command, code=130) == "fedcore: interrupted\n"


@pytest.mark.parametrize(("number", "said", "code"), ENDS[1:])
def test_a_run_that_is_told_to_end_says_what_it_kept_and_goes_on(
    config, tmp_path, capsys, monkeypatch, number, said, code
):
    monkeypatch.setattr(simulation, "QLoRALearner", lambda *_: Stopping(number))
    out = tmp_path / "out"
    line = refused(capsys, "run", config, "-o", out, code=code).splitlines()[-1]
    command = f"fedcore run {out}/config.toml --output {out} --resume"
    assert line.startswith(f"fedcore: {said}; {out} keeps 1 finished rounds (last: mean round 1) and 2 updates")
    assert line.endswith(f"go on with: {command}")
    assert not list(tmp_path.rglob("*.part"))


def test_a_second_one_while_it_reads_what_was_kept_still_says_how_to_go_on(config, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(signals, "TOGETHER", 0.0)
    monkeypatch.setattr(simulation, "QLoRALearner", lambda *_: Stopping(signal.SIGINT))
    monkeypatch.setattr(RunFolder, "kept", sent(signal.SIGINT))
    out = tmp_path / "out"
    line = refused(capsys, "run", config, "-o", out, code=130).splitlines()[-1]
    assert line == f"fedcore: interrupted; go on with: fedcore run {out}/config.toml --output {out} --resume"


@pytest.mark.parametrize("together", [3600.0, 0.0])
def test_a_second_one_amid_the_clean_up_leaves_nothing_half_written(tmp_path, capsys, monkeypatch, together):
    """Both that come with the first, as from a scheduler that sends two, and later ones, as from an impatient hand."""
    adapters, remove = five_adapters(tmp_path), shutil.rmtree
    seen = []

    def interrupted(path, **options):
        seen.append(list(Path(path).iterdir()))
        if len(seen) < 3:
            os.kill(os.getpid(), signal.SIGHUP)
        remove(path, **options)

    monkeypatch.setattr(signals, "TOGETHER", together)
    monkeypatch.setattr(atomic.shutil, "rmtree", interrupted)
    monkeypatch.setattr(atomic, "sync", sent(signal.SIGTERM))
    said, code = (("SIGTERM", 143), ("SIGHUP", 129))[together == 0]
    line = refused(capsys, "aggregate", *adapters, "-o", tmp_path / "out", code=code)
    assert line == f"fedcore: interrupted by {said}\n"
    assert seen[0]
    assert not list(tmp_path.rglob("*.part"))


def test_signals_that_are_ignored_or_handled_elsewhere_stay_so(tmp_path, capsys, monkeypatch):
    got = []
    new_key = roster_file.new_key

    def signalled(path):
        for number in (signal.SIGHUP, signal.SIGTERM):
            os.kill(os.getpid(), number)
        return new_key(path)

    monkeypatch.setattr(roster_file, "new_key", signalled)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, handler := lambda number, _: got.append(number))
    assert main(["keys", "new", str(tmp_path / "key")]) == 0
    assert got == [signal.SIGTERM]
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    assert signal.getsignal(signal.SIGTERM) is handler


def test_a_command_leaves_the_handlers_of_its_process(tmp_path, capsys):
    before = [signal.getsignal(number) for number, _, _ in ENDS]
    assert main(["keys", "new", str(tmp_path / "key")]) == 0
    # a signal's handler is set in the main thread alone
    codes = []
    thread = threading.Thread(target=lambda: codes.append(main(["keys", "new", str(tmp_path / "other")])))
    thread.start()
    thread.join()
    assert codes == [0]
    assert [signal.getsignal(number) for number, _, _ in ENDS] == before


def test_a_process_that_is_told_to_end_exits_with_the_signals_code(tmp_path):
    """As a service manager sees it."""
    fifo = tmp_path / "own.toml"
    os.mkfifo(fifo)
    process = subprocess.Popen(
        [sys.executable, "-m", "fedcore.cli", "run", str(fifo)], stderr=subprocess.PIPE, text=True, cwd=Path.cwd()
    )
    # opened by both: the command waits for the configuration from here on
    with fifo.open("w"):
        time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (143, "fedcore: interrupted by SIGTERM\n")
