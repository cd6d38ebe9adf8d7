"""What a run under secure aggregation refuses before anybody trains, and sums that a liar replaced."""

from __future__ import annotations

import fake_learner as fake
import pytest
from test_federation_secure import BASE, CLIENTS, MEAN, NOISE, arms, run

from fedcore.errors import ConfigError, PrivacyError, WeightError
from fedcore.federation import secure_round, simulation
from fedcore.federation.config_file import check_clients, parse_config
from fedcore.federation.folder import RunFolder
from fedcore.federation.secure_sum import context_of
from fedcore.federation.simulation import run_arms
from fedcore.federation.start import Start
from fedcore.privacy import secagg


def test_both_sizes_of_groups_are_checked_before_anybody_trains(tmp_path):
    """Of seven clients one is corrupt: the group of three stands it, and the group of four does not."""
    learner, text = fake.FakeLearner(), BASE.replace("clients = 6", "clients = 7")
    top = "secure = { groups = 2, corrupt = 0.15, dropout = 0.25 }\n"
    body = arms(a='rule = "norm_clipping"\nparameters = { max_norm = 1.0 }\nspace = "parameters"')
    with pytest.raises(ConfigError, match="groups: 2 of 7 members"):
        run_arms(parse_config(top + text + body, "c.toml"), fake.texts(7), learner, tmp_path / "run", resume=False)
    assert not learner.trained


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (arms(a='method = "flexlora"'), "which masks hide"),
        (arms(a='rule = "krum"\nparameters = { f = 0 }'), "secure.groups = 3"),
        (arms(a='rule = "mean"\nspace = "delta"'), "no sum of what clients send"),
        (arms(a=MEAN + "attack = { clients = 1 }"), "attacks look at what masks hide"),
        ('[message]\nformat = "int8"\n' + arms(a=MEAN), "secure.bits"),
        ("[privacy]\nepsilon = 8\ndelta = 1e-3\n" + arms(a='method = "ffa_lora"'), 'expected "distributed"'),
        (arms(a='method = "randomized_sketch"\nparameters = { passes = 2 }'), "passes = 1"),
        (
            NOISE + "fewest_clients = 6\ncorrupt_clients = 1\n" + arms(a='method = "ffa_lora"'),
            "privacy.fewest_clients: got 6",
        ),
        (NOISE + "corrupt_clients = 3\n" + arms(a='method = "ffa_lora"'), "3 of them corrupt"),
        (arms(a=MEAN + "secure = { groups = 4 }"), "one of a group"),
        (arms(a=MEAN + "secure = { bits = 1 }"), "bits"),
        (arms(a=MEAN + "secure = { mask = true }"), "unknown key"),
        (arms(a=MEAN + "secure = { corrupt = 0.6 }"), "admit no threshold"),
    ],
)
def test_what_masks_do_not_go_together_with_is_refused_by_name(tmp_path, body, said):
    with pytest.raises(ConfigError) as raised:
        run(tmp_path / "run", body)
    assert said in str(raised.value)


def test_weights_that_round_to_nothing_are_refused_before_anybody_trains(tmp_path, monkeypatch):
    top = "secure = { bits = 8, largest_weight = 1000 }\n"
    config = parse_config(top + BASE + arms(a=MEAN), "c.toml")
    with pytest.raises(ConfigError, match=r"a client of 3 examples: weight: .* bound 127 rounds to 0.*secure\.bits"):
        check_clients(config, CLIENTS, "c.toml", [3, 5, 4000])
    for text, examples in ((top, [4, 1000]), (top.replace("8", "20"), [3]), ("secure = { bits = 8 }\n", [3, 700])):
        check_clients(parse_config(text + BASE + arms(a=MEAN), "c.toml"), CLIENTS, "c.toml", examples)
    equal = parse_config(
        "secure = { bits = 8 }\n" + BASE + '[aggregation]\nweights = "equal"\n' + arms(a=MEAN), "c.toml"
    )
    check_clients(equal, CLIENTS, "c.toml", [3])
    with pytest.raises(WeightError, match="rounds to 0"):
        run(tmp_path / "run", arms(a=MEAN), top=top)
    monkeypatch.setattr(simulation, "load_texts", lambda config: fake.texts(CLIENTS))
    with pytest.raises(ConfigError, match="rounds to 0"):  # there is no base to load
        simulation.simulate(config, tmp_path / "whole")


FFA = arms(a='method = "ffa_lora"')


GROUPS = "secure = { groups = 3, corrupt = 0.0, dropout = 0.0 }\n"
MEDIAN = arms(a='rule = "median"\nspace = "parameters"')


@pytest.mark.parametrize(
    ("top", "body"),
    [("secure = true\n", arms(a=MEAN)), (GROUPS, MEDIAN), ("secure = true\n", NOISE + FFA)],
    ids=["one sum", "groups", "under noise"],
)
def test_masks_are_bound_to_the_round_its_broadcast_and_the_configuration(tmp_path, monkeypatch, top, body):
    def spied(*given, **options):
        asked.append((options["round"], options["context"]))
        return simulated(*given, **options)

    asked, simulated, learner = [], secagg.simulate, fake.FakeLearner()
    monkeypatch.setattr(secagg, "simulate", spied)
    initial = learner.initial()
    monkeypatch.setattr(learner, "initial", lambda: initial)  # one object, so that no client has a start of its own
    config, folder = run(tmp_path / "run", body, top=top, learner=learner)
    first, second = (folder.ledger.find(arm="a", round=number) for number in (1, 2))
    begun = Start(folder.rounds.load_global("a", 0, first["reference"]))
    assert second["reference"] != first["reference"]
    assert asked == [(1, context_of(config, begun)), (2, context_of(config, folder.rounds.load_start("a", 1, first)))]


@pytest.mark.parametrize("body", [arms(a=MEAN), NOISE + FFA], ids=["summed", "added up"])
@pytest.mark.parametrize("number", [0, -1])
def test_a_sum_that_is_not_the_plain_one_stops_the_run_before_anything_of_it_is_kept(
    tmp_path, monkeypatch, body, number
):
    def wrong(*given, **options):
        found = simulated(*given, **options)
        found.sum.flat[number] += 1
        return found

    simulated = secagg.simulate
    monkeypatch.setattr(secagg, "simulate", wrong)
    with pytest.raises(PrivacyError, match="secure sum: differs from the plain sum of the same integers"):
        run(tmp_path / "run", body)
    folder = RunFolder.read(tmp_path / "run")
    assert folder.ledger.entries == []
    assert folder.private.kept("a", 1) is None
    assert [path.name for path in (tmp_path / "run/arms").rglob("*.safetensors")] == ["round-000.safetensors"]


def test_a_group_whose_sum_is_not_the_plain_one_stops_the_run(tmp_path, monkeypatch):
    def wrong(*given, **options):
        found = simulated(*given, **options)
        found.sum[1, 3] -= 1
        return found

    simulated = secagg.simulate
    monkeypatch.setattr(secagg, "simulate", wrong)
    with pytest.raises(PrivacyError, match="differs from the plain sum"):
        run(tmp_path / "run", MEDIAN, top=GROUPS)
    assert RunFolder.read(tmp_path / "run").ledger.entries == []


MOMENTUM = 'server = { optimizer = "fedavgm", learning_rate = 2.0 }\n'


@pytest.mark.parametrize(
    ("numbers", "weight", "server", "said"),
    [
        (0, -1, "", "sum: its weights add up to -1"),
        (2**22, 1, "", "lora_A.weight': the result does not fit float16"),
        (45000, 1, MOMENTUM, "server optimiser: tensor"),
    ],
)
def test_a_sum_that_one_client_replaced_voids_its_round_and_the_run_goes_on(
    tmp_path, monkeypatch, numbers, weight, server, said
):
    def lying(*given):
        sums = summed(*given)
        if given[4] == 1:
            sums.rows[0, :-1], sums.rows[0, -1] = numbers, weight
        return sums

    summed = secure_round.summed
    monkeypatch.setattr(secure_round, "summed", lying)
    _, folder = run(tmp_path / "run", arms(a=MEAN + server), learner=fake.HalfLearner())
    first, second = folder.ledger.entries
    assert said in first["secure"]["void"]
    assert first["output"] == first["reference"] == second["reference"]
    assert "void" not in second["secure"]
    assert second["output"] != second["reference"]


@pytest.mark.filterwarnings("error")
def test_changes_that_round_to_nothing_are_said(tmp_path):
    told = []
    config = parse_config("secure = { largest = 1e300 }\n" + BASE + arms(a=MEAN), "c.toml")
    folder = run_arms(
        config,
        fake.texts(CLIENTS),
        fake.FakeLearner(),
        tmp_path / "run",
        resume=False,
        progress=lambda *where, **facts: told.append(facts),
    )
    for entry in folder.ledger.entries:
        assert entry["output"] == entry["reference"]
        (said,) = [note for note in entry["secure"]["warnings"] if "0 in every number" in note]
        assert "secure.largest = 1e+300" in said
    assert [fact["vanished"] for fact in told if "vanished" in fact] == [CLIENTS] * 2


def test_one_client_has_no_sum_to_hide_in():
    with pytest.raises(ConfigError, match="secure: got 1 client, expected at least two"):
        parse_config("secure = true\n" + BASE.replace("clients = 6", "clients = 1") + arms(a=MEAN), "c.toml")
