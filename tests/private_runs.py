"""Private runs of the fake learner: their configuration, their budget, and how they die."""

from __future__ import annotations

import os
import signal

import fake_learner as fake
import pytest

import fedcore as fc
from fedcore.federation.config_file import load_config, parse_config
from fedcore.federation.folder import RunFolder
from fedcore.federation.journal import LineLog
from fedcore.federation.messages import client_seed
from fedcore.federation.private_run import PrivateRun, read_plan
from fedcore.federation.simulation import run_arms

B = f"{fake.MODULE}.lora_B.weight"
SMALL = "epsilon = 20\ndelta = 1e-5\n"


def config(
    privacy=SMALL, method="ffa_lora", rounds=2, aggregation="", model='source = "fake"', arms='[[arms]]\nname = "one"\n'
):
    return parse_config(
        f"[run]\nseed = 5\nrounds = {rounds}\n[model]\n{model}\n[partition]\nclients = 5\n"
        f'[aggregation]\nmethod = "{method}"\n{aggregation}[privacy]\n{privacy}{arms}',
        "c.toml",
    )


def run(path, settings=None, *, resume=False, learner=None):
    return run_arms(settings or config(), fake.texts(), learner or fake.FakeLearner(), path, resume=resume)


def budget(path, **changed):
    plan = read_plan(path)
    settings = {
        "epsilon": plan.epsilon,
        "delta": plan.delta,
        "noise_multiplier": plan.charged,
        "dimension": plan.samples,
        "sampling": "none",
        "neighbours": plan.neighbours,
        "population": 5,
        "sealing_key": (path / "private/budget.sealing-key").read_bytes(),
    }
    return fc.privacy.Budget(path / "private/budget", **settings | changed)


def private_run(folder):
    """What a run that is over had beside the federation."""
    settings = load_config(folder.path / "config.toml").privacy
    secret = folder.private.secret((folder.path / "private/budget.sealing-key").read_bytes())
    return PrivateRun(settings, read_plan(folder.path), budget(folder.path), secret, folder)


def updates(path, number, start):
    """The clients' adapters of a round: the start with the B that they sent."""
    found = []
    for client, receipt in RunFolder.read(path).journal.received("one", number).items():
        sent = fc.Update.from_bytes(receipt.open()).tensors[f"{fake.MODULE}.b"]
        found.append(
            fc.Update.from_tensors(dict(start.tensors) | {B: sent}, client_id=client, scaling=start.scaling)
        )  # fmt: skip
    return found


def dies(path, module, name, call, settings=None):
    """Run in a child process that dies by SIGKILL after the given call of a function."""
    child = os.fork()
    if child == 0:
        real, calls = getattr(module, name), 0

        def killing(*arguments, **options):
            nonlocal calls
            calls += 1
            if module is LineLog and calls == call:
                os.kill(os.getpid(), signal.SIGKILL)
            result = real(*arguments, **options)
            if calls == call:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        setattr(module, name, killing)
        run(path, settings, resume=path.exists())
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL


class Interrupting(fake.FakeLearner):
    """Does something before the given training, and stops there if it returns nothing."""

    def __init__(self, after, action=None):
        super().__init__()
        self.after, self.action = after, action

    def train(self, *arguments, **options):
        if len(self.trained) == self.after:
            if self.action is None:
                raise KeyboardInterrupt
            self.action()
        return super().train(*arguments, **options)


def interrupted(path):
    with pytest.raises(KeyboardInterrupt):
        run(path, config(rounds=3), learner=Interrupting(after=10))
    return path


def fake_seed(client):
    """Of a client's first round."""
    return client_seed(config(), 1, client)
