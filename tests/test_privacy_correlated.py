"""Correlated noise: the sensitivity that is exact, releases that are a function of the mechanism's."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from correlated_runs import KEY, run_of, vectors

import fedcore as fc
from fedcore.errors import PrivacyError
from fedcore.ops.clip_round import clip_grid, clip_round
from fedcore.privacy import Budget, Correlated, Rounds, noise_rows
from fedcore.privacy.factorization import UNIT, Factor, best_factor
from fedcore.privacy.noise import draw


def matrix(factor: Factor) -> np.ndarray:
    """UNIT · C, in full."""
    padded = [*factor.coefficients, *[0] * factor.rounds]
    rows = [[padded[t - i] if t >= i else 0 for i in range(factor.rounds)] for t in range(factor.rounds)]
    return np.array(rows, np.int64)


# the factor


@pytest.mark.parametrize(
    ("rounds", "separation", "most", "bands"), [(7, 3, 3, 3), (8, 3, 2, 2), (6, 2, 1, 2), (5, 5, 1, 4)]
)
def test_the_sensitivity_is_the_most_over_all_schemas(rounds, separation, most, bands):
    factor = Factor(rounds, separation, most, bands)
    c, found, rng = matrix(factor), 0, np.random.default_rng(0)
    for count in range(1, most + 1):
        for chosen in itertools.combinations(range(rounds), count):
            if all(b - a >= separation for a, b in itertools.pairwise(chosen)):
                found = max(found, int((c[:, chosen].sum(1) ** 2).sum()))
                for _ in range(3):  # terms in any directions move it by no more
                    u = rng.normal(size=(count, 4))
                    u /= np.linalg.norm(u, axis=1, keepdims=True)
                    assert ((c[:, chosen] @ u) ** 2).sum() <= factor.squared_sensitivity * (1 + 1e-12)
    assert found == factor.squared_sensitivity


def test_errors_are_those_of_the_matrices():
    factor = Factor(30, 10, 3, 7)
    inverse = np.linalg.inv(matrix(factor) / UNIT)
    prefix = np.tril(np.ones((30, 30)))
    assert factor.noise_of_rounds == pytest.approx(factor.sensitivity * np.linalg.norm(inverse, axis=1))
    assert factor.noise_of_prefixes == pytest.approx(factor.sensitivity * np.linalg.norm(prefix @ inverse, axis=1))
    independent = Factor(30, 10, 3, 1)
    assert independent.sensitivity == pytest.approx(math.sqrt(3))
    assert independent.noise_of_prefixes == pytest.approx(np.sqrt(3 * np.arange(1, 31)))


@pytest.mark.parametrize(
    ("rounds", "separation", "times"), [(100, 10, 2.3), (1000, 50, 4.7), (100, 100, 3.0), (9, 1, 1.0)]
)
def test_the_best_bands_beat_independent_noise(rounds, separation, times):
    participations = -(-rounds // separation)
    best = best_factor(rounds, separation, participations)
    assert Factor(rounds, separation, participations, 1).error / best.error >= times
    assert best.bands <= separation


# releases


def test_a_release_is_a_function_of_the_mechanism_with_noise_of_whole_numbers(tmp_path, monkeypatch):
    """y_t = Σ c_k q_{t-k} + z_t, then what anybody can compute of it: to the bit what is released, in any tiles."""
    monkeypatch.setattr(noise_rows, "TILE", 16)
    d, mechanism = 37, Correlated(1.0, 0.7, 4, rounds=12, separation=5)
    assert mechanism.factor.bands > 1
    rounds, noise = run_of(mechanism, tmp_path, d)
    grid, c = clip_grid(1.0, d), mechanism.factor.coefficients
    deviation = 0.7 * math.sqrt(mechanism.factor.squared_sensitivity) / grid
    sums, estimates = [], []
    for t in range(12):
        rows = vectors(3, d, seed=t)
        sums.append(sum(clip_round(row, 1.0).integers.astype(object) for row in rows))
        y = sum(c[k] * sums[t - k] for k in range(min(len(c), t + 1)))
        got = mechanism.release(rows, noise, rounds, t + 1, clients=[f"{t} {i}" for i in range(3)])
        y = y + draw(d, deviation, KEY, f"correlated row {t} of {rounds.inputs_until(t + 1)[t]}", 0)
        known = sum(c[k] * estimates[t - k] for k in range(1, min(len(c), t + 1)))
        estimates.append(np.array([math.floor(x) for x in (2 * (y - known) + c[0]) // (2 * c[0])], object))
        assert got.mean.dtype == np.float32
        assert (got.mean == (estimates[t].astype(float) * grid / 4).astype(np.float32)).all()


def test_rounds_that_were_put_back_draw_other_noise_for_other_sums(tmp_path):
    """Of one noise for two sums the difference would be that of the sums, without any."""
    d, mechanism, found = 400, Correlated(1.0, 1.0, 3, rounds=4, separation=2), []
    for seed in (1, 2):
        folder = tmp_path / str(seed)  # one key, and a file of rounds that knows nothing of the other
        rounds, noise = run_of(mechanism, folder, d)
        for t in range(3):
            rows = [row * np.float32(0.01) for row in vectors(3, d, seed=t if t < 2 else seed)]
            mean = mechanism.release(rows, noise, rounds, t + 1, clients=[f"{t} {i}" for i in range(3)]).mean
        found.append((mean, sum(row.astype(float) for row in rows) / 3))
    (a, signal_a), (b, signal_b) = found
    left = (a - b) - (signal_a - signal_b)
    assert left.std() > 0.5 * (a - signal_a).std()


def test_one_client_moves_the_mechanism_by_at_most_the_sensitivity():
    """Adversaries in every round that the schema allows: exact, in whole numbers, and nearly reached."""
    d, factor = 200, Factor(12, 4, 3, 4)
    c, most = matrix(factor).astype(object), 0
    spike = np.zeros(d, np.float32)
    spike[3] = 3e38
    half = np.full(d, 0.5 * clip_grid(1.0, d), np.float32)
    for row in (spike, half, np.full(d, 1e9, np.float32), vectors(1, d, 0)[0] * np.float32(1e6), np.full(d, np.nan)):
        q = clip_round(row.astype(np.float32), 1.0).integers.astype(object)
        change = np.zeros((12, d), object)
        change[[0, 4, 8]] = q
        most = max(most, int(((c @ change) ** 2).sum()))
    bound = factor.squared_sensitivity / clip_grid(1.0, d) ** 2
    assert 0.98 * bound < most <= bound


def test_a_run_goes_on_after_a_restart_with_the_same_bits(tmp_path):
    d, mechanism = 50, Correlated(1.0, 1.0, 3, rounds=8, separation=4)
    rounds, noise = run_of(mechanism, tmp_path, d)

    def release(rounds, t):
        return mechanism.release(vectors(2, d, t), noise, rounds, t, clients=[f"{t}a", f"{t}b"])

    through = [release(rounds, t) for t in range(1, 6)]
    fresh = Rounds(tmp_path / "run", mechanism.factor, d, sealing_key=KEY)
    assert fresh.entered == 5
    for t in (5, 2):  # a round again, as after a crash between noise and publication
        again = release(fresh, t)
        assert (again.mean == through[t - 1].mean).all()
        assert again.public == through[t - 1].public
    assert (release(fresh, 6).mean == release(rounds, 6).mean).all()


def test_a_round_that_was_interrupted_among_its_noise_is_drawn_right_the_next_time(tmp_path, monkeypatch):
    d, mechanism = 50, Correlated(1.0, 1.0, 3, rounds=8, separation=4)
    monkeypatch.setattr(noise_rows, "TILE", 20)
    rounds, noise = run_of(mechanism, tmp_path, d)
    through = [mechanism.release(vectors(1, d, t), noise, rounds, t, clients=[f"{t}"]) for t in range(1, 6)]
    rounds = Rounds(tmp_path / "run", mechanism.factor, d, sealing_key=KEY)
    mechanism.release(vectors(1, d, 4), noise, rounds, 4, clients=["4"])
    real, calls = noise_rows.NoiseRows._part, iter(range(100))

    def interrupting(self, *arguments):
        if next(calls) == 1:
            raise KeyboardInterrupt
        return real(self, *arguments)

    monkeypatch.setattr(noise_rows.NoiseRows, "_part", interrupting)
    with pytest.raises(KeyboardInterrupt):
        mechanism.release(vectors(1, d, 5), noise, rounds, 5, clients=["5"])
    monkeypatch.setattr(noise_rows.NoiseRows, "_part", real)
    again = mechanism.release(vectors(1, d, 5), noise, rounds, 5, clients=["5"])
    assert (again.mean == through[4].mean).all()
    assert [one.public["head"]["number"] for one in through] == [2, 3, 4, 5, 6]
    rounds.require(again.public["head"].values())


def test_sums_of_rounds_have_the_error_that_is_said_and_less_than_independent_noise(tmp_path):
    d, errors = 1500, {}
    for bands in (1, None):
        mechanism = Correlated(1.0, 1.0, 1, rounds=24, separation=8, bands=bands)
        (tmp_path / f"{bands}").mkdir()
        rounds, noise = run_of(mechanism, tmp_path / f"{bands}", d)
        total, rows = np.zeros(d), [np.zeros(d, np.float32)]
        squares = []
        for t in range(1, 25):
            got = mechanism.release(rows, noise, rounds, t, clients=[f"{t}"])
            total += got.mean
            squares.append((total**2).mean())
            assert squares[-1] == pytest.approx(got.public["noise_of_sum_of_means"] ** 2, rel=0.2)
            assert (got.mean**2).mean() == pytest.approx(got.public["noise_of_mean"] ** 2, rel=0.2)
        errors[bands] = math.sqrt(np.mean(squares))
        assert errors[bands] == pytest.approx(mechanism.factor.error, rel=0.05)
    assert errors[None] < 0.6 * errors[1]


def test_one_charge_covers_the_run_and_two_runs_have_two(tmp_path):
    pytest.importorskip("dp_accounting", reason="budgets need dp-accounting, of the extra `train`")
    d, mechanism = 20, Correlated(1.0, 2.0, 1, rounds=6, separation=3)

    def budget(**changed):
        run = {"noise_multiplier": 2.0, "dimension": mechanism.dimension(d)} | changed
        return Budget(tmp_path / "budget", 8.0, 1e-5, sealing_key=KEY, **run)

    rounds = [Rounds(tmp_path / name, mechanism.factor, d, sealing_key=KEY) for name in "ab"]
    first, again, second = (budget().reserve(mechanism.inputs_digest(rounds[i])) for i in (0, 0, 1))
    assert first == again
    assert first.key != second.key
    assert [charge.rounds for charge in budget().charges] == [1, 1]
    assert first.epsilon == pytest.approx(fc.privacy.epsilon(noise_multiplier=2.0, delta=1e-5))
    mechanism.release(vectors(1, d, 0), first, rounds[0], 1, clients=["x"])
    with pytest.raises(PrivacyError, match="noise: was reserved for another run or other settings"):
        mechanism.release(vectors(1, d, 0), first, rounds[1], 1, clients=["x"])
    for changed, words in (
        ({"sampling_rate": 0.1}, "sampling rate 0.1"),
        ({"noise_multiplier": 3.0}, "noise multiplier 3"),
        ({"dimension": 119}, "charged for 119 samples"),
    ):
        other = Rounds(tmp_path / str(changed), mechanism.factor, d, sealing_key=KEY)
        noise = budget(**changed).reserve(mechanism.inputs_digest(other))
        with pytest.raises(PrivacyError, match=words):
            mechanism.release(vectors(1, d, 0), noise, other, 1, clients=["x"])
        assert other.entered == 0
