"""Private runs whose noise is correlated: who takes part when, one charge, the same noise after a crash."""

from __future__ import annotations

import math

import fake_learner as fake
import numpy as np
import pytest
from private_runs import SMALL, B, Interrupting, budget, config, dies, private_run, run, updates

import fedcore as fc
from fedcore.errors import ConfigError, FormatError, PrivacyError
from fedcore.federation.folder import RunFolder
from fedcore.federation.journal import LineLog
from fedcore.federation.private_round import STOPPED
from fedcore.federation.private_run import read_plan
from fedcore.federation.sampling import taking_turns
from fedcore.ops.clip_round import clip_grid, clip_round
from fedcore.privacy import Correlated, Rounds
from fedcore.privacy.noise_rows import NoiseRows
from fedcore.report.privacy import lines
from fedcore.report.table import rows

pytest.importorskip("dp_accounting", reason="budgets need dp-accounting, of the extra `train`")

TURNS = SMALL + 'mode = "correlated"\nseparation = 2\n'


def turns(rounds=4, privacy=TURNS, **options):
    return config(privacy, rounds=rounds, **options)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("correlated") / "run"
    run(path, turns())
    return path


def check_noise(path, count):
    """Every round is the start moved by the mean of its clipped changes and this row of the one charge's noise."""
    folder, plan, charged = RunFolder.read(path), read_plan(path), budget(path)
    factor = Correlated(1.0, plan.charged, 3, rounds=4, separation=2).factor
    assert factor.bands == 2
    sealing = (path / "private/budget.sealing-key").read_bytes()
    rounds = Rounds(folder.private.rounds_of("one"), factor, 12, sealing_key=sealing)
    mechanism = Correlated(1.0, plan.charged, 3, rounds=4, separation=2)
    key = charged.reserve(mechanism.inputs_digest(rounds)).key
    assert len(charged.charges) == 1
    grid = clip_grid(1.0, 12)
    noise = NoiseRows(factor, 12, plan.charged / grid * math.sqrt(factor.squared_sensitivity), key, "chacha20")
    start = fc.privacy.orthonormal(fake.FakeLearner().initial())
    assert len(folder.ledger.entries) == count
    for number, entry in enumerate(folder.ledger.entries, 1):
        changes = [np.float32(u.tensors[B]) - np.float32(start.tensors[B]) for u in updates(path, number, start)]
        total = sum(clip_round(change.ravel(), 1.0).integers for change in changes) + noise.row(
            number - 1, rounds.inputs_until(number)
        )
        reached = folder.rounds.load_global("one", number, entry["output"])
        moved = np.float32(total * grid / 3).reshape(6, 2)
        assert np.array_equal(np.float32(start.tensors[B]) + moved, reached.tensors[B]), number
        start = reached


def test_a_run_is_one_mechanism_with_noise_that_later_rounds_take_back(whole):
    check_noise(whole, 4)
    folder, plan = RunFolder.read(whole), read_plan(whole)
    assert (plan.releases, plan.samples, plan.expected_clients, plan.separation) == (4, 4 * 12, 3, 2)
    assert plan.charged == pytest.approx(fc.privacy.noise_multiplier(epsilon=20, delta=1e-5), rel=1e-3)
    assert {entry["privacy"]["charge"] for entry in folder.ledger.entries} == {2}
    spent = [line["epsilon"] for line in folder.metrics.entries[1:]]
    assert spent == [pytest.approx(fc.privacy.epsilon(noise_multiplier=plan.charged, delta=1e-5))] * 4
    assert spent[0] <= 20
    said = lines(plan, rows(folder.metrics.entries), folder.ledger.entries)
    assert said[0].endswith("each client is in one round of every 2")
    assert any("times less than if each round had its own" in line for line in said)


def test_each_client_is_in_one_round_of_every_separation(whole):
    kept = [RunFolder.read(whole).private.kept("one", number)["messages"].keys() for number in range(1, 5)]
    assert kept[0] == kept[2]
    assert kept[1] == kept[3]
    assert sorted([*kept[0], *kept[1]]) == [f"client-{i}" for i in range(5)]
    people = list(range(10))
    each = [[taking_turns(people, 3, number, bytes([k]) * 32) for number in range(1, 7)] for k in range(200)]
    for groups in each:
        assert groups[:3] == groups[3:]
        assert sorted(person for group in groups[:3] for person in group) == people
        assert [len(group) for group in groups[:3]] == [4, 3, 3]
    first = np.array([[person in groups[0] for person in people] for groups in each])
    assert np.abs(first.mean(0) - 0.4).max() < 5 * math.sqrt(0.24 / 200)


@pytest.mark.parametrize(
    ("module", "name", "call", "released"),
    [
        (fc.privacy.Budget, "reserve", 1, 0),  # the charge is on disk, nobody has trained
        (Rounds, "enter", 3, 2),  # between the entry of a round and its noise
        (Correlated, "release", 2, 1),  # between draw and publish
        (LineLog, "append", 6, 2),  # the adapter is written, the ledger does not know it
    ],
    ids=["charged", "entered", "drawn", "written"],
)
def test_a_kill_neither_loses_nor_doubles_a_release(tmp_path, module, name, call, released):
    path = tmp_path / "run"
    dies(path, module, name, call, turns())
    assert len(budget(path).charges) == 1
    assert len(RunFolder.read(path).ledger.entries) == released
    before = {p.name: p.read_bytes() for p in (path / "arms/one").glob("round-*")}
    run(path, turns(), resume=True)
    check_noise(path, 4)
    for file, data in before.items():
        assert (path / "arms/one" / file).read_bytes() == data


def test_turns_that_were_rolled_back_or_lost_release_nothing(tmp_path):
    path, earlier = tmp_path / "run", {}
    place = path / "private/turns/one"

    def keep():
        earlier.update({file.name: file.read_bytes() for file in place.iterdir()})
        raise KeyboardInterrupt

    for after, action in ((3, keep), (3, None)):
        with pytest.raises(KeyboardInterrupt):
            run(path, turns(), resume=action is None, learner=Interrupting(after, action))
    now = {file.name: file.read_bytes() for file in place.iterdir()}
    assert now["rounds"] != earlier["rounds"]
    for name, data in earlier.items():
        (place / name).write_bytes(data)
    with pytest.raises(PrivacyError, match="rolled back together"):
        run(path, turns(), resume=True)
    for file in place.iterdir():
        file.unlink()
    with pytest.raises(PrivacyError, match="does not continue it"):
        run(path, turns(), resume=True)
    for name, data in now.items():
        (place / name).write_bytes(data)
    (place / "rounds.head").unlink()
    with pytest.raises(FormatError, match=r"its head rounds\.head is missing"):
        run(path, turns(), resume=True)
    assert len(RunFolder.read(path).ledger.entries) == 2


def test_an_arm_whose_rounds_the_budget_does_not_hold_trains_nobody(tmp_path):
    path = tmp_path / "run"
    learner = Interrupting(after=7, action=lambda: budget(path).reserve("0" * 64))
    arms = '[[arms]]\nname = "one"\n[[arms]]\nname = "two"\n'
    folder = run(path, turns(arms=arms), learner=learner)
    assert [entry["arm"] for entry in folder.ledger.entries] == ["one"] * 4 + ["two"]
    assert folder.ledger.entries[-1]["stopped"] == STOPPED
    assert len(learner.trained) == 10
    assert len(budget(path).charges) == 2


def test_noise_of_the_other_stream_is_charged_as_such(tmp_path):
    from fedcore.native import isa_code, lib

    if not lib.fc_stream_available(lib.FC_AES256CTR, isa_code()):
        pytest.skip("this processor has no AES instructions; tests/ops sees the stream refused")
    for mode, text in (
        ("correlated", TURNS),
        ("central", SMALL),
        ("local", SMALL + 'mode = "local"\n'),
        ("distributed", 'epsilon = 45\ndelta = 1e-3\nmode = "distributed"\n'),
    ):
        path = tmp_path / mode
        folder = run(path, turns(2, text + 'stream = "aes256ctr"\n'))
        (charge, *_) = budget(path, stream="aes256ctr").charges
        assert charge.stream == "aes256ctr"
        assert folder.metrics.entries[-1]["epsilon"] <= read_plan(path).epsilon


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"privacy": SMALL + 'mode = "correlated"\n'}, 'separation: missing with mode = "correlated"'),
        ({"privacy": SMALL + "separation = 2\n"}, 'separation: got 2 with mode = "central"'),
        ({"privacy": TURNS + 'sampling = "poisson"\nclients_per_round = 2\n'}, "chance keeps none"),
        ({"privacy": TURNS + "adaptive = {}\n"}, "one round's noise takes back another's under one clip"),
        ({"privacy": TURNS + "per_module = true\n"}, "clip flat"),
        ({"privacy": TURNS + "both_factors = true\n", "method": "fedit"}, "whose noises cancel in a sum"),
        ({"privacy": TURNS.replace("= 2", "= 1")}, "privacy.separation: got 1"),
        ({"rounds": 1}, "privacy.separation: got 2 of 1 rounds"),
        ({"privacy": TURNS.replace("= 2", "= 6"), "rounds": 9}, "privacy.separation: got 6 of 5 clients"),
        ({"method": "rolora"}, "rolora: sends other factors from round to round"),
        ({"method": "fedsvd"}, "fedsvd: turns its factors after each round"),
        ({"arms": '[[arms]]\nname = "k"\nsecure = true\n'}, 'privacy.mode: got "correlated" with [secure]'),
    ],
)
def test_what_correlated_noise_does_not_go_with_is_refused_by_name(change, said):
    with pytest.raises(ConfigError) as caught:
        turns(**change)
    assert said in str(caught.value)


def test_the_key_of_the_run_is_kept_sealed(whole, tmp_path):
    """Who was drawn, and clients' noise, are derived from it: without the operator's key the file tells nothing."""
    folder = RunFolder.read(whole)
    secret, file = private_run(folder).secret, whole / "private/secret"
    assert secret not in file.read_bytes()
    assert file.stat().st_mode & 0o077 == 0
    with pytest.raises(FormatError, match="secret: does not open: changed, or sealed by another key"):
        folder.private.secret(bytes(32))
    (tmp_path / "key").write_bytes(bytes(range(32)))
    elsewhere = turns(privacy=f'{TURNS}sealing_key = "{tmp_path}/key"\n')
    run(tmp_path / "run", elsewhere)
    assert not (tmp_path / "run/private/budget.sealing-key").exists()
    (tmp_path / "key").write_bytes(bytes(32))
    with pytest.raises(FormatError, match="does not open"):
        run(tmp_path / "run", elsewhere, resume=True)
