"""`fedcore run`, `demo`, `report`: results, one-line errors, interruption, resumption, a real run on a tiny model."""

from __future__ import annotations

import errno
import importlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import fake_learner as fake
import numpy as np
import pytest

from fedcore.cli import main
from fedcore.cli.run import carry_out
from fedcore.errors import TrainingError
from fedcore.federation import simulation
from fedcore.lora import METHODS
from fedcore.updates import Update

demo_command = importlib.import_module("fedcore.cli.demo")
ROWS = [
    {"text": f"number {i} is {'even' if i % 2 == 0 else 'odd'} and follows {i - 1} as ever", "kind": i % 2}
    for i in range(120)
]
CONFIG = """
[run]
seed = 1
rounds = 2
[model]
source = "fake"
[data]
source = "texts.jsonl"
questions = 4
[partition]
clients = 5
[[arms]]
name = "mean"
[[arms]]
name = "krum"
rule = "krum"
parameters = { f = 1 }
attack = { clients = 1, scale = 5.0 }
"""


@pytest.fixture
def config(tmp_path: Path, monkeypatch) -> Path:
    """A configuration whose clients are the few-numbers learner."""
    monkeypatch.setattr(simulation, "QLoRALearner", lambda *_: fake.FakeLearner())
    (tmp_path / "texts.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    path = tmp_path / "own.toml"
    path.write_text(CONFIG)
    return path


def refused(capsys, *arguments: object, code: int = 1) -> str:
    """The lines of a refusal on stderr, each with its prefix; stdout is empty."""
    assert main([str(argument) for argument in arguments]) == code
    shown = capsys.readouterr()
    assert shown.out == ""
    lines = shown.err.splitlines()
    assert all(line.startswith("fedcore: ") for line in lines[-1:])
    assert "Traceback" not in shown.err
    return shown.err


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
    assert "[[arms]]" in capsys.readouterr().out
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


TINY = """
[run]
rounds = 2
[model.pretrain]
vocabulary = 300
hidden = 64
layers = 1
heads = 2
intermediate = 64
silos = 2
rounds = 1
local_steps = 2
batch_size = 4
sequence_length = 16
[data]
source = "texts.jsonl"
held_out = 0.1
questions = 4
[partition]
clients = 3
[adapter]
rank = 2
[training]
steps = 2
batch_size = 4
sequence_length = 16
[[arms]]
name = "only"
"""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """(environment, command) of a real run in a process of its own: NF4 base, LoRA adapters, two rounds."""
    pytest.importorskip("bitsandbytes", reason="the real clients need fedcore[train]")
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "texts.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    (folder / "tiny.toml").write_text(TINY)
    environment = os.environ | {
        "FEDCORE_CACHE": str(folder / "cache"),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }

    def command(output: str, *options: str) -> list[str]:
        return [
            sys.executable,
            "-m",
            "fedcore.cli",
            "run",
            str(folder / "tiny.toml"),
            "-o",
            str(folder / output),
            *options,
        ]

    done = subprocess.run(command("whole", "--json"), env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder, environment, command, done


def test_a_real_run_gives_an_adapter_that_peft_loads_on_the_nf4_base(tiny):
    folder, _, _, done = tiny
    said = json.loads(done.stdout)
    assert [row["name"] for row in said["table"]] == ["base", "local-only", "only"]
    from peft import PeftModel

    from fedcore.clients.base import load_base

    facts = json.loads((folder / "whole/run.json").read_text())
    base = load_base(facts["base_source"])
    assert base.digest == facts["base"]
    model = PeftModel.from_pretrained(base.model, said["adapter"])
    loaded = {
        name.replace(".default", ""): parameter.detach().numpy()
        for name, parameter in model.named_parameters()
        if "lora_" in name
    }
    update = Update.from_peft(said["adapter"])
    assert loaded.keys() == update.tensors.keys()
    assert all(np.array_equal(loaded[name], tensor) for name, tensor in update.tensors.items())
    assert any(np.any(tensor) for name, tensor in loaded.items() if "lora_B" in name)


def hear_ctrl_c():
    """Before a run begins: what a shell starts in the background ignores Ctrl+C, and so would all that it starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_a_real_run_survives_ctrl_c_in_mid_round(tiny):
    folder, environment, command, _ = tiny
    output = folder / "stopped"
    # at the lowest priority, so that on a busy machine this test sees the first file before the run is over
    process = subprocess.Popen(
        ["nice", "-n", "19", *command("stopped")],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=hear_ctrl_c,
    )
    deadline = time.monotonic() + 120
    while not list(output.glob("updates/only/round-001/*.safetensors")) and time.monotonic() < deadline:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert errors.splitlines()[-1].startswith("fedcore: interrupted; ")
    assert "Traceback" not in errors
    assert not list(output.rglob("*.part"))
    resumed = subprocess.run(
        command("stopped", "--resume"), env=environment, capture_output=True, text=True, check=False
    )
    assert resumed.returncode == 0, resumed.stderr
    for name in ("ledger.jsonl", "adapter/adapter_model.safetensors"):
        assert (output / name).read_bytes() == (folder / "whole" / name).read_bytes()
