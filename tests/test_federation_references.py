"""Rules that look at more than the clients: a trusted update of the server's own, and a centre that remembers."""

from __future__ import annotations

from pathlib import Path

import fake_learner as fake
import numpy as np
import pytest
from fake_runs import Stopping, result, simulate
from test_federation_config import fault

import fedcore as fc
from fedcore.dtypes import round_from_float64, to_float64
from fedcore.errors import FormatError, RangeError
from fedcore.federation.center import moved_on
from fedcore.federation.config_file import parse_config
from fedcore.federation.data import Client, Texts, load_texts
from fedcore.federation.folder import RunFolder
from fedcore.updates import Cohort, Update

HEAD = fake.CONFIG[: fake.CONFIG.index("[aggregation]")]
RUN = (
    HEAD
    + """
[aggregation]
center = "moved_on"
[server]
data = "root.jsonl"
[[arms]]
name = "fltrust"
rule = "fltrust"
attack = { kind = "sign_flip", clients = 2, scale = 5.0 }
[[arms]]
name = "clipping"
rule = "centered_clipping"
parameters = { radius = 0.1, iterations = 2 }
[[arms]]
name = "clipping-parameters"
rule = "centered_clipping"
parameters = { radius = 0.1, iterations = 2 }
space = "parameters"
[[arms]]
name = "mean"
"""
)


def texts() -> Texts:
    held = fake.texts()
    root = Client("server-9", ("a text of the server",), {"": 1})
    return Texts(held.clients, held.public, held.held_out, held.questions, root)


class Learner(fake.FakeLearner):
    """The server's update is sent under the server's name, whatever the fake makes of its number."""

    def train(self, adapter, client, steps, seed, proximal_mu=0.0):
        update = super().train(adapter, client, steps, seed, proximal_mu)
        name = "server" if client.id == "server-9" else client.id
        return Update.from_tensors(
            update.tensors,
            scaling=update.scaling,
            base=update.base,
            client_id=name,
            num_examples=update.num_examples,
            adapter_config=update.adapter_config,
        )


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("references") / "run"
    simulate(folder, config=fake.config(RUN), texts=texts(), learner=Learner())
    return folder


def received(folder: Path, arm: str, number: int) -> dict[str, Update]:
    place = folder / "updates" / arm / f"round-{number:03d}"
    updates = [Update.from_bytes(path.read_bytes()) for path in sorted(place.glob("*.safetensors"))]
    return {update.client_id: update for update in updates}


def globals_of(folder: Path, arm: str) -> list[Update]:
    paths = sorted((folder / "arms" / arm).glob("round-*.safetensors"))
    return [Update.from_bytes(path.read_bytes()) for path in paths]


def test_fltrust_gets_the_servers_journaled_update_and_drops_the_poisoned(whole):
    before = globals_of(whole, "fltrust")
    for entry in (e for e in RunFolder.read(whole).ledger.entries if e["arm"] == "fltrust"):
        messages = received(whole, "fltrust", entry["round"])
        server = messages.pop("server")
        assert entry["server"] == server.digest()
        assert list(entry["inputs"]) == list(messages) == [f"client-{i}" for i in range(5)]
        again = fc.aggregate(
            Cohort(messages.values()), fc.rules.FLTrust(), reference=before[entry["round"] - 1], server=server
        )
        assert again.coefficients == entry["coefficients"]
        assert again.update.digest() == entry["output"]
        assert [entry["coefficients"][c] for c in ("client-3", "client-4")] == [0, 0]
        assert "not trusted" in entry["not_counted"]["client-4"]
        assert entry["reference_coefficients"].keys() == {"reference", "server"}


@pytest.mark.parametrize(("arm", "space"), [("clipping", "delta"), ("clipping-parameters", "parameters")])
def test_clipping_starts_where_the_last_rounds_change_leads(whole, arm, space):
    before = globals_of(whole, arm)
    rule = fc.rules.CenteredClipping(radius=0.1, iterations=2)
    for entry in (e for e in RunFolder.read(whole).ledger.entries if e["arm"] == arm):
        number = entry["round"]
        center = moved_on(before[number - 1], before[number - 2], space) if number > 1 else None
        clients = Cohort(received(whole, arm, number).values())
        again = fc.aggregate(clients, rule, space, before[number - 1], center=center)
        assert again.update.digest() == entry["output"]
        assert entry.get("center") == (center.digest() if center else None)
        if center:
            forgetful = fc.aggregate(clients, rule, space, before[number - 1])
            assert forgetful.update.digest() != entry["output"]


def test_only_the_rules_that_ask_have_the_server_train(whole):
    for arm in ("clipping", "clipping-parameters", "mean"):
        assert not list((whole / "updates" / arm).rglob("server.*"))
    bytes_up = {(e["arm"], e["round"]): e["bytes_up"] for e in RunFolder.read(whole).metrics.entries}
    sizes = [fake.payload(p) for p in (whole / "updates/fltrust/round-001").glob("client-*")]
    assert bytes_up["fltrust", 1] == sum(sizes)


@pytest.mark.parametrize("trainings", [9, 10, 11, 15, 16, 28, 37])
def test_interrupted_before_or_after_the_servers_training_it_ends_the_same(whole, tmp_path, trainings):
    class StoppingLearner(Stopping, Learner):
        pass

    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        simulate(folder, config=fake.config(RUN), texts=texts(), learner=StoppingLearner(after=trainings))
    simulate(folder, config=fake.config(RUN), texts=texts(), learner=Learner(), resume=True)
    assert result(folder) == result(whole)


def adapter(seed: int, scale: float = 2.0) -> Update:
    draw = np.random.default_rng(seed)
    tensors = {
        "m.lora_A.weight": draw.normal(size=(2, 5)),
        "m.lora_B.weight": draw.normal(size=(4, 2)),
        "bias": draw.normal(size=3),
    }
    held = {name: round_from_float64(values, "float32") for name, values in tensors.items()}
    return Update.from_tensors(held, scaling={"m": scale})


def delta(update: Update) -> np.ndarray:
    a, b = (to_float64(update.tensors[f"m.lora_{x}.weight"]) for x in "AB")
    return update.scaling["m"] * b @ a


@pytest.mark.parametrize("scale", [2.0, 0.5])
def test_the_centre_in_delta_space_moves_on_in_what_the_model_sees(scale):
    current, previous = adapter(0), adapter(1, scale)
    center = moved_on(current, previous, "delta")
    assert np.allclose(delta(center), 2 * delta(current) - delta(previous), atol=1e-6)
    assert np.allclose(center.tensors["bias"], 2 * current.tensors["bias"] - previous.tensors["bias"], atol=1e-6)


def low_rank(seed: int, rank: int, sides: tuple[int, int], dtype: str, size: float) -> Update:
    draw = np.random.default_rng(seed)
    values = {"A": size * draw.normal(size=(rank, sides[1])), "B": size * draw.normal(size=(sides[0], rank))}
    held = {f"m.lora_{name}.weight": round_from_float64(v, dtype) for name, v in values.items()}
    return Update.from_tensors(held, scaling={"m": 2.0})


@pytest.mark.parametrize("size", [1.0, 1e-3, 0.0])  # products of the smallest are no normal numbers in fp16
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("sides", [(4, 9), (9, 4), (4, 4)])
def test_the_centre_has_no_higher_rank_than_its_module(sides, dtype, size):
    """Its Δ is off by one rounding, beside the largest number."""
    current, previous = (low_rank(seed, 3, sides, dtype, size) for seed in (0, 1))
    center = moved_on(current, previous, "delta")
    assert center.modules["m"].rank == 4
    assert {tensor.dtype for tensor in center.tensors.values()} == {t.dtype for t in current.tensors.values()}
    exact = 2 * delta(current) - delta(previous)
    digits = {"float32": 24, "float16": 11, "bfloat16": 8}[dtype]
    assert np.abs(delta(center) - exact).max() <= 1.01 * 2.0**-digits * np.abs(exact).max()
    assert moved_on(current, previous, "delta").digest() == center.digest()


class Rank3Learner(fake.FakeLearner):
    """Twice its rank is more than the smaller side of its layer, 6 × 4."""

    def initial(self):
        return self._update(np.zeros((6, 3), np.float32), np.eye(3, 4, dtype=np.float32), "", 1)

    def _update(self, b, a, *others):
        update = super()._update(b[:, :2], a[:2], *others)
        config = update.adapter_config | {"r": 3, "lora_alpha": 6}
        tensors = {f"{fake.MODULE}.lora_A.weight": a, f"{fake.MODULE}.lora_B.weight": b}
        return Update.from_tensors(
            tensors,
            scaling=update.scaling,
            base=update.base,
            client_id=update.client_id,
            num_examples=update.num_examples,
            adapter_config=config,
        )


def test_a_run_whose_rank_is_above_half_a_side_goes_on_from_its_centre(tmp_path):
    body = RUN[RUN.index('name = "clipping"') : RUN.index('[[arms]]\nname = "clipping-parameters"')]
    config = fake.config(f'{HEAD}[aggregation]\ncenter = "moved_on"\n[[arms]]\n{body}')

    class StoppingLearner(Stopping, Rank3Learner):
        pass

    whole = simulate(tmp_path / "whole", config=config, learner=Rank3Learner())
    assert [bool(entry.get("center")) for entry in whole.ledger.entries] == [False, True, True]
    with pytest.raises(KeyboardInterrupt):
        simulate(tmp_path / "run", config=config, learner=StoppingLearner(after=17))
    simulate(tmp_path / "run", config=config, learner=Rank3Learner(), resume=True)
    assert result(tmp_path / "run") == result(tmp_path / "whole")


def test_the_centre_in_parameters_space_moves_on_element_by_element():
    current, previous = adapter(0), adapter(1)
    center = moved_on(current, previous, "parameters")
    for name, tensor in center.tensors.items():
        exact = 2 * current.tensors[name].astype(np.float64) - previous.tensors[name]
        assert np.array_equal(tensor, exact.astype(np.float32))
    large, small = (Update.from_tensors({"w": np.full(2, v, np.float16)}) for v in (6e4, -6e4))
    with pytest.raises(RangeError, match=r"center: tensor 'w' does not fit float16"):
        moved_on(large, small, "parameters")


def test_a_rule_without_what_it_needs_is_a_fault_of_the_file():
    file = '[model]\nsource = "m"\n[aggregation]\n'
    assert "c.toml: server.data: missing; FLTrust() compares with" in fault(file + "rule = 'fltrust'\n")
    for space in ("delta", "parameters"):
        parse_config(file + f"rule = 'median'\nspace = '{space}'\n", "c.toml")


def test_the_servers_texts_are_read_as_data_is(tmp_path):
    lines = "".join(f'{{"body": "some words of text number {i}"}}\n' for i in range(60))
    (tmp_path / "texts.jsonl").write_text(lines)
    (tmp_path / "root.jsonl").write_text('{"body": "clean"}\n{"body": "texts"}\n')
    text = """
[model]
source = "m"
[data]
source = "texts.jsonl"
text = "body"
[partition]
clients = 2
[aggregation]
rule = "fltrust"
[server]
data = "root.jsonl"
"""
    config = parse_config(text, "c.toml", tmp_path)
    assert config.server.data == str(tmp_path / "root.jsonl")
    assert load_texts(config).server == Client("server", ("clean", "texts"), {"": 2})
    (tmp_path / "root.jsonl").write_text('{"body": " "}\n')
    with pytest.raises(FormatError, match=r"root\.jsonl: got no text"):
        load_texts(config)
