"""Which rules run over secure sums of groups, what the ledger says of them, and advice that holds when it is taken."""

from __future__ import annotations

import re

import fake_learner as fake
import numpy as np
import pytest
from test_federation_secure import BASE, arms

from fedcore.errors import ConfigError
from fedcore.federation.config_file import parse_config
from fedcore.federation.simulation import run_arms

CLIENTS = 12
GROUPS = 'secure = { groups = 4, corrupt = 0.0, dropout = 0.0 }\nspace = "parameters"\n'
CLIP = 'before = [{ rule = "norm_clipping", max_norm = 0.3 }]\n'
REFERENCES = {
    "norm_clipping": 'rule = "norm_clipping"\nparameters = { max_norm = 0.3 }\n',
    "arc": 'rule = "arc"\nparameters = { f = 1 }\n',
    "sign_majority": 'rule = "sign_majority"\nparameters = { step = 0.01 }\n',
    "centered_clipping": 'rule = "centered_clipping"\nparameters = { radius = 0.3 }\n',
    "median": 'rule = "median"\n' + CLIP,
    "mean": 'rule = "mean"\n' + CLIP,
}


def config(body, top="", clients=CLIENTS):
    return parse_config(top + BASE.replace("clients = 6", f"clients = {clients}") + body, "c.toml")


def refused(body, top="", clients=CLIENTS):
    with pytest.raises(ConfigError) as caught:
        config(body, top, clients)
    return str(caught.value)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    body = arms(**{name: made + GROUPS for name, made in REFERENCES.items()})
    path = tmp_path_factory.mktemp("rules") / "run"
    return run_arms(config(body), fake.texts(CLIENTS), fake.FakeLearner(), path, resume=False)


def test_rules_that_look_at_where_clients_began_run_over_groups(whole):
    for name in REFERENCES:
        first, second = (whole.ledger.find(arm=name, round=number) for number in (1, 2))
        assert "void" not in first["secure"]
        assert len({first["reference"], first["output"], second["output"]}) == 3


def test_the_ledger_says_what_of_a_sum_over_groups_lies_on_the_reference(whole):
    facts = whole.ledger.find(arm="norm_clipping", round=1)["secure"]
    reference = facts["reference_coefficients"].pop("reference")
    assert facts["reference_coefficients"] == {}
    assert reference > 0
    assert facts["divisor"] == np.cumsum([*facts["group_coefficients"].values(), reference], dtype=np.float64)[-1]
    for name in REFERENCES:
        assert {"reference_coefficients", "divisor"} <= set(whole.ledger.find(arm=name, round=2)["secure"])
    # a clip before a mean is that clip
    clipped, mean = (whole.ledger.find(arm=name, round=1)["output"] for name in ("norm_clipping", "mean"))
    assert clipped == mean


def test_a_center_that_moves_on_and_a_servers_update_have_no_place_under_masks():
    said = refused('[aggregation]\ncenter = "moved_on"\n' + arms(a=REFERENCES["centered_clipping"] + GROUPS))
    assert said == (
        'c.toml: aggregation.center: got "moved_on" with [secure], where a rule over sums starts at the global '
        "adapter; leave it out"
    )
    said = refused(arms(a='rule = "fltrust"\n' + GROUPS))
    assert said == (
        "c.toml: fltrust: compares with an update of the server, for which [secure] has no place; set rule = "
        '"mean" without secure.groups'
    )


@pytest.mark.parametrize("groups", [1, 2])
def test_a_rule_that_compares_takes_three_sums(groups):
    body = arms(a='rule = "median"\n' + GROUPS.replace("groups = 4", f"groups = {groups}"))
    assert refused(body) == (
        f"c.toml: secure.groups: got {groups} with median, expected at least 3 sums to choose from; set secure.groups "
        '= 3 to have sums over groups to choose from, or rule = "mean" without secure.groups'
    )
    one = refused(arms(a='rule = "mean"\nspace = "delta"\nsecure = { groups = 1, dropout = 0.0 }\n'))
    assert "secure.groups: got 1 with mean, expected at least 2 sums to choose from" in one
    config(arms(a=REFERENCES["norm_clipping"] + GROUPS.replace("groups = 4", "groups = 2")))


def test_what_comes_before_a_mean_is_named():
    said = refused(arms(a='rule = "mean"\nspace = "parameters"\n' + CLIP), "secure = true\n")
    assert said.startswith("c.toml: arms[0].before (norm_clipping): needs each client's own update, which masks hide;")
    assert said.endswith("or leave out before")
    said = refused("[aggregation]\n" + CLIP, "secure = true\n")
    assert said.startswith("c.toml: aggregation.before (norm_clipping): needs")


def test_a_rule_that_is_wrong_is_said_with_all_other_faults():
    lines = refused(arms(a='rule = "krumm"\n' + GROUPS) + '[message]\nformat = "int8"\n').splitlines()
    assert len(lines) == 2
    assert "did you mean 'krum'" in lines[0]


TABLES = ["", "groups = 1", "groups = 2", "groups = 3", "groups = 6", "dropout = 0.1", "corrupt = 0.2"]
RULES = {**REFERENCES, "krum": 'rule = "krum"\nparameters = { f = 1 }\n', "plain": 'rule = "median"\n'}
MEAN = {"rule": '"mean"', "space": '"parameters"', "before": None}


@pytest.mark.parametrize("clients", [2, 5, 6, 8, 9, 12, 40])
def test_every_piece_of_advice_is_accepted_when_it_is_taken(clients):
    """Each way of a line as it says: keys that it sets, and keys that it leaves out."""
    followed = 0
    for made in RULES.values():
        for table in TABLES:
            try:
                config("[aggregation]\n" + made + f"[secure]\n{table}\n", "", clients)
            except ConfigError as error:
                (line,) = str(error).splitlines()
            else:
                continue
            said, _, advice = line.partition("; ")
            if not advice or "secure" not in said + advice:
                continue  # a rule's own word on how many rows it takes, or the bound on groups
            for way in advice.removeprefix("set ").split(", or "):
                rule = dict(text.split(" = ", 1) for text in made.splitlines())
                secure = dict(text.split(" = ", 1) for text in table.splitlines())
                if most := re.search(r"at most (\d+) of \d+ dropping out", way):
                    secure["dropout"] = str(int(most[1]) / clients)
                for key in re.findall(r"(?:without|leave out|and) (before|secure\.groups)", way):
                    (secure if key.startswith("secure") else rule).pop(key.removeprefix("secure."), None)
                for key, value in re.findall(r'(\S+) = ("\w+"|[\d.]+)', way):
                    (secure if key.startswith("secure") else rule)[key.removeprefix("secure.")] = value
                if rule["rule"] == '"mean"':
                    rule.pop("parameters", None)
                taken = "".join(f"{key} = {value}\n" for key, value in rule.items())
                masks = "".join(f"{key} = {value}\n" for key, value in secure.items())
                if way == "form fewer groups":
                    masks = masks.replace("groups = 6", "groups = 3")
                config("[aggregation]\n" + taken + "[secure]\n" + masks, "", clients)
                followed += 1
    assert followed
