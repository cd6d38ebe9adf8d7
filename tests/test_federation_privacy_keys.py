"""Keys of noise and signs of a rotation for each round of each arm, and what the end of a round never tells."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, product

import fake_learner as fake
import numpy as np
import pytest
from private_runs import SMALL, B, config, run

from fedcore.errors import RangeError, TrainingError
from fedcore.federation import private_round
from fedcore.federation.private_run import PrivateRun
from fedcore.privacy import Distributed

pytest.importorskip("dp_accounting", reason="budgets need dp-accounting, of the extra `train`")

ARMS = '[[arms]]\nname = "one"\n[[arms]]\nname = "two"\n'


def test_each_purpose_arm_round_and_client_has_a_key_of_its_own():
    made = PrivateRun(None, None, None, bytes(range(32)), None)
    # names that would be one where the parts are only put together
    asked = list(product(("sample", "turns"), ("a", "a1", "1"), (1, 11, 111), ("", "c", "1", "1c")))
    keys = [made.key(*about) for about in asked]
    assert keys == [made.key(*about) for about in asked]
    assert {len(key) for key in keys} == {32}
    for one, other in combinations(range(len(asked)), 2):
        assert keys[one] != keys[other], (asked[one], asked[other])
    assert replace(made, secret=bytes(32)).key(*asked[0]) != keys[0]


def test_one_update_is_sent_as_other_integers_in_each_round_and_each_arm(tmp_path, monkeypatch):
    """The key and the rotation each do it alone, so that both are looked at."""
    rounds, drawn, encode = [], [], Distributed.encode

    def mode(about):
        rounds.append(about)
        return made(about)

    def spied(self, update, noise):
        drawn.append((self.seed, noise))
        return encode(self, update, noise)

    made = private_round.MODES["distributed"]
    monkeypatch.setitem(private_round.MODES, "distributed", mode)
    run(tmp_path / "run", config(SMALL + 'mode = "distributed"\n', arms=ARMS))
    assert [(about.arm.name, about.number) for about in rounds] == [("one", 1), ("one", 2), ("two", 1), ("two", 2)]
    monkeypatch.setattr(Distributed, "encode", spied)
    clients, start, sent = fake.texts().clients[:2], rounds[0].start, []
    update = fake.FakeLearner().train(start.adapter, clients[0], 12, 0, trains=("b",))
    for about in rounds:
        sending = made(replace(about, start=start))
        sent += [sending.message(client, update) for client in clients]
        assert sending.message(clients[1], update) == sent[-1]
        del drawn[-1]  # the repeated one
    assert len(set(sent)) == len({key for _, key in drawn}) == len(rounds) * len(clients)
    seeds = [seed for seed, _ in drawn]
    assert seeds[::2] == seeds[1::2]  # clients of a round add up what was turned alike
    assert len(set(seeds)) == len(rounds)


class Failing(fake.FakeLearner):
    """Clients that cannot train, but for some; `asked` says who was to."""

    def __init__(self, able=()):
        super().__init__()
        self.able, self.asked = able, []

    def train(self, adapter, client, *rest, **options):
        self.asked.append(client.id)
        if client.id not in self.able:
            raise TrainingError(f"client {client.id!r}: the loss is NaN")
        return super().train(adapter, client, *rest, **options)


@pytest.fixture
def sampled(monkeypatch):
    """Has a round draw the first so many clients, which costs no accounting of a sample."""

    def first(drawn):
        monkeypatch.setattr(PrivateRun, "sample", lambda self, clients, arm, number: clients[:drawn])

    return first


@pytest.mark.parametrize("drawn", [0, 1, 2])
def test_a_round_in_which_all_of_a_small_sample_fail_ends_like_any_other(tmp_path, sampled, drawn):
    """An error would tell how many were drawn."""
    sampled(drawn)
    learner = Failing()
    folder = run(tmp_path / "run", config(rounds=1), learner=learner)
    assert len(learner.asked) == len(folder.private.kept("one", 1)["failed"]) == drawn
    assert "output" in folder.ledger.entries[0]


@pytest.mark.parametrize("drawn", [3, 5])
def test_a_round_fails_with_the_third_client_that_fails_whoever_was_drawn(tmp_path, sampled, drawn):
    sampled(drawn)
    learner = Failing()
    with pytest.raises(TrainingError, match="client-2"):
        run(tmp_path / "run", config(rounds=1), learner=learner)
    assert len(learner.asked) == 3
    folder = run(tmp_path / "other", config(rounds=1), learner=Failing(able=("client-0",)))
    assert len(folder.private.kept("one", 1)["failed"]) == drawn - 1


def test_where_clients_take_turns_their_number_is_public_and_a_group_that_fails_says_so(tmp_path):
    learner = Failing()
    with pytest.raises(TrainingError):
        run(tmp_path / "run", config(SMALL + 'mode = "correlated"\nseparation = 5\n', rounds=5), learner=learner)
    assert len(learner.asked) == 1


@pytest.mark.parametrize("mode", ["local", "distributed"])
def test_an_adapter_that_has_grown_beyond_what_holds_its_noise_is_refused_uncharged(tmp_path, monkeypatch, mode):
    """The plan looks at the first round's alone."""
    rounds, made = [], private_round.MODES[mode]

    def spied(about):
        rounds.append(about)
        return made(about)

    monkeypatch.setitem(private_round.MODES, mode, spied)
    run(tmp_path / "run", config(SMALL + f'mode = "{mode}"\n'), learner=fake.HalfLearner())
    about = rounds[-1]
    before = len(about.private.budget.charges)
    for number, largest, held in ((2, 6e4, True), (3, 65500, False)):
        grown = {B: np.full((6, 2), largest, np.float16)}
        start = replace(about.start, adapter=about.start.adapter.with_tensors(grown))
        later = replace(about, number=number, start=start)
        if held:
            made(later)
        else:
            with pytest.raises(RangeError, match=r"lora_B.weight': .*which does not fit float16; lower the clip"):
                made(later)
    assert len(about.private.budget.charges) == before
