"""The configuration file: exact round trip, every fault one line that names file and key."""

from __future__ import annotations

import dataclasses
from importlib import resources
from pathlib import Path

import pytest

import fedcore as fc
from fedcore.attacks import MinMax
from fedcore.clients import settings as client_settings
from fedcore.errors import ConfigError, MissingError
from fedcore.federation import config as sections
from fedcore.federation import config_model
from fedcore.federation.config_file import load_config, parse_config, to_toml
from fedcore.federation.keys import keys
from fedcore.federation.rule_names import make_chain, rule_classes
from fedcore.federation.server_optimizer import FedAvgM, FedYogi

SMALLEST = '[model]\nsource = "some/model"\n'


def fault(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_config(text, "c.toml")
    return str(caught.value)


def test_defaults_are_filled_in_and_written_back_exactly():
    config = parse_config(SMALLEST, "c.toml")
    assert config.arms[0].name == "federated"
    assert config.partition.kind == "iid"
    written = to_toml(config)
    assert parse_config(written, "again") == config
    assert "learning_rate = 0.004" in written


def test_the_shipped_demo_loads_and_round_trips():
    text = resources.files("fedcore.cli").joinpath("demo.toml").read_text()
    config = parse_config(text, "demo.toml")
    names = ["honest-mean", "poisoned-mean", "poisoned-krum", "secure-mean", "secure-dp"]
    assert [arm.name for arm in config.arms] == names
    assert [config.secure_of(arm) is not None for arm in config.arms] == [False] * 3 + [True] * 2
    assert [config.privacy_of(arm) is not None for arm in config.arms] == [False] * 4 + [True]
    assert parse_config(to_toml(config), "again") == config


def test_text_of_any_kind_survives_the_round_trip():
    odd = 'a \\"quoted\\" \\\\ path, tab\\t, \\u0001, \\u007f, é, 😀'
    config = parse_config(f'[model]\nsource = "m"\n[data]\nsource = "d.jsonl"\ntext = "{odd}"\n', "c.toml")
    assert parse_config(to_toml(config), "again") == config


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (SMALLEST + "[aggregation]\nruel = 'mean'\n", "c.toml: aggregation.ruel: unknown key; did you mean 'rule'?"),
        (SMALLEST + "[agregation]\nrule = 'mean'\n", "c.toml: agregation: unknown key; did you mean 'aggregation'?"),
        ("[model.pretrain]\nlayer = 2\n", "c.toml: model.pretrain.layer: unknown key; did you mean 'layers'?"),
        (
            SMALLEST + "[[arms]]\nname = 'a'\n[[arms]]\nname = 'b'\nattack = { scal = 2.0 }\n",
            "c.toml: arms[1].attack.scal: unknown key; did you mean 'scale'?",
        ),
        (SMALLEST + "[run]\nzzzz = 1\n", "known keys: seed, rounds, output, workers, adapter_from"),
        (SMALLEST + "[run]\nrounds = 0\n", "c.toml: run.rounds: got 0; input should be greater than or equal to 1"),
        (SMALLEST + "[partition]\nclients = 0\n", "c.toml: partition.clients: got 0;"),
        (SMALLEST + "[adapter]\nranks = []\n", "c.toml: adapter.ranks: got [];"),
        (SMALLEST + "[adapter]\nranks = [4, 0]\n", "c.toml: adapter.ranks[1]: got 0;"),
        (SMALLEST + "[aggregation]\nrule = 'krumm'\n", "did you mean 'krum'?"),
        (SMALLEST + "[aggregation]\nrule = 'krum'\nparameters = { g = 2 }\n", "krum: parameter 'g' is not known"),
        (SMALLEST + "[aggregation]\nrule = 'krum'\n", "krum: parameter 'f' is missing"),
        (SMALLEST + "[partition]\nclients = 6\n[aggregation]\nrule = 'krum'\nparameters = { f = 2 }\n", "f=2 with n=6"),
        (
            SMALLEST + "[[arms]]\nname = 'a'\nattack = { clients = 9 }\n",
            "arms[0].attack.clients: got 9 of 8 clients, expected at most 7",
        ),
        (SMALLEST + "[[arms]]\nname = 'base'\n", "the name 'base' is taken"),
        (SMALLEST + "[[arms]]\nname = 'a'\n[[arms]]\nname = 'a'\n", "expected a different name for each arm"),
        (SMALLEST + "[[arms]]\nname = 'a'\n[[arms]]\nname = 'A'\n", "expected a different name for each arm"),
        (SMALLEST + "[partition]\nalpha = 0.1\n", "c.toml: partition: got alpha = 0.1 with kind = 'iid'"),
        (SMALLEST + "[partition]\ncolumn = 'topic'\n", "c.toml: partition: got column = 'topic' with kind = 'iid'"),
        (SMALLEST + "[adapter]\nrank = 4\nranks = [2, 4]\n", "c.toml: adapter: got rank = 4 and ranks = [2, 4]"),
        (
            SMALLEST + "[aggregation]\ncenter = 'moved_on'\n",
            'c.toml: aggregation.center: got "moved_on" with mean; it is where centered_clipping starts',
        ),
        (SMALLEST + "[[arms]]\nname = '../a'\n", "c.toml: arms[0].name: got '../a'"),
        (SMALLEST + "[[arms]]\nrule = 'mean'\n", "c.toml: arms[0].name: missing"),
        (SMALLEST + "[run]\nadapter_from = 'x'\n", "run.adapter_from: got 'x', expected one of federated"),
        (SMALLEST + "[partition]\nkind = 'column'\nclients = 3\n", "leave out clients"),
        ("[model]\nquantization = 'nf4'\n", "needs exactly one of source"),
        ("[model.pretrain]\nhidden = 128\nheads = 3\n", "hidden = 128 is not a multiple of heads = 3; change one"),
        ("[model.pretrain]\nhidden = 64\nheads = 64\n", "hidden = 64 over heads = 64 is odd; position encoding needs"),
        (
            SMALLEST + "[[arms]]\nname = 'a'\nattack = { clients = 8 }\n",
            "arms[0].attack.clients: got 8 of 8 clients, expected at most 7",
        ),
        (
            SMALLEST + "[data]\nsource = 'd.jsonl'\n[partition]\nkind = 'dirichlet'\n",
            "partition.column: missing; kind = 'dirichlet' needs the column",
        ),
        ("[model.pretrain]\nhidden = 64\nheads = 64\n", "hidden = 64 over heads = 64 is odd"),
        ("[model.pretrain]\nsilos = 65\n", "c.toml: model.pretrain.silos: got 65;"),
        ("[run]\nseed = 1\n", "c.toml: model: missing"),
        ("[run\n", "c.toml: not TOML"),
        (
            SMALLEST + "[server]\noptimizer = 'fedadam'\n",
            'server.optimizer: got "fedadam" with space = "delta" (arm \'federated\'), expected space = "parameters"',
        ),
        (
            SMALLEST + "[[arms]]\nname = 'a'\nserver = { optimizer = 'fedavgm' }\n",
            'arms[0].server.optimizer: got "fedavgm" with space = "delta"',
        ),
        (
            SMALLEST + "[server]\noptimizer = 'fedavgm'\nbeta1 = 0.5\n",
            'c.toml: server: beta1: not known to optimizer = "fedavgm"; it takes learning_rate, momentum',
        ),
        (SMALLEST + "[server]\noptimiser = 'fedavgm'\n", "server.optimiser: unknown key; did you mean 'optimizer'?"),
        (SMALLEST + "[server]\noptimizer = 'adam'\n", "c.toml: server.optimizer: got 'adam';"),
        (SMALLEST + "[server]\noptimizer = 'fedavgm'\nmomentum = 1.0\n", "c.toml: server.momentum: got 1.0;"),
        (SMALLEST + "[training]\nproximal_mu = -1\n", "c.toml: training.proximal_mu: got -1;"),
        (
            SMALLEST + "[[arms]]\nname = 'a'\nattack = { kind = 'alie', epsilon = 2.0 }\n",
            'c.toml: arms[0].attack: epsilon: not known to kind = "alie"; it takes z',
        ),
        (SMALLEST + "[[arms]]\nname = 'a'\nattack = { kind = 'alice' }\n", "arms[0].attack.kind: got 'alice';"),
        (
            SMALLEST + "[[arms]]\nname = 'a'\nattack = { kind = 'inf' }\n",
            'arms[0].attack.kind: got "inf" with aggregation.on_nonfinite = "raise"',
        ),
        (SMALLEST + "[aggregation]\nbefore = [{ rule = 'mean' }]\n", "c.toml: aggregation: Mean(): gives one row"),
        (SMALLEST + "[aggregation]\nbefore = [{ max_norm = 1 }]\n", "expected the name of a pre-aggregation as rule ="),
    ],
)
def test_each_fault_is_one_line_with_file_and_key(text: str, said: str):
    message = fault(text)
    assert said in message
    assert "\n" not in message
    assert message.startswith("c.toml: ")


@pytest.mark.parametrize(
    ("table", "key", "wrong", "said"),
    [
        ("run", "rounds", "true", "got true; input should be a valid integer"),
        ("run", "rounds", '"2"', "got '2'; input should be a valid integer"),
        ("run", "rounds", "2.0", "got 2.0; input should be a valid integer"),
        ("run", "output", "3", "got 3; input should be a valid string"),
        ("model.pretrain", "layers", "true", "got true; input should be a valid integer"),
        ("data", "held_out", '"0.1"', "got '0.1'; input should be a valid number"),
        ("partition", "alpha", "true", "got true; input should be a valid number"),
        ("adapter", "rslora", '"yes"', "got 'yes'; input should be a valid boolean"),
        ("adapter", "rslora", "1", "got 1; input should be a valid boolean"),
        ("adapter", "ranks", "[true]", "ranks[0]: got true; input should be a valid integer"),
        ("adapter", "ranks", '["4"]', "ranks[0]: got '4'; input should be a valid integer"),
        ("training", "learning_rate", "false", "got false; input should be a valid number"),
        ("server", "learning_rate", '"1"', "got '1'; input should be a valid number"),
        ("privacy", "delta", '"1e-5"', "got '1e-5'; input should be a valid number"),
        ("privacy.adaptive", "quantile", "true", "got true; input should be a valid number"),
        ("secure", "bits", "true", "got true; input should be a valid integer"),
    ],
)
def test_a_value_of_another_type_is_refused(table, key, wrong, said):
    rest = {"privacy": "epsilon = 8\n" + "delta = 1e-5\n" * (key != "delta")}.get(table, "")
    outer = "[privacy]\nepsilon = 8\ndelta = 1e-5\n" if table == "privacy.adaptive" else ""
    model = "" if table == "model.pretrain" else SMALLEST
    lines = fault(f"{model}{outer}[{table}]\n{rest}{key} = {wrong}\n").splitlines()
    assert [line for line in lines if said in line and f"{table}.{key}" in line] == lines


@pytest.mark.parametrize("attack", ["clients = true", 'clients = "1"', 'scale = "2"', "scale = true"])
def test_a_value_of_another_type_in_an_arm_is_refused(attack):
    assert "c.toml: arms[0].attack." in fault(SMALLEST + f"[[arms]]\nname = 'a'\nattack = {{ {attack} }}\n")


def test_a_whole_number_is_a_number_and_a_list_gives_ranks_and_modules():
    text = SMALLEST + '[adapter]\nalpha = 8\nranks = [4, 8]\ntarget_modules = ["q_proj"]\n'
    config = parse_config(text, "c.toml")
    assert (config.adapter.alpha, config.adapter.ranks, config.adapter.target_modules) == (8.0, (4, 8), ("q_proj",))
    assert parse_config(to_toml(config), "again") == config


def test_all_faults_are_told_at_once_a_line_each():
    lines = fault("[run]\nsed = 1\nrounds = -1\n[training]\nstep = 1\n[model]\nsource = 'm'\n").splitlines()
    assert len(lines) == 3
    assert all(line.startswith("c.toml: ") for line in lines)


def test_paths_are_relative_to_the_file(tmp_path: Path):
    (tmp_path / "texts.jsonl").write_text("")
    file = tmp_path / "c.toml"
    file.write_text(SMALLEST + '[data]\nsource = "texts.jsonl"\n')
    config = load_config(file)
    assert config.data.source == str(tmp_path / "texts.jsonl")
    assert config.model.source == "some/model"


def test_clients_take_the_ranks_in_turn_and_their_scales():
    adapter = parse_config(SMALLEST + "[adapter]\nranks = [4, 16]\nalpha = 8.0\n", "c.toml").adapter
    assert (adapter.each_rank, adapter.highest_rank, adapter.mixed) == ((4, 16), 16, True)
    assert (adapter.scale(4), adapter.scale(16)) == (2.0, 0.5)
    rooted = parse_config(SMALLEST + "[adapter]\nranks = [4, 4]\nrslora = true\n", "c.toml").adapter
    assert (rooted.scale(4), rooted.mixed) == (8.0, False)
    assert parse_config(SMALLEST, "c.toml").adapter.each_rank == (8,)


def test_a_byte_order_mark_is_dropped(tmp_path: Path):
    (tmp_path / "c.toml").write_bytes(b"\xef\xbb\xbf" + SMALLEST.replace("\n", "\r\n").encode())
    assert load_config(tmp_path / "c.toml") == parse_config(SMALLEST, "c.toml", tmp_path)


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(MissingError, match=r"nowhere\.toml: no such configuration file"):
        load_config(tmp_path / "nowhere.toml")


@pytest.mark.parametrize(
    ("section", "settings", "besides"),
    [
        (config_model.Adapter, client_settings.AdapterSettings, {"ranks"}),
        (sections.Training, client_settings.TrainingSettings, set()),
        (config_model.Pretrain, client_settings.PretrainingSettings, {"silos", "label"}),
    ],
)
def test_sections_have_the_fields_that_clients_take(section, settings, besides):
    assert set(section.model_fields) - besides == {field.name for field in dataclasses.fields(settings)}
    for field in dataclasses.fields(settings):
        assert section.model_fields[field.name].default == field.default, f"two defaults of {field.name}"


def test_python_documentation_brings_its_own_labels():
    assert parse_config(SMALLEST + "[partition]\nkind = 'dirichlet'\n", "c.toml").partition.column is None


def test_an_arm_overrides_the_space():
    demo = parse_config(resources.files("fedcore.cli").joinpath("demo.toml").read_text(), "demo.toml")
    assert [demo.aggregation_of(arm).space for arm in demo.arms[:4]] == ["parameters"] * 2 + ["delta", "parameters"]


def test_the_key_reference_names_every_field_with_a_description():
    found = {key.name: key for key in keys()}
    assert found["run.rounds"] == ("run.rounds", "integer", "3", "federated rounds in each arm")
    assert found["model.quantization"].type == '"nf4" or "none"'
    assert found["arms[].attack.kind"].default == '"sign_flip"'
    assert found["adapter.target_modules"].type == "text or list of text"
    assert found["arms[].name"].default == ""
    assert len(found) > 50
    assert all(key.description for key in found.values())


FULL = """
[model]
source = "m"
[training]
proximal_mu = 0.1
[aggregation]
rule = "krum"
parameters = { f = 1 }
before = [{ rule = "norm_clipping", max_norm = 2.0 }, { rule = "norm_clipping", max_norm = 1.0 }]
space = "parameters"
[server]
optimizer = "fedyogi"
tau = 0.5
[[arms]]
name = "a"
attack = { kind = "min_max", clients = 2, perturbation = "sign" }
[[arms]]
name = "b"
server = { optimizer = "fedavgm", momentum = 0.5 }
before = []
[[arms]]
name = "c"
rule = "mean"
server = { optimizer = "none" }
"""


def test_chains_attacks_and_optimizers_are_made_and_round_trip():
    config = parse_config(FULL, "c.toml")
    assert parse_config(to_toml(config), "again") == config
    a, b, c = config.arms
    made = [make_chain(s.rule, s.parameters, s.before) for s in map(config.aggregation_of, config.arms)]
    clip = fc.rules.NormClipping
    assert made == [clip(2.0).then(clip(1.0)).then(fc.rules.Krum(1)), fc.rules.Krum(1), fc.rules.Mean()]
    assert [config.optimizer_of(arm) for arm in (a, b, c)] == [FedYogi(tau=0.5), FedAvgM(momentum=0.5), None]
    assert a.attack.made() == MinMax("sign")


def test_every_rule_of_the_library_can_be_named():
    names = rule_classes()
    expected = (
        "arc bucketing bulyan centered_clipping fltrust geometric_median krum mean mean_around_median median "
        "minimum_diameter_averaging monna multi_krum nearest_neighbor_mixing norm_clipping sign_majority "
        "spectral_filter trimmed_mean"
    )
    assert sorted(names) == expected.split()
    exported = {getattr(fc.rules, name) for name in fc.rules.__all__}
    rules = {
        c for c in exported if isinstance(c, type) and issubclass(c, fc.rules.Rule) and dataclasses.is_dataclass(c)
    }
    assert set(names.values()) == rules - {fc.rules.Composed}


def test_every_field_is_described():
    queue = [sections.Config]
    for section in queue:
        assert section.__doc__
        for name, field in section.model_fields.items():
            inner = section.model_fields[name].annotation
            if isinstance(inner, type) and issubclass(inner, sections.Section):
                queue.append(inner)
            elif section is not sections.Config:
                assert field.description, f"{section.__name__}.{name}"
