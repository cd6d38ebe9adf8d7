"""LoRA methods in a run: what clients train and start from, what is kept for a resumption, what is refused."""

from __future__ import annotations

import fake_learner as fake
import numpy as np
import pytest

from fedcore.errors import ConfigError
from fedcore.federation.config_file import parse_config
from fedcore.federation.simulation import run_arms
from fedcore.lora import METHODS, FlexLoRA
from fedcore.report.html import page
from fedcore.updates import Update
from tests.oracles import delta as dense

A, B = f"{fake.MODULE}.lora_A.weight", f"{fake.MODULE}.lora_B.weight"
BASE = '[run]\nseed = 5\nrounds = 3\n[model]\nsource = "fake"\n[partition]\nclients = 3\n'


def text(*arms, **sections):
    more = "".join(f"[{name}]\n{body}\n" for name, body in sections.items())
    return BASE + more + "".join(f'[[arms]]\nname = "{name}"\n{body}\n' for name, body in arms)


def messages(folder, arm, number):
    receipts = folder.journal.received(arm, number)
    return {client: Update.from_bytes(receipt.open()) for client, receipt in receipts.items()}


def adapters(folder, arm, number, method, start, starts, fixed):
    """The clients' adapters, put together from what they sent, what they were sent, and what stayed with them."""
    found = []
    for client, message in messages(folder, arm, number).items():
        if message.modules:
            found.append(message)
            continue
        held = starts.get(client, start)
        sent = {name.rpartition(".")[2]: np.asarray(tensor) for name, tensor in message.tensors.items()}
        if arm == "fedsa_lora":
            own = folder.path / "arms" / arm / f"kept-{client}-{number:03d}.safetensors"
            sent["b"] = np.asarray(Update.from_bytes(own.read_bytes()).tensors[f"{fake.MODULE}.b"])
        if "core" in sent:
            sent = {"b": np.float32(np.float64(fixed.tensors[B]) @ np.float64(sent["core"]))}
        assert sent.keys() <= {"a", "b"}
        tensors = dict(held.tensors) | {{"a": A, "b": B}[factor]: tensor for factor, tensor in sent.items()}
        config, count = held.adapter_config, message.num_examples
        found.append(
            Update.from_tensors(
                tensors, client_id=client, num_examples=count, scaling=held.scaling, base=held.base,
                adapter_config=config,
            )
        )  # fmt: skip
    return found


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    config = parse_config(text(*((name, f'method = "{name}"') for name in METHODS)), "c.toml")
    learner = fake.FakeLearner()
    path = tmp_path_factory.mktemp("methods") / "run"
    return config, learner, run_arms(config, fake.texts(3), learner, path, resume=False)


@pytest.mark.parametrize("name", METHODS)
def test_a_round_is_the_method_on_its_messages(everything, name):
    _, _, folder = everything
    method, side, fixed, starts = METHODS[name](), None, None, {}
    start = fake.FakeLearner().initial()
    if name == "frlora":
        start, side = method.restart(start, fake.FakeLearner().weights())
        assert dense.dense(start, fake.MODULE).any()
    for number in (1, 2, 3):
        # Fed-SB's first round is an ordinary one, whose result fixes the factors
        step = FlexLoRA() if name == "fedsb" and number == 1 else method
        entry = folder.ledger.find(arm=name, round=number)
        updates = adapters(folder, name, number, step, start, starts, fixed)
        assert entry["reference"] == start.digest()
        result = step.aggregate(updates, reference=fixed or start, side=side, number=number)
        if step is method:
            assert entry["output"] == result.update.digest()
            start = result.update
        else:
            fixed = method.fixed(result.update)
            assert entry["fixed"] == fixed.digest()
            start = folder.rounds.load_global(name, number, entry["output"])
            made = dense.dense(start, fake.MODULE), dense.dense(result.update, fake.MODULE)
            assert np.linalg.norm(made[0] - made[1]) < 1e-6 * np.linalg.norm(made[1])
        assert entry["side"] == (result.side and result.side.digest())
        assert entry["starts"] == {client: update.digest() for client, update in result.starts.items()}
        billed = sum(client["up"] for client in result.report["bytes"].values())
        assert folder.metrics.find(arm=name, round=number)["bytes_up"] == billed
        if name != "randomized_sketch":
            # what is billed is what lies in the journal; sketches are made by the run's server
            assert sum(update.nbytes for update in messages(folder, name, number).values()) == billed
        side, starts = result.side, result.starts
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


def test_a_client_keeps_its_own_b_under_fedsa_and_the_journal_never_has_it(everything):
    _, _, folder = everything
    last = folder.rounds.load_global("fedsa_lora", 3, folder.ledger.find(arm="fedsa_lora", round=3)["output"])
    assert not last.tensors[B].any()
    for number in (1, 2, 3):
        for message in messages(folder, "fedsa_lora", number).values():
            assert set(message.tensors) == {f"{fake.MODULE}.a"}
    for number in (2, 3):
        before, after = (
            adapters(folder, "fedsa_lora", k, None, last, {}, None) for k in (number - 1, number)
        )  # fmt: skip
        for i, (old, new) in enumerate(zip(before, after, strict=True)):
            # the learner moves B three tenths of the way from where the client stood, with noise of 0.05
            expected = old.tensors[B] + 0.3 * (1 + 0.01 * i - old.tensors[B])
            assert np.abs(new.tensors[B] - expected).max() < 0.25


def test_a_killed_run_goes_on_with_the_same_sides(everything, tmp_path, monkeypatch):
    arms = [(name, f'method = "{name}"') for name in ("flora", "fedsa_lora", "frlora", "fedsb")]
    config = parse_config(text(*arms), "c.toml")

    class Killed(Exception):
        pass

    class Dying(fake.FakeLearner):
        def __init__(self, after):
            super().__init__()
            self.after = after

        def train(self, *arguments, **options):
            # each attempt dies in the second round of one of the arms, which it begins or goes on with
            if len(self.trained) == self.after:
                raise Killed
            return super().train(*arguments, **options)

    whole = run_arms(config, fake.texts(3), fake.FakeLearner(), tmp_path / "whole", resume=False)
    for attempt, after in enumerate((3 + 5, 9, 9, 9)):
        with pytest.raises(Killed):
            run_arms(config, fake.texts(3), Dying(after), tmp_path / "killed", resume=attempt > 0)
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


def test_a_method_that_takes_no_weights_runs_beside_one_that_has_equal_ones(tmp_path):
    arms = (("hetlora", 'method = "hetlora"'), ("flexlora", 'method = "flexlora"'))
    config = parse_config(text(*arms, aggregation='weights = "equal"'), "c.toml")
    folder = run_arms(config, fake.texts(3), fake.FakeLearner(), tmp_path / "run", resume=False)
    own, other = (folder.ledger.find(arm=name, round=1) for name, _ in arms)
    assert (other["weights"], other["divisor"], set(other["coefficients"].values())) == ("equal", 3.0, {1.0})
    # what it weighed clients by stands where it differs, by module
    assert own["weights"] is None
    assert not {"coefficients", "divisor"} & own.keys()
    shares = own["report"]["modules"][fake.MODULE]["shares"]
    assert sum(shares.values()) == pytest.approx(1)
    assert len(set(shares.values())) == 3
    shown = page(folder)
    assert "hetlora is not shown: the method weighs clients by itself, in each module otherwise." in shown
    assert "hetlora: every client counted" not in shown
    assert shown.count("Norm of each client") == 1


@pytest.mark.parametrize("weights", ["equal", "counts"])
def test_weights_that_no_arm_takes_are_refused(tmp_path, weights):
    arm = ("m", 'method = "hetlora"')
    with pytest.raises(ConfigError) as error:
        parse_config(text(arm, aggregation=f'weights = "{weights}"'), "c.toml")
    assert str(error.value) == (
        f'c.toml: aggregation.weights: got "{weights}" with hetlora, which weighs clients by itself; leave it out'
    )
    config = parse_config(text(arm), "c.toml")
    folder = run_arms(config, fake.texts(3), fake.FakeLearner(), tmp_path / "run", resume=False)
    shown = page(folder)
    assert "<p>Shares: m is not shown: the method weighs clients by itself" in shown
    assert "Norm of each client" in shown


@pytest.mark.parametrize(
    ("body", "sections", "said"),
    [
        ('method = "flexlor"', {}, "did you mean 'flexlora'?"),
        ('method = "flexlora"\nparameters = { f = 2 }', {}, "flexlora: parameter 'f' is not known"),
        ('method = "flexlora"\nrule = "krum"', {}, "rule 'krum' chooses otherwise"),
        ('method = "fedit"\nserver = { optimizer = "fedadam" }', {}, "server optimizer 'fedadam'"),
        ('method = "fedit"', {"adapter": "ranks = [1, 2]"}, "fedit: takes no mixed ranks"),
        ('space = "parameters"', {"adapter": "ranks = [1, 2]"}, 'adapter.ranks: got [1, 2] with space = "parameters"'),
        ("attack = { clients = 1 }", {"adapter": "ranks = [1, 2]"}, "arms[0].attack: got one with adapter.ranks"),
        ('method = "ffa_lora"\nattack = { clients = 1 }', {}, "factors that are frozen or stay local"),
        ('method = "randomized_sketch"', {"message": 'format = "int8"'}, 'message.format = "int8"'),
        ('method = "fedit"', {"aggregation": 'on_nonfinite = "exclude"'}, "methods count every client"),
        ('method = "fedit"\nattack = { clients = 99 }', {}, "attack.clients: got 99 of 3 clients"),
        ('method = "fedit"\nattack = { kind = "inf" }', {}, 'attack.kind: got "inf"'),
        ('method = "fedsa_lora"\nattack = { clients = 1 }', {}, "factors that are frozen or stay local"),
        ('method = "fedit"\nspace = "parameters"', {}, 'space = "parameters"'),
        ("", {"aggregation": 'method = "fedit"\nspace = "parameters"'}, 'space = "parameters"'),
        ("", {"aggregation": 'method = "fedit"\ncenter = "moved_on"'}, 'center = "moved_on"'),
        ('method = "flexlora"\nparameters = { rank = true }', {}, "parameter 'rank': got true"),
        ('method = "flexlora"\nparameters = { error_feedback = "no" }', {}, "'error_feedback': got 'no'"),
    ],
)
def test_what_does_not_go_together_is_one_line_of_the_file(body, sections, said):
    with pytest.raises(ConfigError) as error:
        parse_config(text(("m", body), **sections), "c.toml")
    assert said in str(error.value)
    assert str(error.value).startswith(("c.toml: arms[0]", "c.toml: adapter.ranks"))
    assert "\n" not in str(error.value)


def test_clients_of_mixed_ranks_start_each_round_at_their_own(tmp_path):
    taking = [name for name, kind in METHODS.items() if kind.traits.mixed]
    arms = [*((name, f'method = "{name}"') for name in taking), ("mean", ""), ("krum", 'rule = "krum"')]
    body = text(*arms, adapter="ranks = [1, 2]\nalpha = 4.0", partition="clients = 3")
    body = body.replace("[partition]\nclients = 3\n", "", 1).replace('"krum"\n', '"krum"\nparameters = { f = 0 }\n')
    body = body.replace('name = "krum"\nparameters = { f = 0 }', 'name = "krum"')
    learner = fake.FakeLearner()
    seen = []
    train = learner.train

    def watched(adapter, client, *arguments, **options):
        pair = adapter.modules[fake.MODULE]
        seen.append((client.id, pair.rank, pair.scale))
        return train(adapter, client, *arguments, **options)

    learner.train = watched
    folder = run_arms(parse_config(body, "c.toml"), fake.texts(3), learner, tmp_path / "run", resume=False)
    # alpha = 4 over the rank
    own = {("client-0", 1, 4.0), ("client-1", 2, 2.0), ("client-2", 1, 4.0)}
    assert set(seen) == own
    assert len(seen) == 3 + 9 * len(arms)
    for name in ("flexlora", "mean"):
        entry = folder.ledger.find(arm=name, round=2)
        assert set(entry["starts"]) == {"client-0", "client-2"}
        after = folder.rounds.load_global(name, 2, entry["output"])
        start = folder.rounds.load_start(name, 2, entry).of("client-2")
        best = dense.truncated(dense.dense(after, fake.MODULE), 1)
        assert np.linalg.norm(dense.dense(start, fake.MODULE) - best) < 1e-5 * np.linalg.norm(best)
