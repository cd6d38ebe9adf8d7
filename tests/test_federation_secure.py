"""Runs under secure aggregation: the plain quantised sum bit for bit, dropouts, resumption, what is refused."""

from __future__ import annotations

import hashlib
from itertools import product

import fake_learner as fake
import numpy as np
import pytest
from secagg.driver import Rig, complete

from fedcore.errors import Replayed, TrainingError
from fedcore.federation.config_file import parse_config
from fedcore.federation.config_privacy import Privacy
from fedcore.federation.config_secure import Secure
from fedcore.federation.messages import client_seed
from fedcore.federation.secure_round import Changes, leaks
from fedcore.federation.secure_sum import context_of, with_honest
from fedcore.federation.simulation import run_arms
from fedcore.federation.start import Start
from fedcore.lora import METHODS, FedIT, FRLoRA
from fedcore.privacy import Distributed, secagg
from fedcore.report.html import page
from fedcore.report.secure import lines

CLIENTS = 6
BASE = f'[run]\nseed = 5\nrounds = 2\n[model]\nsource = "fake"\n[partition]\nclients = {CLIENTS}\n'
LINEAR = [name for name, method in METHODS.items() if method.traits.linear]
NOISE = '[privacy]\nepsilon = 8\ndelta = 1e-3\nmode = "distributed"\nclip = 0.5\n'
MEAN = 'rule = "mean"\nspace = "parameters"\n'


def run(path, body, *, learner=None, top="secure = true\n", resume=False):
    config = parse_config(top + BASE + body, "c.toml")
    return config, run_arms(config, fake.texts(CLIENTS), learner or fake.FakeLearner(), path, resume=resume)


def arms(**bodies):
    return "".join(f'[[arms]]\nname = "{name}"\n{body}\n' for name, body in bodies.items())


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    body = arms(mean=MEAN, **{name: f'method = "{name}"' for name in LINEAR})
    return run(tmp_path_factory.mktemp("secure") / "run", body)


def first(method):
    """What an arm starts from."""
    learner = fake.FakeLearner()
    if isinstance(method, FRLoRA):
        return method.restart(learner.initial(), learner.weights())
    return learner.initial(), None


def trained(config, method, number):
    """Each client's adapter after the first round's training, as a client has it."""
    learner = fake.FakeLearner()
    options = {} if method is None else {"trains": method.trains(number), "side": None}
    (initial, _), found = first(method), {}
    for client in fake.texts(CLIENTS).clients:
        seed = client_seed(config, number, client.id)
        update = learner.train(initial, client, config.training.steps, seed, 0.0, **options)
        found[client.id] = (update, client)
    return found


@pytest.mark.parametrize("name", ["mean", *(n for n in LINEAR if n != "fedsb")])
def test_a_secure_round_is_the_plain_quantised_sum_bit_for_bit(everything, name):
    config, folder = everything
    method = METHODS[name]() if name != "mean" else None
    initial, side, made = *first(method), method or FedIT()
    zero = made.message(initial, initial, 1)
    bound, most = 2**19 - 1, 3 + CLIENTS - 1
    total = np.zeros(sum(v.size for v in zero.values()) + 1, np.int64)
    for update, client in trained(config, method, 1).values():
        message = made.message(update, initial, 1)
        change = np.concatenate([(message[key] - zero[key]).ravel() for key in sorted(zero)])
        weight = round(len(client.texts) / most * bound)
        whole = np.rint(np.float64(change) * weight).clip(-weight, weight)
        total += np.append(whole, weight).astype(np.int64)
    entry = folder.ledger.find(arm=name, round=1)
    assert entry["secure"]["sums"] == [hashlib.sha256(total.tobytes()).hexdigest()]
    if name == "randomized_sketch":
        return  # these clients' Δ has rank 1, and what a truncation puts beside it hangs on the last bit
    mean, at, sums = total[:-1] / total[-1], 0, {}
    for key in sorted(zero):
        sums[key] = zero[key] + mean[at : at + zero[key].size].reshape(zero[key].shape)
        at += zero[key].size
    expected, _ = made.finish(sums, 1.0, initial, side=side, number=1)
    got = folder.rounds.load_global(name, 1, entry["output"])
    for key, tensor in expected.tensors.items():
        np.testing.assert_allclose(np.asarray(got.tensors[key]), np.asarray(tensor), rtol=1e-6, atol=1e-7)
    assert entry["secure"]["survivors"] == [[f"client-{i}" for i in range(CLIENTS)]]


# Fed-SB starts otherwise than in an open run, and sketches travel under masks alone
@pytest.mark.parametrize("name", ["mean", *(n for n in LINEAR if n not in ("fedsb", "randomized_sketch"))])
def test_masks_cost_no_more_than_the_grid(everything, name, tmp_path):
    _, folder = everything
    _, plain = run(tmp_path / "open", arms(**{name: MEAN if name == "mean" else f'method = "{name}"'}), top="")
    losses = [f.metrics.find(arm=name, round=2)["loss"] for f in (folder, plain)]
    assert abs(losses[0] - losses[1]) < 1e-4
    mine, theirs = (f.rounds.load_global(name, 2, f.ledger.find(arm=name, round=2)["output"]) for f in (folder, plain))
    for key, tensor in theirs.tensors.items():
        assert np.abs(np.asarray(mine.tensors[key]) - np.asarray(tensor)).max() < 1e-4


def test_the_server_has_no_message_of_a_client(everything):
    _, folder = everything
    assert not list(folder.journal.folder.glob("**/*.safetensors"))
    for entry in folder.ledger.entries:
        assert "inputs" not in entry
        assert "coefficients" not in entry
    assert folder.metrics.find(arm="mean", round=1)["bytes_up"] > 0


def test_the_page_shows_what_hid_the_sums(everything, tmp_path):
    _, folder = everything
    shown = page(folder)
    assert "Secure aggregation" in shown
    assert "honest clients, whatever the server does, as long as no client is with it" in shown


@pytest.mark.parametrize(
    ("adversary", "corrupt", "said"),
    [
        ("malicious", 0, "whatever the server does, as long as no client is with it"),
        ("malicious", 1, "whatever the server does, as long as at most 1 of 20 clients is with it"),
        ("malicious", 3, "whatever the server does, as long as at most 3 of 20 clients are with it"),
        ("semi_honest", 0, "as long as the server keeps to the protocol and no client is with it"),
        ("semi_honest", 2, "as long as the server keeps to the protocol and at most 2 of 20 clients are with it"),
    ],
)
def test_the_report_says_how_many_clients_may_be_with_the_server(everything, adversary, corrupt, said):
    entry = everything[1].ledger.find(arm="mean", round=1)
    facts = entry["secure"] | {"adversary": adversary, "corrupt": [corrupt], "clients": [20], "min_honest": 9}
    (line,) = lines([entry | {"secure": facts}])
    assert line.endswith(f"; each hides at least 9 honest clients, {said}")


class Failing(fake.FakeLearner):
    """Clients that cannot train."""

    def __init__(self, failing):
        super().__init__()
        self.failing = failing

    def train(self, adapter, client, *rest, **options):
        if client.id in self.failing and rest[0] == 12:  # steps of one round, as in an arm
            raise TrainingError(f"client {client.id!r}: the loss is NaN")
        return super().train(adapter, client, *rest, **options)


def test_a_client_that_cannot_train_drops_out(tmp_path):
    _, folder = run(tmp_path / "run", arms(mean=MEAN), learner=Failing({"client-2"}))
    entry = folder.ledger.find(arm="mean", round=1)
    assert "client-2" not in entry["secure"]["survivors"][0]
    assert len(entry["secure"]["survivors"][0]) == CLIENTS - 1
    assert entry["excluded"] == {"client-2": "dropped out"}
    assert "clamped" not in entry["secure"]


def test_too_few_clients_void_the_round_and_the_run_goes_on(tmp_path):
    gone = {f"client-{i}" for i in range(1, CLIENTS)}
    _, folder = run(tmp_path / "run", arms(mean=MEAN), learner=Failing(gone))
    for number in (1, 2):
        entry = folder.ledger.find(arm="mean", round=number)
        assert "void" in entry["secure"]
        assert entry["output"] == fake.FakeLearner().initial().digest()


def test_an_interrupted_round_begins_again_and_ends_alike(tmp_path):
    class Dying(fake.FakeLearner):
        def evaluate(self, adapter, side=None):
            if len(self.trained) > CLIENTS * 2 + 1:
                raise KeyboardInterrupt
            return super().evaluate(adapter, side)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", arms(mean=MEAN), learner=Dying())
    _, resumed = run(tmp_path / "run", arms(mean=MEAN), resume=True)
    _, whole = run(tmp_path / "whole", arms(mean=MEAN))
    outputs = [[entry["output"] for entry in folder.ledger.entries] for folder in (resumed, whole)]
    assert outputs[0] == outputs[1]


def test_distributed_noise_travels_under_masks(tmp_path):
    body = arms(ffa='method = "ffa_lora"')
    _, masked = run(tmp_path / "masked", NOISE + body)
    entry = masked.ledger.find(arm="ffa", round=1)
    assert entry["privacy"]["epsilon"] <= 8
    assert entry["secure"]["adversary"] == "malicious"
    assert "survivors" not in entry["secure"]
    assert not any("not masked" in note for note in masked.facts.get("notes", []))


@pytest.mark.parametrize("adversary", ["malicious", "semi_honest"])
def test_noise_counts_on_no_more_honest_clients_than_masks_make_certain(adversary):
    """In cohorts whose graphs are not complete, and with more corrupt clients than [secure] says."""
    secure, given = Secure(adversary=adversary), Privacy(epsilon=8, delta=1e-5, mode="distributed")
    for clients, corrupt in ((20, 5), (300, 0), (100, 20)):
        settings = with_honest(given.model_copy(update={"corrupt_clients": corrupt}), [secure], clients)
        assert settings.corrupt_clients == max(corrupt, clients // 10, 1)
        mechanism = Distributed(1.0, 1.0, clients, settings.fewest_clients, settings.corrupt_clients, 16, bytes(32))
        for dropout in (None, secure.dropout):
            p = secagg.Parameters.for_distributed(mechanism, adversary=adversary, dropout=dropout)
            assert p.min_honest >= mechanism.fewest - mechanism.corrupt > 1


def test_a_sum_that_protects_nobody_is_warned_of(everything):
    body = "[training]\nsteps = 1\nbatch_size = 1\nsequence_length = 2\n" + arms(a=MEAN)
    config, initial = parse_config("secure = true\n" + BASE + body, "c.toml"), fake.FakeLearner().initial()
    changes = Changes.of(FedIT(), 1, Start(initial))
    two = {"min_honest": 2}
    few = leaks(config, changes, {"survivors": [["client-0"], ["client-1", "client-2"]], "corrupt": [0]} | two)
    assert any("2 tokens, fewer than the hidden size 4" in warning for warning in few)
    assert any("shows one client's vector" in warning for warning in few)
    assert leaks(config, changes, {"survivors": [["client-1", "client-2"]], "corrupt": [0]} | two) == []
    # four clients in the sum, of whom two are certain to be honest
    four = {"survivors": [list("abcd")], "corrupt": [0]}
    assert leaks(config, changes, four | two) == []
    assert any("2 tokens" in w for w in leaks(config, changes, four | {"min_honest": 1}))
    # of three clients two may be corrupt, in groups of the larger size: they know what they sent
    tenth = {"survivors": [list("abc")], "corrupt": [1, 2], "min_honest": 3}
    assert any("2 tokens" in w for w in leaks(config, changes, tenth))
    assert any("shows one" in w for w in leaks(config, changes, {"survivors": [["a", "b"]], "corrupt": [1]} | two))
    # clients of the runs train on more tokens than these layers are wide
    assert everything[1].ledger.find(arm="mean", round=1)["secure"]["warnings"] == []


def test_masks_cancel_for_one_broadcast_and_one_configuration_alone():
    config, one = parse_config(BASE, "c.toml"), fake.FakeLearner().initial()
    other = one.with_tensors({name: np.asarray(tensor) + 1 for name, tensor in one.tensors.items()})
    starts = [Start(one), Start(other), Start(one, side=one), Start(one, fixed=one)]
    starts += [Start(one, starts={"a": x, "b": y}) for x, y in ((one, one), (one, other), (other, one))]
    found = [context_of(config, start) for start in starts]
    found.append(context_of(parse_config(BASE.replace("rounds = 2", "rounds = 3"), "c.toml"), starts[0]))
    p = complete(3, 2)
    for here, there in product(found, repeat=2):
        rig = Rig(p, {1: there}, context=here)
        if here is there:
            assert np.array_equal(rig.run().server.result().sum, rig.vectors.sum(0))
        else:
            with pytest.raises(Replayed, match="message of 1: is of another round, session, model"):
                rig.run()


def test_an_arm_may_go_without(tmp_path):
    _, folder = run(tmp_path / "run", arms(masked=MEAN, open=MEAN + "secure = false"))
    assert "secure" in folder.ledger.find(arm="masked", round=1)
    assert "secure" not in folder.ledger.find(arm="open", round=1)
