"""What stays with a client under masks: kept through dropouts, for its owner alone, checked when a run goes on."""

from __future__ import annotations

import fake_learner as fake
import numpy as np
import pytest
from fake_runs import result
from test_federation_secure import BASE, CLIENTS, arms

from fedcore.errors import LayoutError, MissingError, TrainingError
from fedcore.federation import client_disks
from fedcore.federation.client_disks import ClientDisks
from fedcore.federation.config_file import parse_config
from fedcore.federation.simulation import run_arms
from fedcore.updates import Update

BODY = "secure = true\n" + BASE.replace("rounds = 2", "rounds = 3") + arms(own='method = "fedsa_lora"')
B = f"{fake.MODULE}.lora_B.weight"
DISK = "clients/own"


class Watched(fake.FakeLearner):
    """Remembers what each client of the arm began with and ended with; `failing` cannot train in those rounds."""

    def __init__(self, failing=()):
        super().__init__()
        self.failing, self.began, self.ended = set(failing), {}, {}
        self._initial = super().initial()

    def initial(self):
        return self._initial  # one object, so that no client has a start of its own before it trained

    def train(self, adapter, client, *rest, **options):
        if "trains" not in options:
            return super().train(adapter, client, *rest, **options)
        number = 1 + sum(1 for name, _ in self.began if name == client.id)
        self.began[client.id, number] = np.array(adapter.tensors[B])
        if (client.id, number) in self.failing:
            raise TrainingError(f"client {client.id!r}: out of memory")
        update = super().train(adapter, client, *rest, **options)
        self.ended[client.id, number] = np.array(update.tensors[B])
        return update


def run(path, learner=None, *, resume=False, body=BODY):
    config = parse_config(body, "c.toml")
    return run_arms(config, fake.texts(CLIENTS), learner or Watched(), path, resume=resume)


def test_one_dropout_takes_nothing_of_what_stays_with_the_client(tmp_path):
    learner = Watched([("client-2", 2)])
    folder = run(tmp_path / "run", learner)
    assert folder.ledger.find(arm="own", round=2)["excluded"] == {"client-2": "dropped out"}
    assert np.abs(learner.ended["client-2", 1]).max() > 0.1
    np.testing.assert_array_equal(learner.began["client-2", 3], learner.ended["client-2", 1])
    np.testing.assert_array_equal(learner.began["client-3", 3], learner.ended["client-3", 2])
    # with the A of those that came
    entry = folder.ledger.find(arm="own", round=2)
    shared = folder.rounds.load_global("own", 2, entry["output"])
    a = f"{fake.MODULE}.lora_A.weight"
    start = folder.rounds.load_start("own", 2, entry).of("client-2")
    np.testing.assert_array_equal(np.array(start.tensors[a]), np.array(shared.tensors[a]))


def test_who_never_trained_starts_from_the_global_adapter(tmp_path):
    learner = Watched([("client-2", 1), ("client-2", 2)])
    folder = run(tmp_path / "run", learner)
    for number in (1, 2):
        entry = folder.ledger.find(arm="own", round=number)
        assert "client-2" not in entry["starts"]
        assert len(entry["starts"]) == CLIENTS - 1
    assert not learner.began["client-2", 3].any()
    assert "client-2" in folder.ledger.find(arm="own", round=3)["starts"]


def test_what_stays_with_a_client_lies_on_its_own_disk_alone(tmp_path):
    learner = Watched()
    folder = run(tmp_path / "run", learner)
    own = [values.tobytes() for values in learner.ended.values()]
    assert len(own) == 3 * CLIENTS
    for path in (path for path in folder.path.rglob("*") if path.is_file()):
        disk = path.relative_to(folder.path).parts[0] == "clients"
        assert disk or not any(values in path.read_bytes() for values in own), path
        assert not disk or path.stat().st_mode & 0o777 == 0o600, path
    assert (folder.path / "clients").stat().st_mode & 0o777 == 0o700
    assert len(list((folder.path / DISK).iterdir())) == 3 * CLIENTS


def test_the_ledger_confirms_no_guess_of_what_a_client_holds(tmp_path):
    """Its digests are of this run's key: not the plain ones, not those of a run with the same adapters."""
    folders = [run(tmp_path / name) for name in ("one", "two")]
    entries = [folder.ledger.find(arm="own", round=2) for folder in folders]
    assert entries[0]["output"] == entries[1]["output"]
    said = [set(entry["starts"].values()) for entry in entries]
    starts = folders[0].rounds.load_start("own", 2, entries[0]).starts
    assert starts.keys() == entries[0]["starts"].keys() == {f"client-{i}" for i in range(CLIENTS)}
    assert not said[0] & said[1]
    assert not said[0] & {start.digest() for start in starts.values()}


@pytest.mark.parametrize("after", [CLIENTS * 2, CLIENTS * 2 + 3, CLIENTS * 3 + 1])
def test_an_interrupted_run_ends_in_the_same_bytes(tmp_path, monkeypatch, after):
    class Dying(Watched):
        def train(self, *arguments, **options):
            if len(self.trained) == after:
                raise KeyboardInterrupt
            return super().train(*arguments, **options)

    monkeypatch.setattr(client_disks, "new_key", lambda: bytes(range(32)))
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", Dying())
    run(tmp_path / "run", resume=True)
    run(tmp_path / "whole")
    assert result(tmp_path / "run") == result(tmp_path / "whole")


def stopped(path):
    """A run that was stopped in its third round."""

    class Dying(Watched):
        def train(self, *arguments, **options):
            if len(self.trained) == CLIENTS * 3:
                raise KeyboardInterrupt
            return super().train(*arguments, **options)

    with pytest.raises(KeyboardInterrupt):
        run(path, Dying())


def test_a_resumed_run_checks_what_it_reads(tmp_path):
    stopped(tmp_path / "run")
    mine, other = (tmp_path / f"run/{DISK}/client-{i}-002.safetensors" for i in (1, 2))
    data = mine.read_bytes()
    mine.write_bytes(other.read_bytes())
    with pytest.raises(LayoutError, match=r"client-1-002.safetensors: its digest under .*key is not the ledger's"):
        run(tmp_path / "run", resume=True)
    mine.unlink()
    with pytest.raises(MissingError, match=r"client-1-002.safetensors: the ledger has it.*restore it from a copy"):
        run(tmp_path / "run", resume=True)
    mine.write_bytes(data)
    key = (tmp_path / "run/clients/.key").read_bytes()
    (tmp_path / "run/clients/.key").unlink()
    with pytest.raises(MissingError, match=r"clients/\.key: the ledger has it.*restore it from a copy"):
        run(tmp_path / "run", resume=True)
    (tmp_path / "run/clients/.key").write_bytes(key)
    (tmp_path / "run/clients").rename(tmp_path / "elsewhere")
    with pytest.raises(MissingError, match=r"clients: is not there, .* bring it back, or start a new run"):
        run(tmp_path / "run", resume=True)
    (tmp_path / "elsewhere").rename(tmp_path / "run/clients")
    (tmp_path / "run/clients").chmod(0o755)  # as a copy without modes
    run(tmp_path / "run", resume=True)
    assert (tmp_path / "run/clients").stat().st_mode & 0o777 == 0o700


def test_a_key_that_is_lost_on_the_way_is_not_made_again(tmp_path):
    class Losing(Watched):
        def train(self, *arguments, **options):
            if len(self.trained) == CLIENTS * 2:
                (tmp_path / "run/clients/.key").unlink()
            return super().train(*arguments, **options)

    with pytest.raises(MissingError, match=r"clients/\.key: the ledger has it"):
        run(tmp_path / "run", Losing())


def test_an_arm_may_be_called_key(tmp_path):
    folder = run(tmp_path / "run", body=BODY.replace('"own"', '"key"'))
    assert folder.ledger.find(arm="key", round=3)


def test_what_a_masked_run_keeps_for_its_clients_is_on_the_disk(tmp_path, disk):
    run(tmp_path / "runs/run", body=BODY.replace("rounds = 3", "rounds = 1"))
    assert disk.torn == []
    assert disk.lost == []


def test_runs_in_the_open_keep_what_they_kept(tmp_path):
    folder = run(tmp_path / "run", body=BODY.replace("secure = true\n", ""))
    assert not (folder.path / "clients").exists()
    entry = folder.ledger.find(arm="own", round=2)
    starts = folder.rounds.load_start("own", 2, entry).starts
    assert entry["starts"] == {client: start.digest() for client, start in starts.items()}
    assert (folder.path / f"arms/own/start-{entry['starts']['client-0'][:16]}-002.safetensors").is_file()


def test_a_keyed_digest_is_of_one_arm_round_and_client(tmp_path):
    disks, one = ClientDisks(tmp_path), Update.from_tensors({"w": np.ones(4, np.float32)})
    places = [("a", 1, "c"), ("a", 2, "c"), ("b", 1, "c"), ("a", 1, "d")]
    assert len({disks.save(arm, number, {client: one})[1][client] for arm, number, client in places}) == len(places)
