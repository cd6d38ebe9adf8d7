"""Rounds of more clients than a process may have files open: rules, methods, attacks, privacy, each resumed as well."""

from __future__ import annotations

import errno
import mmap
import os
import subprocess
import sys
from pathlib import Path

import fake_learner as fake
import pytest

from fedcore.errors import StorageError
from fedcore.federation.folder import RunFolder
from fedcore.federation.journal import Journal
from fedcore.federation.simulation import run_arms

LIMIT, CLIENTS = 40, 48
HEAD = f'[run]\nseed = 5\nrounds = 2\n[model]\nsource = "fake"\n[partition]\nclients = {CLIENTS}\n'
KRUM = 'rule = "krum"\nparameters = { f = 8 }\n'
RUNS = {
    "median": HEAD + '[[arms]]\nname = "a"\nrule = "median"\n',
    "attack": HEAD + f'[[arms]]\nname = "a"\nspace = "parameters"\n{KRUM}attack = {{ kind = "alie", clients = 8 }}\n',
    "int8": HEAD + '[message]\nformat = "int8"\n[[arms]]\nname = "a"\n',
    "fedit": HEAD + '[[arms]]\nname = "a"\nmethod = "fedit"\n',
    "fedsa_lora": HEAD + '[[arms]]\nname = "a"\nmethod = "fedsa_lora"\n',
    "central": HEAD + '[aggregation]\nmethod = "fedit"\n[privacy]\nepsilon = 20\ndelta = 1e-5\nboth_factors = true\n'
    '[[arms]]\nname = "a"\n',
}  # fmt: skip
CHILD = """
import resource, sys
from pathlib import Path
import fake_learner as fake
from fedcore.federation.simulation import run_arms
from test_federation_descriptors import CLIENTS, LIMIT, RUNS

name, folder = sys.argv[1], Path(sys.argv[2])
config, texts = fake.config(RUNS[name]), fake.texts(CLIENTS)


class Stopping(fake.FakeLearner):
    def train(self, adapter, client, *given, **options):
        # the last client of the last round
        if self.trained.count(client.id) == (1 if name == "central" else 2) and client.id == f"client-{CLIENTS - 1}":
            raise KeyboardInterrupt
        return super().train(adapter, client, *given, **options)


resource.setrlimit(resource.RLIMIT_NOFILE, (LIMIT, LIMIT))
run_arms(config, texts, fake.FakeLearner(), folder / "whole", resume=False)
try:
    run_arms(config, texts, Stopping(), folder / "cut", resume=False)
except KeyboardInterrupt:
    run_arms(config, texts, fake.FakeLearner(), folder / "cut", resume=True)
    print("resumed")
"""


def kept(folder: Path) -> dict[str, bytes]:
    """What does not differ from run to run: the ledger, the adapters, the messages."""
    parts = [folder / "ledger.jsonl", *(p for part in ("arms", "updates") for p in (folder / part).rglob("*.*"))]
    return {str(path.relative_to(folder)): path.read_bytes() for path in parts if path.is_file()}


@pytest.mark.parametrize("name", RUNS)
def test_more_clients_than_open_files(tmp_path: Path, name: str):
    here = Path(__file__).parent
    ran = subprocess.run(
        [sys.executable, "-B", "-c", CHILD, name, str(tmp_path)],
        capture_output=True, text=True, env={"PYTHONPATH": f"{here.parent}:{here}"}, check=False,
    )  # fmt: skip
    assert (ran.stdout, ran.returncode) == ("resumed\n", 0), ran.stderr[-2000:]
    for folder in (tmp_path / "whole", tmp_path / "cut"):
        assert len(RunFolder.read(folder).ledger.entries) == 2
    if name == "central":  # no two draws of its noise are alike
        return
    free = run_arms(
        fake.config(RUNS[name]), fake.texts(CLIENTS), fake.FakeLearner(), tmp_path / "free", resume=False
    ).path
    assert kept(tmp_path / "whole") == kept(tmp_path / "cut") == kept(free)


def test_a_message_that_cannot_be_opened_is_one_line(tmp_path: Path, monkeypatch):
    receipt = Journal(tmp_path).receive("a", 1, "c", b"bytes")

    def refuse(*_given, **_named):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    for module, name in ((mmap, "mmap"), (os, "open")):
        with monkeypatch.context() as patched:
            patched.setattr(module, name, refuse)
            with pytest.raises(
                StorageError, match=r"c\..*\.safetensors: cannot be .* \(Too many .*\); raise `ulimit -n`"
            ):
                receipt.open()
