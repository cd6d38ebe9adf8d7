"""Runs whose rule chooses from secure sums over groups: the same groups again, void ones, what the report says."""

from __future__ import annotations

from dataclasses import replace

import fake_learner as fake
import numpy as np
import pytest

from fedcore.errors import ConfigError, TrainingError
from fedcore.federation import secure_round
from fedcore.federation.config_file import parse_config
from fedcore.federation.simulation import run_arms
from fedcore.report import secure

CLIENTS = 12
BASE = f'[run]\nseed = 5\nrounds = 2\n[model]\nsource = "fake"\n[partition]\nclients = {CLIENTS}\n'
TOP = "secure = { groups = 3, corrupt = 0.0, dropout = 0.09 }\n"
MEDIAN = '[[arms]]\nname = "median"\nrule = "median"\nspace = "parameters"\n'
TRIMMED = '[[arms]]\nname = "trimmed"\nrule = "trimmed_mean"\nparameters = { f = 1 }\nspace = "parameters"\n'


class Failing(fake.FakeLearner):
    """Clients that cannot train in an arm, and a run that stops within its second round."""

    def __init__(self, failing=(), stops=False):
        super().__init__()
        self.failing, self.stops = failing, stops

    def train(self, adapter, client, *rest, **options):
        if client.id in self.failing and rest[0] == 12:  # steps of one round, as in an arm
            raise TrainingError(f"client {client.id!r}: the loss is NaN")
        if self.stops and len(self.trained) > CLIENTS * 5 // 2:
            raise KeyboardInterrupt
        return super().train(adapter, client, *rest, **options)


def run(path, body=MEDIAN, top=TOP, failing=(), stops=False, resume=False):
    learner = Failing(failing, stops)
    return run_arms(parse_config(top + BASE + body, "c.toml"), fake.texts(CLIENTS), learner, path, resume=resume)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return run(tmp_path_factory.mktemp("groups") / "run", MEDIAN + TRIMMED)


def facts(folder, number=1, arm="median"):
    return folder.ledger.find(arm=arm, round=number)["secure"]


def test_a_robust_rule_runs_over_sums_of_groups(whole):
    groups = facts(whole)["survivors"]
    assert [len(group) for group in groups] == [4, 4, 4]
    assert sorted(name for group in groups for name in group) == sorted(f"client-{i}" for i in range(CLIENTS))
    assert set(facts(whole)["group_weights"]) == {"group-0", "group-1", "group-2"}
    assert facts(whole)["groups"] == 3


def test_one_seed_draws_the_same_groups_in_all_arms_and_others_for_each_start(whole):
    assert facts(whole)["survivors"] == facts(whole, arm="trimmed")["survivors"]
    assert facts(whole)["survivors"] != facts(whole, 2)["survivors"]


def test_a_run_with_groups_is_reproduced_also_from_within_a_round(whole, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", MEDIAN + TRIMMED, stops=True)
    again = run(tmp_path / "run", MEDIAN + TRIMMED, resume=True)
    for one, other in zip(whole.ledger.entries, again.ledger.entries, strict=True):
        assert one["output"] == other["output"]
        assert one["secure"]["sums"] == other["secure"]["sums"]


def test_a_void_group_is_a_row_that_the_rule_lacks(whole, tmp_path):
    gone = facts(whole)["survivors"][1][:2]
    folder = run(tmp_path / "run", MEDIAN + TRIMMED, failing=gone)
    found = facts(folder)
    assert found["survivors"] == [facts(whole)["survivors"][i] for i in (0, 2)]
    assert found["sums"] == [facts(whole)["sums"][i] for i in (0, 2)]
    assert len(found["void_groups"]) == 1
    assert "void" not in found
    assert folder.ledger.find(arm="median", round=1)["output"] != fake.FakeLearner().initial().digest()
    said = secure.lines(folder.ledger.entries)
    assert any("median round 1: 1 of 3 groups void" in line for line in said)
    # a trimmed mean needs three rows: it is void, and what was learned is not hidden
    entry = folder.ledger.find(arm="trimmed", round=1)
    assert entry["output"] == fake.FakeLearner().initial().digest()
    assert entry["secure"]["sums"] == found["sums"]
    assert entry["secure"]["bytes_up"] > 0
    assert any("trimmed round 1: void, 2 sums of groups were learned" in line for line in said)


def test_a_group_whose_weights_add_up_to_none_is_void(whole, tmp_path, monkeypatch):
    def lying(*given):
        sums = summed(*given)
        sums.rows[1, -1] = -1
        return sums

    summed = secure_round.summed
    monkeypatch.setattr(secure_round, "summed", lying)
    folder = run(tmp_path / "run")
    found = facts(folder)
    assert any("median round 1: 1 of 3 groups void" in line for line in secure.lines(folder.ledger.entries))
    assert len(found["void_groups"]) == 1
    assert "group-1: sum: its weights add up to -1" in found["void_groups"][0]
    assert set(found["group_weights"]) == {"group-0", "group-2"}


def test_a_void_round_moves_nothing_though_there_is_momentum(tmp_path, monkeypatch):
    """Else the groups would be new, and sums over others of nearly the same vectors would show them."""

    def losing(*given):
        sums = summed(*given)
        return (
            sums
            if given[4] == 1
            else replace(sums, rows=sums.rows[:1], survivors=sums.survivors[:1], void=["lost"] * 2)
        )

    summed = secure_round.summed
    monkeypatch.setattr(secure_round, "summed", losing)
    base = BASE.replace("rounds = 2", "rounds = 3")
    config = parse_config(TOP + base + MEDIAN + 'server = { optimizer = "fedavgm" }\n', "c.toml")
    folder = run_arms(config, fake.texts(CLIENTS), Failing(), tmp_path / "run", resume=False)
    one, two, three = folder.ledger.entries
    assert one["output"] == two["output"] == three["output"] != one["reference"]
    assert two["secure"]["survivors"] == three["secure"]["survivors"] != one["secure"]["survivors"]
    states = [folder.rounds.load_state("median", e["round"], e["optimizer"]["state"]) for e in (one, two, three)]
    for state in states[1:]:
        assert all(np.array_equal(state.moments["m"][name], m) for name, m in states[0].moments["m"].items())
    assert two["optimizer"]["aggregate"] is None


def test_half_of_the_groups_are_too_few(whole, tmp_path):
    gone = [name for group in facts(whole)["survivors"][1:] for name in group[:2]]
    folder = run(tmp_path / "run", failing=gone)
    found = facts(folder)
    assert "2 of 3 groups are void" in found["void"]
    assert found["sums"] == facts(whole)["sums"][:1]
    # the start has not moved: sums over other groups would in time show each vector
    assert facts(folder, 2)["survivors"] == found["survivors"]


def test_dropouts_that_groups_do_not_stand_are_an_error_of_the_file():
    with pytest.raises(ConfigError, match="at most 1 of 12 dropping out"):
        parse_config("secure = { groups = 3, corrupt = 0.0 }\n" + BASE + MEDIAN, "c.toml")


def test_the_report_claims_for_groups_no_more_than_holds(whole, tmp_path):
    said = secure.lines(whole.ledger.entries)[0]
    assert "sums over 3 groups" in said
    assert "whatever the server does, as long as no client is with it and chance made the groups" in said
    shown = secure.section(whole.ledger.entries)
    assert "<td>2 of 3</td>" in shown
    entry = whole.ledger.find(arm="median", round=1)
    two = entry["secure"] | {"corrupt": [1, 2], "clients": [9, 10]}
    (said, *_) = secure.lines([entry | {"secure": two}])
    assert "as long as at most 1 of a group of 9 and 2 of a group of 10 clients are with it and chance made" in said
    more = {"threshold": [2, 3], "neighbours": [3, 4], "liars": {"client-<7>": "its share is false"}}
    shown = secure.section([entry | {"secure": entry["secure"] | more}])
    assert "<td>2 of 3, 3 of 4</td>" in shown
    assert "client-&lt;7&gt;</td>" in shown
    assert "lied: its share is false" in shown
