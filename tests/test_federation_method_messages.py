"""Messages of LoRA methods in another format: what travels is rounded, and what does not stays as it was."""

from __future__ import annotations

import fake_learner as fake
import numpy as np
import pytest
from fake_runs import result, simulate
from test_federation_config import fault

from fedcore.federation.methods import named_method
from fedcore.lora import METHODS

HEAD = fake.CONFIG[: fake.CONFIG.index("[aggregation]")]
NAMES = [name for name in METHODS if name != "randomized_sketch"]


def config(name: str, format: str):
    return fake.config(f'{HEAD}[message]\nformat = "{format}"\n[aggregation]\nmethod = "{name}"\n')


class Stopping(fake.FakeLearner):
    """Ctrl+C within the second round."""

    def train(self, *arguments, **options):
        if len(self.trained) == 13:
            raise KeyboardInterrupt
        return super().train(*arguments, **options)


@pytest.mark.parametrize("format", ["bfloat16", "int8"])
@pytest.mark.parametrize("name", NAMES)
def test_a_method_runs_on_messages_in_another_format_also_after_a_resumption(tmp_path, name, format):
    folder = simulate(tmp_path / "run", config=config(name, format))
    with pytest.raises(KeyboardInterrupt):
        simulate(tmp_path / "again", config=config(name, format), learner=Stopping())
    simulate(tmp_path / "again", config=config(name, format), resume=True)
    assert result(tmp_path / "again") == result(tmp_path / "run")
    for number in (1, 2):
        receipts = folder.journal.received("federated", number)
        sent = [receipt.update() for receipt in receipts.values()]
        assert {found for update in sent for found in update.layout.formats} == {format}
        line = folder.metrics.find(arm="federated", round=number)
        assert line["bytes_up"] == sum(fake.payload(receipt.path) for receipt in receipts.values())
        travelled = folder.ledger.find(arm="federated", round=number)["report"]["bytes"]
        assert {client: counts["up"] for client, counts in travelled.items()} == {
            client: fake.payload(receipt.path) for client, receipt in receipts.items()
        }


@pytest.mark.parametrize("name", ["ffa_lora", "rolora"])
def test_a_frozen_factor_stays_as_it_was(tmp_path, name):
    folder, method = simulate(tmp_path / "run", config=config(name, "int8")), named_method(name, {})
    before = folder.rounds.load_global("federated", 0, folder.ledger.entries[0]["reference"])
    for entry in folder.ledger.entries:
        after = folder.rounds.load_global("federated", entry["round"], entry["output"])
        (trained,) = method.trains(entry["round"])
        for factor in "ab":
            tensor = f"{fake.MODULE}.lora_{factor.upper()}.weight"
            same = np.array_equal(before.tensors[tensor], after.tensors[tensor])
            assert same == (factor != trained)
        before = after


def test_sketches_and_private_messages_have_no_other_format():
    text = f'{HEAD}[message]\nformat = "int8"\n[aggregation]\nmethod = '
    assert fault(text + '"randomized_sketch"\n') == (
        'c.toml: arms[0]: randomized_sketch: got message.format = "int8", and sketches travel, which no format is for; '
        "leave it out"
    )
    assert fault(text + '"ffa_lora"\n[privacy]\nepsilon = 8\ndelta = 1e-3\n') == (
        'c.toml: message.format: got "int8" with [privacy], whose messages go as they are clipped or noised; leave it '
        "out"
    )
