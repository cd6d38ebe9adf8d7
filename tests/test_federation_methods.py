"""LoRA methods in a run: what clients train and start from, what is kept for a resumption, what is refused."""

from __future__ import annotations

import fake_learner as fake
import numpy as np
import pytest

from fedcore.errors import ConfigError
from fedcore.federation.config_file import parse_config
from fedcore.federation.simulation import run_arms
from fedcore.lora import METHODS
from fedcore.updates import Update
from tests.oracles import delta as dense

IN_A_RUN = [name for name in METHODS if name != "fedsb"]
BASE = '[run]\nseed = 5\nrounds = 3\n[model]\nsource = "fake"\n[partition]\nclients = 3\n'


def text(*arms, **sections):
    more = "".join(f"[{name}]\n{body}\n" for name, body in sections.items())
    return BASE + more + "".join(f'[[arms]]\nname = "{name}"\n{body}\n' for name, body in arms)


def messages(folder, arm, number):
    receipts = folder.journal.received(arm, number)
    return [Update.from_bytes(receipt.open()) for receipt in receipts.values()]


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    config = parse_config(text(*((name, f'method = "{name}"') for name in IN_A_RUN)), "c.toml")
    learner = fake.FakeLearner()
    path = tmp_path_factory.mktemp("methods") / "run"
    return config, learner, run_arms(config, fake.texts(3), learner, path, resume=False)


@pytest.mark.parametrize("name", IN_A_RUN)
def test_a_round_is_the_method_on_its_messages(everything, name):
    _, _, folder = everything
    method, side = METHODS[name](), None
    start = fake.FakeLearner().initial()
    for number in (1, 2, 3):
        entry = folder.ledger.find(arm=name, round=number)
        updates = messages(folder, name, number)
        result = method.aggregate(updates, reference=start, side=side, number=number)
        assert entry["output"] == result.update.digest()
        assert entry["side"] == (result.side and result.side.digest())
        assert entry["reference"] == start.digest()
        metrics = folder.metrics.find(arm=name, round=number)
        assert metrics["bytes_up"] == sum(client["up"] for client in result.report["bytes"].values())
        for update in updates:
            for pair in update.modules.values():
                for factor, tensor in (("a", pair.a), ("b", pair.b)):
                    if factor not in method.trains(number):
                        assert np.array_equal(update.tensors[tensor], start.tensors[tensor])
        start, side = result.update, result.side
    assert Update.from_peft(folder.path / "arms" / name / "adapter").digest() == start.digest()
    if side is not None:
        assert Update.from_peft(folder.path / "arms" / name / "side" / "adapter").digest() == side.digest()


def test_clients_are_told_what_trains_and_what_lies_beside(everything):
    config, learner, folder = everything
    # after the rows that train alone: 3 rounds of 3 clients for each arm
    told = learner.options[3:]
    arms = [arm.name for arm in config.arms]
    for arm in ("rolora", "flora"):
        calls = told[9 * arms.index(arm) : 9 * arms.index(arm) + 9 : 3]
        assert [call["trains"] for call in calls] == [METHODS[arm]().trains(number) for number in (1, 2, 3)]
        before = [None, *(folder.ledger.find(arm=arm, round=number)["side"] for number in (1, 2))]
        assert [call["side"] and call["side"].digest() for call in calls] == before


def test_a_client_keeps_its_own_b_under_fedsa(everything):
    _, _, folder = everything
    b = f"{fake.MODULE}.lora_B.weight"
    last = folder.load_global("fedsa_lora", 3, folder.ledger.find(arm="fedsa_lora", round=3)["output"])
    assert not last.tensors[b].any()
    goals = [1 + 0.01 * i for i in range(3)]
    for number in (2, 3):
        for before, after, goal in zip(
            messages(folder, "fedsa_lora", number - 1), messages(folder, "fedsa_lora", number), goals, strict=True
        ):
            # the learner moves B three tenths of the way from where the client stood, with noise of 0.05
            expected = before.tensors[b] + 0.3 * (goal - before.tensors[b])
            assert np.abs(after.tensors[b] - expected).max() < 0.25


def test_a_killed_run_goes_on_with_the_same_sides(everything, tmp_path, monkeypatch):
    config = parse_config(text(("flora", 'method = "flora"'), ("fedsa_lora", 'method = "fedsa_lora"')), "c.toml")

    class Killed(Exception):
        pass

    class Dying(fake.FakeLearner):
        def train(self, *arguments, **options):
            if len(self.trained) == 3 + 9 + 5:
                raise Killed
            return super().train(*arguments, **options)

    whole = run_arms(config, fake.texts(3), fake.FakeLearner(), tmp_path / "whole", resume=False)
    with pytest.raises(Killed):
        run_arms(config, fake.texts(3), Dying(), tmp_path / "killed", resume=False)
    again = run_arms(config, fake.texts(3), fake.FakeLearner(), tmp_path / "killed", resume=True)
    assert again.ledger.entries == whole.ledger.entries
    side = folder_side(again)
    assert dense.dense(side, fake.MODULE).any()


def folder_side(folder):
    return Update.from_peft(folder.path / "side" / "adapter")


def test_the_parameters_of_rules_are_checked_by_their_types_too():
    with pytest.raises(ConfigError, match="krum: parameter 'f': got '1', expected a whole number"):
        parse_config(text(("m", 'rule = "krum"\nparameters = { f = "1" }')), "c.toml")


def test_an_arm_with_its_own_method_has_nothing_of_the_settings_of_rules():
    settings = {"aggregation": 'rule = "centered_clipping"\nparameters = { radius = 1.0 }\nspace = "parameters"\n'}
    settings["aggregation"] += 'center = "moved_on"'
    config = parse_config(text(("m", 'method = "flora"'), ("rule", ""), **settings), "c.toml")
    assert config.aggregation_of(config.arms[0]).space == "delta"
    assert config.aggregation_of(config.arms[1]).center == "moved_on"


@pytest.mark.parametrize(
    ("body", "sections", "said"),
    [
        ('method = "flexlor"', {}, "did you mean 'flexlora'?"),
        ('method = "flexlora"\nparameters = { f = 2 }', {}, "flexlora: parameter 'f' is not known"),
        ('method = "flexlora"\nrule = "krum"', {}, "rule 'krum' chooses otherwise"),
        ('method = "fedit"\nserver = { optimizer = "fedadam" }', {}, "server optimizer 'fedadam'"),
        ('method = "fedsb"', {}, "no factors to train a core between"),
        ('method = "ffa_lora"\nattack = { clients = 1 }', {}, "factors that are frozen or stay local"),
        ('method = "fedit"', {"message": 'format = "int8"'}, 'message.format = "int8"'),
        ('method = "fedit"', {"aggregation": 'on_nonfinite = "exclude"'}, "methods count every client"),
        ('method = "fedit"\nattack = { clients = 99 }', {}, "attack.clients: got 99 of 3 clients"),
        ('method = "fedit"\nattack = { kind = "inf" }', {}, 'attack.kind: got "inf"'),
        ('method = "fedsa_lora"\nattack = { clients = 1 }', {}, "factors that are frozen or stay local"),
        ('method = "fedit"\nspace = "parameters"', {}, 'space = "parameters"'),
        ("", {"aggregation": 'method = "fedit"\nspace = "parameters"'}, 'space = "parameters"'),
        ("", {"aggregation": 'method = "fedit"\ncenter = "moved_on"'}, 'center = "moved_on"'),
        ('method = "flexlora"\nparameters = { rank = true }', {}, "parameter 'rank': got True"),
        ('method = "flexlora"\nparameters = { error_feedback = "no" }', {}, "'error_feedback': got 'no'"),
    ],
)
def test_what_does_not_go_together_is_one_line_of_the_file(body, sections, said):
    with pytest.raises(ConfigError) as error:
        parse_config(text(("m", body), **sections), "c.toml")
    assert said in str(error.value)
    assert str(error.value).startswith("c.toml: arms[0]")
    assert "\n" not in str(error.value)
