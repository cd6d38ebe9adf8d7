"""Server optimisers: the papers' formulas, one rounding, nothing touched, state that survives as bytes and in a run."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import fake_learner as fake
import numpy as np
import pytest
from fake_runs import Stopping, result, simulate
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles.server import adaptive, fedavgm

from fedcore import ops
from fedcore.dtypes import round_from_float64, to_float64
from fedcore.errors import ConfigError, FormatError, LayoutError, MissingError, NonFiniteError, RangeError
from fedcore.federation.context import Round
from fedcore.federation.folder import RunFolder
from fedcore.federation.server_move import move
from fedcore.federation.server_optimizer import OPTIMIZERS, FedAdagrad, FedAdam, FedAvgM, FedYogi, make_optimizer
from fedcore.federation.server_state import ServerState
from fedcore.federation.start import Start
from fedcore.updates import Update

NAMES = ("full.bias", "full.weight")


def update(seed: int, dtype: str = "float32", scale: float = 1.0) -> Update:
    draw = np.random.default_rng(seed)
    tensors = {"full.weight": draw.normal(0, scale, (4, 3)), "full.bias": draw.normal(0, scale, 3)}
    return Update.from_tensors({name: round_from_float64(x, dtype) for name, x in tensors.items()}, client_id="global")


def wide(held: Update) -> dict[str, np.ndarray]:
    return {name: to_float64(tensor) for name, tensor in held.tensors.items()}


@pytest.mark.parametrize("kind", sorted(OPTIMIZERS))
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_five_rounds_follow_the_papers_formulas_rounded_once(kind, dtype):
    optimizer = make_optimizer(kind, {})
    current = update(0, dtype)
    state = optimizer.start(current)
    m = dict.fromkeys(NAMES, 0.0)
    v = dict.fromkeys(NAMES, 1e-06)
    for number in range(1, 6):
        target = update(number, dtype)
        following, after = optimizer.step(current, target, state)
        for name in NAMES:
            x, delta = wide(current)[name], wide(target)[name] - wide(current)[name]
            if kind == "fedavgm":
                expected, m[name] = fedavgm(x, m[name], delta)
            else:
                beta1 = 0.0 if kind == "fedadagrad" else 0.9
                expected, m[name], v[name] = adaptive(kind, x, m[name], v[name], delta, beta1=beta1)
                assert np.allclose(after.moments["v"][name], v[name], rtol=1e-14, atol=0)
            assert np.allclose(after.moments["m"][name], m[name], rtol=1e-14, atol=1e-300)
            # fp64 arithmetic in another order moves a rounding by one unit at most, and hardly ever
            one_unit = {"float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}[dtype]
            assert np.allclose(wide(following)[name], expected, rtol=one_unit, atol=1e-12)
            exact = to_float64(round_from_float64(expected, dtype))
            assert (wide(following)[name] == exact).mean() > 0.9
        assert after.round == number
        current, state = following, after


def test_plain_settings_of_fedavgm_are_fedavg():
    current, target = update(0), update(1)
    following, _ = FedAvgM(momentum=0.0).step(current, target, FedAvgM(momentum=0.0).start(current))
    # x + (goal − x) in fp64 is off by one rounding of fp64 at most, which is none once it is rounded to fp32
    assert following.digest() == target.digest()


def test_momentum_goes_on_where_clients_stopped():
    current = update(0)
    optimizer = FedAvgM(momentum=0.5)
    moved, state = optimizer.step(current, update(1), optimizer.start(current))
    again, _ = optimizer.step(moved, moved, state)
    step = wide(moved)["full.bias"] - wide(current)["full.bias"]
    assert np.allclose(wide(again)["full.bias"], wide(moved)["full.bias"] + 0.5 * step, rtol=1e-5)


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(sorted(OPTIMIZERS)),
    values=st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=8),
    goal=st.floats(-(2.0**100), 2.0**100, width=32),
)
def test_any_finite_values_follow_the_formula_or_are_refused_by_name(kind, values, goal):
    optimizer = make_optimizer(kind, {})
    x, y = np.array(values, np.float32), np.full(len(values), goal, np.float32)
    current, target = Update.from_tensors({"w": x}), Update.from_tensors({"w": y})
    state = optimizer.start(current)
    wide_x, delta = x.astype(np.float64), y.astype(np.float64) - x
    zero, first = np.zeros(len(x)), np.full(len(x), 1e-6)
    if kind == "fedavgm":
        expected = fedavgm(wide_x, zero, delta)[0]
    else:
        expected = adaptive(kind, wide_x, zero, first, delta, beta1=0.0 if kind == "fedadagrad" else 0.9)[0]
    got = optimizer.step(current, target, state)[0].tensors["w"]
    assert np.allclose(got, expected, rtol=1e-6, atol=1e-12 * np.abs(wide_x).max() + 1e-44)


@pytest.mark.parametrize("kind", sorted(OPTIMIZERS))
def test_a_step_touches_neither_update_nor_state_and_repeats_to_the_bit(kind):
    optimizer, current, target = make_optimizer(kind, {}), update(0), update(1)
    state = optimizer.step(current, target, optimizer.start(current))[1]
    before = current.digest(), target.digest(), state.to_bytes()
    one, two = (optimizer.step(current, target, state) for _ in range(2))
    assert (current.digest(), target.digest(), state.to_bytes()) == before
    assert one[0].digest() == two[0].digest()
    assert one[1].to_bytes() == two[1].to_bytes() != state.to_bytes()


def test_a_state_comes_back_from_its_bytes_and_says_when_it_is_another(tmp_path):
    optimizer, current = FedYogi(), update(0)
    state = optimizer.step(current, update(1), optimizer.start(current))[1]
    read = ServerState.from_bytes(state.to_bytes(), "file")
    assert read.to_bytes() == state.to_bytes()
    assert (read.optimizer, read.round, read.digest()) == ("FedYogi", 1, state.digest())
    for data in (b"", b"x" * 40, state.to_bytes()[:-1], current.to_bytes()):
        with pytest.raises(FormatError, match=r"^file: not the state of a server optimiser"):
            ServerState.from_bytes(data, "file")
    with pytest.raises(LayoutError, match="it is of FedYogi, expected FedAdam"):
        FedAdam().step(current, update(1), state)
    other = Update.from_tensors({"full.weight": np.zeros((4, 3), np.float32), "full.bias": np.zeros(4, np.float32)})
    with pytest.raises(LayoutError, match=r"m of tensor 'full\.bias' has shape \(3,\), expected \(4,\)"):
        optimizer.step(other, other, state)


def test_a_void_round_keeps_the_momentum_of_the_round_before():
    """A round without a result moves nothing, and the next one goes on where the last with a result stopped."""
    optimizer, broadcast = FedAvgM(), update(0)
    moved, before = optimizer.step(broadcast, update(1), optimizer.start(broadcast))
    states = {(1, before.digest()): before}
    federation = SimpleNamespace(
        config=SimpleNamespace(optimizer_of=lambda arm: optimizer),
        folder=SimpleNamespace(
            ledger=SimpleNamespace(find=lambda **_: {"optimizer": {"state": before.digest()}}),
            rounds=SimpleNamespace(load_state=lambda arm, number, digest: states[number, digest]),
        ),
    )
    following, state = move(Round(federation, SimpleNamespace(name="a"), 2, Start(moved)), None)
    assert following is moved
    assert state.digest() == before.digest()


def test_an_aggregate_of_other_scales_is_refused():
    """Factors of another scale are not on the same footing: B would jump by their ratio."""
    current = fake.FakeLearner().initial()
    tensors = {name: np.array(tensor) for name, tensor in current.tensors.items()}
    other = Update.from_tensors(tensors, client_id="global", scaling={fake.MODULE: 1.0})
    with pytest.raises(LayoutError, match="scales differ between aggregate and global update"):
        FedAvgM().step(current, other, FedAvgM().start(current))


def test_what_does_not_fit_is_refused_by_name():
    current = update(0)
    start = FedAvgM().start(current)
    with pytest.raises(LayoutError, match=r"tensor 'full\.bias' is missing"):
        FedAvgM().step(current, Update.from_tensors({"full.weight": np.zeros((4, 3), np.float32)}), start)
    bad = Update.from_tensors(
        {"full.weight": np.full((4, 3), np.nan, np.float32), "full.bias": np.zeros(3, np.float32)}
    )
    with pytest.raises(NonFiniteError, match=r"tensor 'full\.weight' of the aggregate holds NaN"):
        FedAvgM().step(current, bad, start)
    half = update(0, "float16", 100.0)
    with pytest.raises(RangeError, match=r"tensor 'full\..*' does not fit float16; lower server\.learning_rate"):
        FedAvgM(learning_rate=1e4).step(half, update(1, "float16", 100.0), FedAvgM().start(half))


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda: FedAvgM(momentum=1.0), "FedAvgM: got momentum=1.0, expected a number of at least 0 and below 1"),
        (lambda: FedAdam(tau=0.0), "FedAdam: got tau=0.0, expected a finite number above 0"),
        (lambda: FedAdagrad(learning_rate=float("inf")), "FedAdagrad: got learning_rate=inf"),
        (lambda: make_optimizer("fedavgm", {"tau": 1.0}), 'tau: not known to optimizer = "fedavgm"'),
        (lambda: make_optimizer("none", {"tau": 1.0}), 'tau: not known to optimizer = "none"; name an optimizer'),
    ],
)
def test_settings_out_of_range_are_refused(made, said):
    with pytest.raises(ConfigError) as caught:
        made()
    assert said in str(caught.value)


RUN = (
    fake.CONFIG[: fake.CONFIG.index("[[arms]]")]
    + """space = "parameters"
[server]
optimizer = "fedadam"
learning_rate = 0.2
[[arms]]
name = "adam"
[[arms]]
name = "momentum"
server = { optimizer = "fedavgm", momentum = 0.5 }
rule = "krum"
parameters = { f = 1 }
attack = { kind = "alie", clients = 1, z = 1.5 }
[[arms]]
name = "plain"
server = { optimizer = "none" }
"""
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("server") / "run"
    simulate(folder, config=fake.config(RUN))
    return folder


@pytest.mark.parametrize("trainings", [5, 8, 11, 17, 24, 36])
def test_an_interrupted_run_ends_with_the_same_bits_and_states(whole, tmp_path, trainings):
    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        simulate(folder, config=fake.config(RUN), learner=Stopping(after=trainings))
    simulate(folder, config=fake.config(RUN), resume=True)
    assert result(folder) == result(whole)
    assert len(list(folder.rglob("server-*.safetensors"))) == 6


def test_each_round_is_made_again_from_aggregate_and_state(whole):
    folder = RunFolder.read(whole)
    made = {"adam": FedAdam(learning_rate=0.2), "momentum": FedAvgM(momentum=0.5)}
    before = {arm: fake.FakeLearner().initial() for arm in made}
    states = {arm: optimizer.start(before[arm]) for arm, optimizer in made.items()}
    for entry in folder.ledger.entries:
        arm, number = entry["arm"], entry["round"]
        if arm == "plain":
            assert "optimizer" not in entry
            continue
        place = whole / "updates" / arm / f"round-{number:03d}"
        sent = [
            Update.from_bytes((place / f"{client}.{entry['inputs'][client]}.safetensors").read_bytes())
            for client in entry["coefficients"]
        ]
        tensors = {
            name: ops.weighted_sum(
                [u.tensors[name].reshape(-1) for u in sent], list(entry["coefficients"].values()), entry["divisor"]
            ).reshape(tensor.shape)
            for name, tensor in sent[0].tensors.items()
        }
        aggregate = Update.from_tensors(tensors, scaling=sent[0].scaling)
        assert aggregate.digest() == entry["optimizer"]["aggregate"]
        assert entry["optimizer"]["rule"] == repr(made[arm])
        before[arm], states[arm] = made[arm].step(before[arm], aggregate, states[arm])
        assert before[arm].digest() == entry["output"]
        assert states[arm].digest() == entry["optimizer"]["state"]


def test_a_state_that_was_changed_or_lost_stops_the_resumption(tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        simulate(folder, config=fake.config(RUN), learner=Stopping(after=12))
    path = folder / "arms/adam/server-001.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(LayoutError, match=r"server-001.*its SHA-256 is"):
        simulate(folder, config=fake.config(RUN), resume=True)
    path.unlink()
    with pytest.raises(MissingError, match=r"server-001\.safetensors: the ledger has this state"):
        simulate(folder, config=fake.config(RUN), resume=True)
