"""Attacks in a run: poisoned clients send what the attack makes of the honest messages, also after a resumption."""

from __future__ import annotations

from pathlib import Path

import fake_learner as fake
import numpy as np
import pytest
from fake_runs import Stopping, result, simulate

from fedcore.attacks import ALIE, ATTACKS, IPM, Gaussian, MinMax
from fedcore.errors import ConfigError
from fedcore.federation.config_file import check_clients, parse_config
from fedcore.federation.folder import RunFolder
from fedcore.federation.messages import client_seed
from fedcore.updates import Update

HEAD = fake.CONFIG[: fake.CONFIG.index("[[arms]]")] + 'space = "parameters"\n'
RUN = HEAD + "".join(
    f'[[arms]]\nname = "{kind}"\nattack = {{ kind = "{kind}", clients = 2{more} }}\n'
    for kind, more in {
        "alie": ", z = 1.5",
        "ipm": ", epsilon = 2.0",
        "mimic": ", row = 1",
        "gaussian": ", sigma = 0.5",
        "min_max": ', perturbation = "unit"',
        "min_sum": "",
    }.items()
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("attacks") / "run"
    simulate(folder, config=fake.config(RUN))
    return folder


def sent(folder: Path, arm: str, number: int) -> list[Update]:
    place = folder / "updates" / arm / f"round-{number:03d}"
    return [Update.from_bytes(path.read_bytes()) for path in sorted(place.glob("*.safetensors"))]


def change(update: Update, start: Update) -> np.ndarray:
    return np.concatenate(
        [(update.tensors[n].astype(np.float64) - start.tensors[n].astype(np.float64)).ravel() for n in start.tensors]
    )


@pytest.mark.parametrize(
    ("arm", "attack"),
    [("alie", ALIE(z=1.5)), ("ipm", IPM(2.0)), ("gaussian", Gaussian(0.5)), ("min_max", MinMax("unit"))],
)
def test_the_journal_holds_what_the_attack_makes_of_the_honest_messages(whole, arm, attack):
    start = fake.FakeLearner().initial()
    for entry in RunFolder.read(whole).ledger.entries:
        if entry["arm"] != arm:
            continue
        number = entry["round"]
        messages = sent(whole, arm, number)
        rows = np.array([change(update, start) for update in messages])
        crafted = attack(rows[:3], 2, seed=client_seed(fake.config(RUN), number, "attack"))
        assert np.allclose(rows[3:], crafted, atol=1e-6 * np.abs(crafted).max())
        assert entry["poisoned"] == ["client-3", "client-4"]
        assert [update.num_examples for update in messages] == [3, 4, 5, 6, 7]
        start = Update.from_bytes((whole / "arms" / arm / f"round-{number:03d}.safetensors").read_bytes())


def test_mimic_sends_the_bytes_of_the_client_that_it_copies(whole):
    for number in (1, 2, 3):
        messages = sent(whole, "mimic", number)
        assert messages[3].digest() == messages[4].digest() == messages[1].digest()
        assert [update.client_id for update in messages] == [f"client-{i}" for i in range(5)]


def test_attackers_train_honestly_first_and_once(whole, tmp_path):
    learner = fake.FakeLearner()
    simulate(tmp_path / "run", config=fake.config(RUN), learner=learner)
    assert learner.trained == [f"client-{i}" for i in range(5)] * (1 + 6 * 3)


@pytest.mark.parametrize("trainings", [5, 7, 8, 9, 10, 53, 54, 69])
def test_interrupted_before_between_and_after_the_attackers_it_ends_the_same(whole, tmp_path, trainings):
    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        simulate(folder, config=fake.config(RUN), learner=Stopping(after=trainings))
    simulate(folder, config=fake.config(RUN), resume=True)
    assert result(folder) == result(whole)


def test_infinite_messages_are_left_out_and_said(tmp_path):
    text = HEAD + 'on_nonfinite = "exclude"\n[[arms]]\nname = "a"\nattack = { kind = "inf", clients = 2 }\n'
    folder = simulate(tmp_path / "run", config=fake.config(text))
    for entry in folder.ledger.entries:
        assert set(entry["excluded"]) == {"client-3", "client-4"}
        assert set(entry["coefficients"]) == {"client-0", "client-1", "client-2"}
    assert all(np.isfinite(t).all() for t in Update.from_peft(tmp_path / "run/adapter").tensors.values())


def test_every_attack_has_a_kind():
    from fedcore.federation.config_attack import Attack

    for kind, made in ATTACKS.items():
        assert Attack(kind=kind).made() == made()


def test_an_attack_sees_what_the_server_sees_of_messages_in_another_format(tmp_path):
    text = RUN[: RUN.index("[[arms]]")].replace("[aggregation]", '[message]\nformat = "int8"\n[aggregation]')
    config = fake.config(text + '[[arms]]\nname = "a"\nattack = { kind = "ipm", clients = 2, epsilon = 2.0 }\n')
    simulate(tmp_path / "run", config=config)
    messages, start = sent(tmp_path / "run", "a", 1), fake.FakeLearner().initial()
    rows = np.array([change(update, start) for update in messages])
    # int8 holds a block of 64 to one part in 254 of its largest element
    assert np.allclose(rows[3:], IPM(2.0)(rows[:3], 2), atol=np.abs(rows).max() / 200)
    with pytest.raises(KeyboardInterrupt):
        simulate(tmp_path / "again", config=config, learner=Stopping(after=9))
    simulate(tmp_path / "again", config=config, resume=True)
    assert result(tmp_path / "again") == result(tmp_path / "run")


def test_an_attack_is_crafted_once_in_a_round_for_all_attackers(tmp_path, monkeypatch):
    craft, crafted = IPM.craft, []
    monkeypatch.setattr(
        IPM, "craft", lambda self, honest, f, seed: (crafted.append(f), craft(self, honest, f, seed))[1]
    )
    text = HEAD + '[[arms]]\nname = "a"\nattack = { kind = "ipm", clients = 3 }\n'
    simulate(tmp_path / "run", config=fake.config(text))
    assert crafted == [3, 3, 3]


COLUMN = '[model]\nsource = "m"\n[data]\nsource = "d.jsonl"\n[partition]\nkind = "column"\ncolumn = "user"\n'
EXCLUDE = '[aggregation]\nrule = "krum"\nparameters = { f = 1 }\non_nonfinite = "exclude"\n'


@pytest.mark.parametrize(
    ("attack", "rule", "said"),
    [
        ('kind = "alie"', "", "c.toml: arms[1].attack: ALIE: the paper has no z above 0 for n=5, f=1; give z"),
        (
            'kind = "alie", clients = 3',
            "",
            "c.toml: arms[1].attack: ALIE: the paper has no z above 0 for n=5, f=3; give z",
        ),
        (
            'kind = "mimic", row = 4',
            "",
            "c.toml: arms[1].attack: Mimic: got row=4, expected below 4, the number of honest rows; or leave it out",
        ),
        (
            'kind = "inf"',
            EXCLUDE,
            "c.toml: arms[1].attack: Krum: got f=1 with n=4 clients, expected 2f + 2 < n; the largest f for n=4 is 0 "
            "(after excluding 1 of 5 clients for what they send)",
        ),
    ],
)  # fmt: skip
def test_an_attack_that_cannot_run_is_refused_before_anybody_trains(attack, rule, said):
    """By the file alone, and where a column makes the clients once its texts are read."""
    arms = f'[[arms]]\nname = "a"\n[[arms]]\nname = "b"\nattack = {{ {attack} }}\n'
    with pytest.raises(ConfigError) as caught:
        parse_config(COLUMN.partition("[data]")[0] + "[partition]\nclients = 5\n" + rule + arms, "c.toml")
    assert str(caught.value) == said
    config = parse_config(COLUMN + rule + arms, "c.toml")
    with pytest.raises(ConfigError) as caught:
        check_clients(config, 5, "c.toml")
    assert str(caught.value) == said


@pytest.mark.parametrize("attack", ['kind = "alie", clients = 2', 'kind = "mimic", row = 3', 'kind = "alie", z = 1.0'])
def test_an_attack_that_can_run_is_accepted(attack):
    config = fake.config(f'{HEAD}[[arms]]\nname = "a"\nattack = {{ {attack} }}\n')
    assert [f'kind = "{arm.attack.kind}"' in attack for arm in config.arms] == [True]
