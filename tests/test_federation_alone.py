"""Training alone under masks: a client that cannot is left out and said, where all arms go on without it."""

from __future__ import annotations

import fake_learner as fake
import pytest
from test_federation_secure import BASE, CLIENTS, MEAN, arms

from fedcore.errors import TrainingError
from fedcore.federation.config_file import parse_config
from fedcore.federation.folder import RunFolder
from fedcore.federation.simulation import run_arms
from fedcore.report.html import page
from fedcore.report.table import as_rich, rows

MASKS = "secure = { dropout = 0.2, corrupt = 0.0 }\n"


class Failing(fake.FakeLearner):
    """Clients that cannot train, neither alone nor in an arm; and a run that stops after so many trainings."""

    def __init__(self, failing, after=10**6):
        super().__init__()
        self.failing, self.after = failing, after

    def train(self, adapter, client, *rest, **options):
        if len(self.trained) >= self.after:
            raise KeyboardInterrupt
        update = super().train(adapter, client, *rest, **options)
        if client.id in self.failing:
            raise TrainingError(f"client {client.id!r}: the loss is NaN")
        return update


def run(path, body, learner, told=None, resume=False):
    config = parse_config(MASKS + BASE + body, "c.toml")
    progress = (lambda *where, **facts: told.append(facts)) if told is not None else (lambda *_, **__: None)
    return run_arms(config, fake.texts(CLIENTS), learner, path, resume=resume, progress=progress)


def alone(folder):
    return [line for line in folder.metrics if line["arm"] == "local-only"]


def test_a_client_that_cannot_train_alone_is_left_out_of_the_mean_and_said(tmp_path):
    told: list[dict] = []
    folder = run(tmp_path / "run", arms(a=MEAN), Failing(["client-2"]), told)
    lines = alone(folder)
    assert [line["client"] for line in lines] == [f"client-{i}" for i in range(CLIENTS)]
    assert [line.get("failed", False) for line in lines] == [i == 2 for i in range(CLIENTS)]
    assert (lines[2]["loss"], lines[2]["perplexity"], lines[2]["accuracy"]) == (None, None, None)
    assert {"failed": "client 'client-2': the loss is NaN"} in told
    for entry in folder.ledger.entries:
        assert entry["excluded"] == {"client-2": "dropped out"}
    (row,) = [row for row in rows(list(folder.metrics)) if row.name == "local-only"]
    known = [line["loss"] for line in lines if "failed" not in line]
    assert row.loss == pytest.approx(sum(known) / (CLIENTS - 1))
    assert row.failed == 1
    # what is told last is the table's
    assert [facts["loss"] for facts in told if facts.keys() == {"loss"}][CLIENTS - 1] == pytest.approx(row.loss)
    said = "ocal-only leaves out 1 client that could not train"
    assert said in page(folder)
    assert said in as_rich(rows(list(folder.metrics)), "run", 0).caption


def test_a_resumed_run_does_not_try_it_again(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", arms(a=MEAN), Failing(["client-2"], after=4))
    learner = fake.FakeLearner()
    folder = run(tmp_path / "run", arms(a=MEAN), learner, resume=True)
    assert learner.trained[:2] == ["client-4", "client-5"]
    assert alone(folder)[2]["failed"]


@pytest.mark.parametrize("first", [MEAN + "secure = false", 'method = "fedit"\nsecure = false'])
def test_where_an_arm_cannot_go_on_without_it_the_run_ends_before_the_arms(tmp_path, first):
    with pytest.raises(TrainingError, match="client-2"):
        run(tmp_path / "run", arms(a=MEAN, b=first), Failing(["client-2"]))
    assert len(alone(RunFolder.read(tmp_path / "run"))) == 2


def test_all_failing_leave_no_mean():
    line = {"arm": "local-only", "round": 2, "loss": None, "perplexity": None, "accuracy": None, "failed": True}
    lines = [line | {"client": name, "bytes_up": 0, "bytes_down": 0, "seconds": {}} for name in "ab"]
    (row,) = rows(lines)
    assert (row.loss, row.perplexity, row.failed) == (None, None, 2)
