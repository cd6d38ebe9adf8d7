"""What clients send in a run: formats, and messages that are refused, left out or only found out by aggregation."""

from __future__ import annotations

from pathlib import Path

import fake_learner as fake
import numpy as np
import pytest
from fake_runs import result, simulate

from fedcore.errors import ConfigError, FormatError, NonFiniteError, RangeError
from fedcore.federation.folder import RunFolder
from fedcore.updates import Update


class Damaged:
    def __init__(self, update: Update):
        self.update = update

    def to_bytes(self) -> bytes:
        return self.update.to_bytes()[:-1]


def again(update: Update, **changes) -> Update:
    fields = {"client_id": update.client_id, "base": update.base, "scaling": update.scaling, "tensors": update.tensors}
    return Update.from_tensors(**fields | changes)


@pytest.mark.parametrize(
    ("lie", "said"),
    [
        (Damaged, "message of client 'client-2'"),
        (lambda u: again(u, client_id="client-3"), "says it is from 'client-3'"),
        (lambda u: again(u, base="0" * 64), "its base is '0000"),
        (lambda u: again(u, scaling={fake.MODULE: 9.0}), "its scales differ"),
        (lambda u: again(u, tensors={k: np.float16(v) for k, v in u.tensors.items()}), "float16"),
    ],
)
def test_a_message_that_cannot_count_is_not_acknowledged(tmp_path, lie, said):
    folder = tmp_path / "run"

    class Lying(fake.FakeLearner):
        def train(self, adapter, client, steps, seed, proximal_mu=0.0):
            update = super().train(adapter, client, steps, seed)
            # alone, each client trains for all rounds at once and sends nothing
            return lie(update) if client.id == "client-2" and len(self.trained) > 5 else update

    with pytest.raises(FormatError, match=said):
        simulate(folder, learner=Lying())
    assert {path.name[:8] for path in (folder / "updates").rglob("*.*")} == {"client-0", "client-1"}
    simulate(folder, resume=True)


class Cancelling(fake.FakeLearner):
    """One client's two terms are huge and cancel: finite, and fp64 cannot tell their sum."""

    def train(self, adapter, client, steps, seed, proximal_mu=0.0):
        update = super().train(adapter, client, steps, seed)
        if client.id != "client-2":
            return update
        huge = np.array(update.tensors[f"{fake.MODULE}.lora_B.weight"]) + np.float32([1e25, -1e25])
        return again(update, tensors=dict(update.tensors) | {f"{fake.MODULE}.lora_B.weight": huge})


def test_a_client_that_only_aggregation_finds_out_comes_with_what_to_do(tmp_path):
    said = r"client-2.*; or start a new run with aggregation\.on_nonfinite = \"exclude\""
    with pytest.raises(NonFiniteError, match=said):
        simulate(tmp_path / "run", learner=Cancelling())


class Poison(fake.FakeLearner):
    """One client sends a NaN."""

    def train(self, adapter, client, steps, seed, proximal_mu=0.0):
        update = super().train(adapter, client, steps, seed)
        b = np.array(update.tensors[f"{fake.MODULE}.lora_B.weight"])
        b[1, 1] = np.nan if client.id == "client-2" else b[1, 1]
        return self._update(b, np.array(update.tensors[f"{fake.MODULE}.lora_A.weight"]), client.id, update.num_examples)


def test_a_nan_names_the_client_or_leaves_it_out(tmp_path):
    with pytest.raises(NonFiniteError, match=r"'client-2'.*lora_B.* at element 3; .*on_nonfinite = \"exclude\""):
        simulate(tmp_path / "raise", learner=Poison())
    # refused before it was acknowledged: a resumed run does not find it
    assert not list((tmp_path / "raise/updates").rglob("client-2.*"))
    text = fake.CONFIG.replace('rule = "mean"\n[[arms]]', 'rule = "mean"\non_nonfinite = "exclude"\n[[arms]]')
    simulate(tmp_path / "exclude", learner=Poison(), config=fake.config(text), texts=fake.texts(6))
    for entry in RunFolder.read(tmp_path / "exclude").ledger.entries:
        assert "client-2" in entry["excluded"]
        assert "client-2" not in entry["coefficients"]
        assert "client-2" not in entry["change_norms"]


class PoisonTrained(Poison):
    """The same, asked for factors by a method."""

    def train(self, adapter, client, steps, seed, proximal_mu=0.0, **options):
        return super().train(adapter, client, steps, seed, proximal_mu)


@pytest.mark.parametrize("method", ["fedit", "flexlora", "ffa_lora"])
def test_what_to_do_about_a_nan_under_a_method_can_be_done(tmp_path, method):
    head = fake.CONFIG[: fake.CONFIG.index("[aggregation]")] + "[aggregation]\n"
    with pytest.raises(NonFiniteError) as caught:
        simulate(tmp_path / "run", learner=PoisonTrained(), config=fake.config(f'{head}method = "{method}"\n'))
    assert str(caught.value).startswith("client 'client-2': tensor ")
    assert str(caught.value).endswith(
        "at element 3; start a new run with a lower training.learning_rate, or with aggregation.on_nonfinite = "
        '"exclude" and a rule in place of the method, which counts every client'
    )
    with pytest.raises(ConfigError, match="methods count every client"):
        fake.config(f'{head}method = "{method}"\non_nonfinite = "exclude"\n')
    config = fake.config(f'{head}rule = "mean"\non_nonfinite = "exclude"\n')
    folder = simulate(tmp_path / "again", learner=PoisonTrained(), config=config)
    assert all("client-2" in entry["excluded"] for entry in folder.ledger.entries)


@pytest.mark.parametrize("format", ["float32", "bfloat16", "int8", "nf4"])
@pytest.mark.parametrize("space", ["delta", "parameters"])
def test_messages_travel_in_the_format_asked_for(tmp_path, format, space):
    """The journal holds what was sent, the next round starts from plain fp32, and training gets there all the same."""
    asked = f'[message]\nformat = "{format}"\n[aggregation]\nspace = "{space}"'
    run = simulate(tmp_path / "run", config=fake.config(fake.CONFIG.replace("[aggregation]", asked)))
    for arm in ("mean", "krum"):
        receipts = run.journal.received(arm, 2)
        received = [Update.from_bytes(receipt.open()) for receipt in receipts.values()]
        assert {(f, d) for u in received for f, d in zip(u.layout.formats, u.layout.dtypes, strict=True)} == {
            (format, "float32")
        }
        line = run.metrics.find(arm=arm, round=2)
        assert line["bytes_up"] == sum(fake.payload(receipt.path) for receipt in receipts.values())
        # in delta space the factors that come back are balanced ones, in which this learner's goal means little
        if space == "parameters":
            assert run.metrics.find(arm=arm, round=3)["loss"] < 0.4 * run.metrics.find(arm=arm, round=1)["loss"]
    found = Update.from_peft(tmp_path / "run" / "adapter")
    assert set(found.layout.formats) == set(found.layout.dtypes) == {"float32"}
    assert result(tmp_path / "run") == result(simulate(tmp_path / "again", config=run_config(tmp_path / "run")).path)


def run_config(folder: Path):
    """The configuration that a run folder keeps."""
    return fake.config((folder / "config.toml").read_text())


def test_a_client_whose_numbers_do_not_fit_the_format_is_named(tmp_path):
    class Far(fake.FakeLearner):
        def train(self, adapter, client, steps, seed, proximal_mu=0.0):
            update = super().train(adapter, client, steps, seed)
            tensors = {name: np.array(tensor) for name, tensor in update.tensors.items()}
            tensors[f"{fake.MODULE}.lora_B.weight"][1, 1] = 1e5
            return Update.from_tensors(
                tensors, client_id=client.id, scaling=update.scaling, base=update.base, num_examples=3
            )

    config = fake.config(fake.CONFIG.replace("[aggregation]", '[message]\nformat = "float16"\n[aggregation]'))
    with pytest.raises(RangeError, match=r"client 'client-0': tensor '.*lora_B.weight': .* float16; .*message.format"):
        simulate(tmp_path / "run", config=config, learner=Far())
