"""`fedcore run` in a process of its own on a tiny model: an adapter that PEFT loads, and Ctrl+C in mid round."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from cli_runs import ROWS

from fedcore.updates import Update

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
