"""A server optimiser after the mean of a frozen A's method: after the noise, with masks, and as it is."""

from __future__ import annotations

import fake_learner as fake
import numpy as np
import pytest
from private_runs import SMALL, B, Interrupting, config, run

from fedcore.errors import ConfigError
from fedcore.federation.config_file import parse_config
from fedcore.federation.simulation import run_arms

A = f"{fake.MODULE}.lora_A.weight"
MOMENTUM = 'server = { optimizer = "fedavgm", momentum = 0.5, learning_rate = 0.75 }\n'
RUN = '[run]\nseed = 5\nrounds = 3\n[model]\nsource = "fake"\n[partition]\nclients = 3\n'
OPEN = RUN + '[aggregation]\nmethod = "ffa_lora"\n'


def moved_by_momentum(folder, arm):
    """Check m ← 0.5 m + Δ, x ← x + 0.75 m over the rounds; gives what each round's mean was, made again from its Δ."""
    means, before, m = [], None, 0.0
    for entry in folder.ledger.entries:
        state = folder.rounds.load_state(arm, entry["round"], entry["optimizer"]["state"])
        reached = folder.rounds.load_global(arm, entry["round"], entry["output"])
        if before is None:
            before = reached.with_tensors({B: np.float32(reached.tensors[B] - 0.75 * state.moments["m"][B])})
        assert entry["reference"] == before.digest() or entry["round"] == 1
        change = state.moments["m"][B] - 0.5 * m
        means.append(np.float32(before.tensors[B] + change))
        m = state.moments["m"][B]
        assert np.array_equal(reached.tensors[B], np.float32(before.tensors[B] + 0.75 * m))
        assert np.array_equal(reached.tensors[A], before.tensors[A])
        assert not state.moments["m"][A].any()
        before = reached
    return means


@pytest.mark.parametrize("mode", ["central", "local", "distributed"])
def test_a_private_mean_is_moved_on_after_its_noise(tmp_path, mode):
    pytest.importorskip("dp_accounting", reason="budgets need dp-accounting, of the extra `train`")
    settings = config(SMALL + f'mode = "{mode}"\n', rounds=3, arms=f'[[arms]]\nname = "one"\n{MOMENTUM}')
    path = tmp_path / "run"
    if mode == "central":  # goes on with the moments that it had
        with pytest.raises(KeyboardInterrupt):
            run(path, settings, learner=Interrupting(after=12))
    folder = run(path, settings, resume=path.exists())
    means = moved_by_momentum(folder, "one")
    for entry, mean in zip(folder.ledger.entries, means, strict=True):
        reached = folder.rounds.load_global("one", entry["round"], entry["output"])
        released = reached.with_tensors({B: mean}, client_id="", num_examples=1)
        assert released.digest() == entry["privacy"]["output"]  # what the noise is in is what was released
        assert entry["privacy"]["output"] != entry["output"]


@pytest.mark.parametrize("secure", ["", "secure = true\n"])
def test_a_mean_of_open_or_masked_messages_is_moved_on(tmp_path, secure):
    text = OPEN + f'[[arms]]\nname = "one"\n{secure}{MOMENTUM}'
    folder = run_arms(parse_config(text, "c.toml"), fake.texts(3), fake.FakeLearner(), tmp_path / "run", resume=False)
    assert len(moved_by_momentum(folder, "one")) == 3


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"method": "rolora"}, "rolora: got server optimizer 'fedavgm', and the method says itself"),
        ({"method": "fedsb"}, "or choose ffa_lora"),
        ({"privacy": SMALL + 'mode = "correlated"\nseparation = 2\n'}, "steps of an optimizer are none"),
    ],
)
def test_what_has_no_steps_of_an_optimizer_is_refused(change, said):
    with pytest.raises(ConfigError) as caught:
        config(**{"arms": f'[[arms]]\nname = "one"\n{MOMENTUM}'} | change)
    assert said in str(caught.value)
