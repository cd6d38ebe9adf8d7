"""Private runs in which clients add the noise: each for itself, or for the sum."""

from __future__ import annotations

import math
import os
import shutil

import fake_learner as fake
import numpy as np
import pytest
from private_runs import SMALL, B, Interrupting, budget, config, dies, fake_seed, run
from safetensors.numpy import save

import fedcore as fc
from fedcore.cli import main
from fedcore.errors import FormatError, PrivacyError, Void
from fedcore.federation import client_noise, private_round
from fedcore.federation.config_privacy import Privacy
from fedcore.federation.config_secure import Secure
from fedcore.federation.folder import RunFolder
from fedcore.federation.privacy_mechanisms import distributed, multiplier_for
from fedcore.federation.privacy_notes import scope
from fedcore.federation.private_run import read_plan
from fedcore.federation.secure_sum import with_honest
from fedcore.privacy import secagg
from fedcore.privacy.accountant import spent
from fedcore.privacy.discrete_sums import charge_of_sum
from fedcore.report.html import write_report
from fedcore.report.privacy import lines
from fedcore.report.table import rows

pytest.importorskip("dp_accounting", reason="budgets need dp-accounting, of the extra `train`")


class Other(fake.FakeLearner):
    """Trains to another result, as on another machine."""

    def train(self, adapter, client, steps, seed, *arguments, **options):
        return super().train(adapter, client, steps + 1, seed + 1, *arguments, **options)


def test_noise_at_each_client_adds_up_and_nothing_else_leaves_it(tmp_path):
    folder, plan = run(tmp_path / "run", config(SMALL + 'mode = "local"\n', rounds=1)), read_plan(tmp_path / "run")
    assert plan.neighbours == "replace_one"
    assert plan.charged == pytest.approx(2 * fc.privacy.noise_multiplier(epsilon=20, delta=1e-5), rel=1e-3)
    *_, alone, note = plan.notes
    assert "the budget is of this run alone" in alone
    assert f"signal-to-noise ratio of a round is at most {math.sqrt(5) / plan.charged / math.sqrt(12):.2g}" in note
    learner, start = fake.FakeLearner(), fc.privacy.orthonormal(fake.FakeLearner().initial())
    total, noise = np.zeros(12), []
    for client, receipt in folder.journal.received("one", 1).items():
        sent = np.frombuffer(receipt.path.read_bytes()[-48:], np.float32).astype(np.float64)
        own = next(c for c in fake.texts().clients if c.id == client)
        true = np.float64(learner.train(start, own, 12, fake_seed(client), trains=("b",)).tensors[B]).ravel()
        noise.append(sent - true * min(1, 1 / np.linalg.norm(true)))
        total += sent
    assert 0.7 < np.std(noise) / plan.charged < 1.3  # 60 draws
    reached = folder.rounds.load_global("one", 1, folder.ledger.entries[0]["output"]).tensors[B]
    assert np.allclose(np.ravel(reached), total / 5, atol=1e-5)
    assert len(budget(tmp_path / "run").charges) == 1


NUMBERS = [np.full(12, bad, np.float32) for bad in (np.nan, 3e38, 60.0)]
SHAPES = [np.zeros(5, np.float32), np.zeros((3, 4), np.float32), np.zeros(12, np.float64)]
FORMATS = [b"", b"no message", save({"other": np.zeros(12, np.float32)})]


@pytest.mark.parametrize(
    "bad", [[save({"statistic": bad}) for bad in NUMBERS], [save({"statistic": bad}) for bad in SHAPES], FORMATS]
)
def test_what_is_no_noisy_term_counts_as_zero_over_the_same_denominator(tmp_path, monkeypatch, bad):
    sent = {f"client-{number}": data for number, data in enumerate(bad, 1)}

    def sending(self, client, update):
        data = real(self, client, update)
        return sent.get(client.id, data)

    real = client_noise.LocalMode.message
    monkeypatch.setattr(client_noise.LocalMode, "message", sending)
    folder = run(tmp_path / "run", config(SMALL + 'mode = "local"\n', rounds=1))
    each = folder.journal.received("one", 1)
    counted = [
        np.frombuffer(each[name].path.read_bytes()[-48:], np.float32).astype(float) for name in each.keys() - sent
    ]
    reached = folder.rounds.load_global("one", 1, folder.ledger.entries[0]["output"]).tensors[B]
    assert np.allclose(np.ravel(reached), sum(counted) / 5, atol=1e-5)
    assert list(folder.private.kept("one", 1)["not_counted"]) == sorted(sent)
    assert "not_counted" not in folder.ledger.entries[0]["privacy"]


def test_noise_of_all_clients_together_hides_the_sum_and_too_few_void_the_round(tmp_path):
    text = 'epsilon = 45\ndelta = 1e-3\nmode = "distributed"\nfewest_clients = 4\n'
    folder, plan = run(tmp_path / "run", config(text, rounds=1)), read_plan(tmp_path / "run")
    (entry,) = folder.ledger.entries
    assert entry["privacy"]["epsilon"] == pytest.approx(45, rel=2e-3)
    assert entry["privacy"]["epsilon"] <= 45
    # of five clients where the noise is made for the three beside a fourth, who knows its own
    assert entry["privacy"]["noise_of_mean"] == pytest.approx(plan.charged * math.sqrt(5 / 3) / 5, rel=0.1)
    assert any("ε holds towards the participants too" in note for note in plan.notes)
    reached = np.float64(folder.rounds.load_global("one", 1, entry["output"]).tensors[B])
    learner, start = fake.FakeLearner(), fc.privacy.orthonormal(fake.FakeLearner().initial())
    true = [learner.train(start, c, 12, fake_seed(c.id), trains=("b",)).tensors[B] for c in fake.texts().clients]
    mean = sum(np.float64(b) * min(1, 1 / np.linalg.norm(b)) for b in true) / 5
    assert np.abs(reached - mean).max() < 6 * entry["privacy"]["noise_of_mean"]

    real = client_noise.DistributedMode.release
    few = lambda self, receipts: real(self, dict(list(receipts.items())[:3]))  # noqa: E731
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(client_noise.DistributedMode, "release", few)
        folder = run(tmp_path / "void", config(text))
    assert budget(tmp_path / "void", concentrated=True).charges == []
    assert [entry["privacy"]["epsilon"] for entry in folder.ledger.entries] == [0, 0]
    assert len({entry["output"] for entry in folder.ledger.entries} | {start.digest()}) == 1
    said = lines(read_plan(tmp_path / "void"), rows(folder.metrics.entries), folder.ledger.entries)
    assert f"one round 1: {client_noise.FEW}" in said
    assert folder.private.kept("one", 1)["void"] == "3 messages of at least 4"


@pytest.mark.parametrize("clients", [2, 3, 5, 8])
@pytest.mark.parametrize("masks", [[], [Secure()], [Secure(adversary="semi_honest", dropout=0.0)]])
def test_epsilon_holds_towards_a_participant_who_knows_its_own_noise(clients, masks):
    settings = Privacy(epsilon=4, delta=1e-3, mode="distributed")
    if masks and clients == 2:
        with pytest.raises(PrivacyError, match="one participant, who knows its own noise, counts as corrupt"):
            with_honest(settings, masks, clients)
        return
    settings = with_honest(settings, masks, clients) if masks else settings
    plan = {"epsilon": 4, "delta": 1e-3, "rounds": 4, "sampling": "none", "concentrated": True, "dimension": 8192}
    multiplier = multiplier_for(settings, clients, 1000, fc.privacy.noise_multiplier(**plan))
    made = distributed(settings, clients, 1000, multiplier)
    assert made.fewest > made.corrupt >= 1
    # the noises of the fewest in a sum, but its own
    seen = charge_of_sum(made.sigma, made.fewest - 1, math.sqrt(made.bound), made.padded, 4)
    assert spent([seen], 1e-3, "none", "add_remove") <= 4
    if masks:
        assert secagg.Parameters.for_distributed(made, adversary=masks[0].adversary).corrupt >= 1


def test_a_sum_of_one_has_no_other_participant():
    settings = Privacy(epsilon=4, delta=1e-3, mode="distributed")
    assert distributed(settings, 1, 10, 1.0).corrupt == 0
    assert not any("participants" in note for note in scope(settings, 1, ()))


def test_a_sum_is_charged_before_it_is_unmasked_and_a_void_under_masks_stays_charged(tmp_path, monkeypatch):
    def failing(self, receipts):
        assert len(budget(path, concentrated=True).charges) == 1
        raise Void("shares of 'client-3' came")

    path = tmp_path / "run"
    monkeypatch.setattr(client_noise.DistributedMode, "_total", failing)
    folder = run(path, config('epsilon = 45\ndelta = 1e-3\nmode = "distributed"\n', rounds=1))
    (entry,) = folder.ledger.entries
    assert entry["privacy"]["void"] == client_noise.UNOPENED
    assert folder.private.kept("one", 1)["void"] == "shares of 'client-3' came"
    assert entry["privacy"]["epsilon"] == pytest.approx(45, rel=2e-3)
    page = write_report(folder).read_text()
    assert client_noise.UNOPENED in page
    for file in (path / "ledger.jsonl", path / "metrics.jsonl", path / "report.html"):
        assert "client-" not in file.read_text()


def test_a_client_with_noise_of_its_own_sends_one_message_a_round(tmp_path):
    """Lost messages come again bit for bit, also where training would come to others, which no charge covers."""
    path, settings = tmp_path / "run", config(SMALL + 'mode = "local"\n', rounds=2)
    dies(path, client_noise, "mark_sent", 8, settings)  # the third client's of round 2 is marked and has not arrived
    sent, other = sorted((path / "private/updates/one/round-002").iterdir())
    for file in (sent, other):
        os.utime(file, (0, 0))
    assert RunFolder.read(path).expired == 0
    said, kept = sent.read_bytes(), sorted((path / "private/budget.sent").glob("*/*.message"))
    assert len(kept) == 3
    assert not any(said[-48:] in file.read_bytes() for file in kept)  # sealed
    sent.unlink()
    other.unlink()
    whole = kept[0].read_bytes()
    kept[0].write_bytes(whole[:-1])
    with pytest.raises(FormatError, match=r"does not open: the message that client-[0-2] was sending was changed"):
        run(path, settings, resume=True, learner=Other())
    kept[0].write_bytes(whole)
    folder = run(path, settings, resume=True, learner=Other())
    assert sent.read_bytes() == said
    assert len(folder.ledger.entries) == 2
    assert list((path / "private/budget.sent").glob("*/*.message")) == []
    assert main(["report", str(path), "--destroy-noise-keys"]) == 0
    assert not (path / "private/secret").exists()


def test_messages_are_kept_until_their_round_is_in_the_ledger(tmp_path, monkeypatch):
    path, settings = tmp_path / "run", config(SMALL + 'mode = "local"\n', rounds=1)
    kept = lambda: len(list((path / "private/budget.sent").glob("*/*.message")))  # noqa: E731

    def failing(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(client_noise, "_public", failing)  # when all have arrived
        with pytest.raises(KeyboardInterrupt):
            run(path, settings)
    assert kept() == 5
    sent = min((path / "private/updates/one/round-001").iterdir())
    said = sent.read_bytes()
    sent.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(private_round, "forget_messages", failing)
        with pytest.raises(KeyboardInterrupt):
            run(path, settings, resume=True, learner=Other())
    assert sent.read_bytes() == said
    assert kept() == 5
    assert len(run(path, settings, resume=True).ledger.entries) == 1
    assert kept() == 0


def test_a_run_folder_that_was_put_back_sends_no_second_message_and_repeats_the_first(tmp_path):
    """Its budget lies elsewhere and has what clients sent since."""
    path, elsewhere = tmp_path / "run", f'mode = "local"\nbudget = "{tmp_path}/people.budget"\n'
    settings = config(SMALL + elsewhere, rounds=2)
    with pytest.raises(KeyboardInterrupt):
        run(path, settings, learner=Interrupting(after=5))
    shutil.copytree(path, tmp_path / "backup")
    before = run(path, settings, resume=True)
    said = {client: one.path.read_bytes() for client, one in before.journal.received("one", 2).items()}
    path.rename(tmp_path / "lost")
    (tmp_path / "backup").rename(path)
    with pytest.raises(PrivacyError, match="client-0 sent another message under charge 3, which this run folder has"):
        run(path, settings, resume=True, learner=Other())
    again = run(path, settings, resume=True)
    assert {client: one.path.read_bytes() for client, one in again.journal.received("one", 2).items()} == said
    assert again.ledger.entries == before.ledger.entries
    marks = [mark.name for mark in (tmp_path / "people.budget.sent").glob("*/*")]
    assert len(marks) == 10
    assert not any("client" in mark for mark in marks)
