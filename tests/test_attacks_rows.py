"""The attacks of the field: the papers' formulas on rows, the same on updates, every bad setting refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import attacks as oracles
from test_attacks import adapter

from fedcore.attacks import ALIE, ATTACKS, IPM, Attack, Gaussian, Inf, Mimic, MinMax, MinSum, SignFlip, sign_flip
from fedcore.attacks.alie import largest_z
from fedcore.attacks.attack import flat
from fedcore.dtypes import round_from_float64, to_float64
from fedcore.errors import ConfigError, LayoutError, NonFiniteError, RangeError, ShapeError
from fedcore.updates import Update

EACH = [ALIE(z=1.5), IPM(), Mimic(), Gaussian(), Inf(), SignFlip(2.0)] + [
    kind(p) for kind in (MinMax, MinSum) for p in ("std", "unit", "sign")
]


def rows(seed: int, n: int = 9, d: int = 40) -> np.ndarray:
    draw = np.random.default_rng(seed)
    return (draw.normal(0.3, 1.0, d) + draw.normal(0, 0.5, (n, d))).astype(np.float32)


def wide(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float64)


def check_rows(got: np.ndarray, expected: np.ndarray, f: int) -> None:
    assert got.shape == (f, expected.shape[-1])
    assert got.dtype == np.float32
    assert np.allclose(got, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_alie_shifts_each_column_by_z_standard_deviations(seed):
    honest = rows(seed)
    check_rows(ALIE(z=1.2)(honest, 3), oracles.alie(honest, 1.2), 3)
    check_rows(ALIE(z=-0.4)(honest, 1), oracles.alie(honest, -0.4), 1)
    check_rows(ALIE()(honest, 3), oracles.alie(honest, largest_z(12, 3)), 3)


@pytest.mark.parametrize(("n", "f"), [(50, 24), (50, 12), (12, 3), (21, 10), (10, 4), (8, 3)])
def test_z_leaves_just_the_supporters_that_a_majority_needs(n, f):
    supporters = math.floor(n / 2 + 1) - f
    assert oracles.phi(largest_z(n, f)) == pytest.approx((n - f - supporters) / (n - f), abs=1e-12)


def test_z_of_a_majority_or_of_few_has_to_be_given():
    """Of few it is 0, and attackers would send the honest mean, or below: they would go to the other side."""
    for n, f in ((4, 3), (10, 6), (10, 2), (4, 1), (17, 1), (3, 1)):
        with pytest.raises(ConfigError, match=f"ALIE: the paper has no z above 0 for n={n}, f={f}; give z"):
            largest_z(n, f)
        with pytest.raises(ConfigError, match="give z"):
            ALIE()(rows(0, n=n - f), f)


def test_there_is_a_z_for_three_attackers_or_two_of_an_odd_number_and_half_honest():
    for n in range(2, 40):
        for f in range(1, n):
            said = (f >= 3 or (f == 2 and n % 2 == 1)) and 2 * f <= n
            try:
                ALIE().check(n, f)
            except ConfigError:
                assert not said, (n, f)
            else:
                assert said, (n, f)
            ALIE(z=0.1).check(n, f)


@pytest.mark.parametrize("attack", [ALIE(z=1.0), IPM(1e300), SignFlip(1e300), MinMax("unit")])
def test_a_row_that_does_not_fit_fp64_is_refused_too(attack):
    honest = np.array([[1e200, 2e200], [3e200, -1e200]])
    with pytest.raises(RangeError, match=f"{attack.name}: a row does not fit float64; make the attack weaker"):
        attack(honest, 1)
    assert np.isinf(Inf()(honest, 1)).any()


def test_mimic_sees_the_direction_of_rows_of_any_size():
    honest = np.array([[1.0, 2.0], [3.0, -1.0], [0.5, 0.1]])
    for scale in (2.0**-700, 1.0, 2.0**700):
        assert (Mimic()(honest * scale, 1) == Mimic()(honest, 1) * scale).all()


def test_ipm_and_sign_flip_turn_the_honest_mean_around():
    honest = rows(1)
    check_rows(IPM(0.7)(honest, 2), -0.7 * wide(honest).mean(0), 2)
    check_rows(SignFlip(3.0)(honest, 2), -3 * wide(honest).mean(0), 2)
    assert float(wide(IPM(0.1)(honest, 1)[0]) @ wide(honest).mean(0)) < 0


@pytest.mark.parametrize("seed", range(8))
def test_mimic_copies_the_honest_row_that_stands_out(seed):
    honest = rows(seed) + np.eye(9, 40, dtype=np.float32) * np.float32(seed)
    copied = Mimic()(honest, 2)
    assert np.array_equal(copied, honest[[oracles.mimicked(honest)] * 2])
    assert np.array_equal(Mimic(row=4)(honest, 1)[0], honest[4])
    with pytest.raises(ConfigError, match=r"^Mimic: got row=9, expected below 9, the number of honest rows; "):
        Mimic(row=9)(honest, 1)
    with pytest.raises(ConfigError, match=r"^Mimic: got row=-1, expected a whole number of at least 0"):
        Mimic(row=-1)


def test_mimic_of_equal_rows_copies_them():
    honest = np.tile(rows(0, n=1), (4, 1))
    assert np.array_equal(Mimic()(honest, 2), honest[:2])


def test_gaussian_draws_each_attacker_anew_and_repeats_under_its_seed():
    honest = rows(0, d=20_000)
    drawn = Gaussian(sigma=3.0)(honest, 2, seed=7)
    assert np.array_equal(drawn, Gaussian(sigma=3.0)(honest, 2, seed=7))
    assert not np.array_equal(drawn, Gaussian(sigma=3.0)(honest, 2, seed=8))
    assert abs(np.corrcoef(drawn)[0, 1]) < 0.05
    assert drawn.std() == pytest.approx(3.0, rel=0.02)
    assert abs(drawn.mean()) < 0.06


def test_inf_is_infinite_everywhere():
    assert np.isposinf(Inf()(rows(0), 3)).all()


def direction(name: str, honest: np.ndarray) -> np.ndarray:
    mean = wide(honest).mean(0)
    return {
        "std": -wide(honest).std(0, ddof=1),
        "unit": -mean / np.linalg.norm(mean),
        "sign": -np.sign(mean),
    }[name]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("perturbation", ["std", "unit", "sign"])
@pytest.mark.parametrize(("attack", "kind"), [(MinMax, "max"), (MinSum, "sum")])
def test_min_max_and_min_sum_find_what_the_papers_search_finds(attack, kind, perturbation, seed):
    honest = rows(seed)
    expected = oracles.shifted(honest, direction(perturbation, honest), kind)
    check_rows(attack(perturbation)(honest, 2), expected, 2)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(2, 12),
    st.integers(1, 30),
    st.sampled_from(["std", "unit", "sign"]),
    st.floats(1e-6, 1e6),
)
def test_the_shift_reaches_its_bound_and_does_not_pass_it(seed, n, d, perturbation, size):
    honest = np.random.default_rng(seed).normal(0.1, 1, (n, d)) * size
    pairs = np.array([[np.sum((a - b) ** 2) for b in honest] for a in honest])
    for attack, bound, over in ((MinMax, pairs.max(), np.max), (MinSum, pairs.sum(1).max(), np.sum)):
        sent = attack(perturbation)(honest, 1)[0]
        reached = over([np.sum((sent - a) ** 2) for a in honest])
        assert reached == pytest.approx(bound, rel=1e-9)


@pytest.mark.parametrize("attack", [MinMax(), MinSum("unit"), MinSum("sign"), ALIE(z=1.0), Mimic()])
def test_rows_that_do_not_differ_give_no_direction(attack):
    zero = np.zeros((3, 5), np.float32)
    assert np.array_equal(attack(zero, 2), zero[:2])
    one = rows(0, n=1)
    assert np.isfinite(attack(one, 2)).all()


@pytest.mark.parametrize("attack", [MinMax("sign"), MinSum("sign"), MinMax("unit"), MinSum("unit")], ids=repr)
def test_equal_rows_leave_no_room_however_their_mean_rounds(attack):
    """The mean of three times 0.1 is not 0.1, which leaves less room than none."""
    honest = np.tile([0.1, 0.25, -0.7], (3, 1))
    assert (honest.mean(0) != honest[0]).any()
    sent = attack(honest, 2)
    assert np.allclose(sent, honest[:2], rtol=0, atol=1e-15)


@pytest.mark.parametrize("attack", EACH, ids=repr)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_rows_keep_their_dtype_and_the_honest_ones_stay(attack, dtype):
    honest = round_from_float64(wide(rows(2)), dtype)
    before = honest.tobytes()
    sent = attack(honest, 2)
    assert sent.dtype == honest.dtype
    assert honest.tobytes() == before
    exact = attack(to_float64(honest), 2)
    assert sent.tobytes() == round_from_float64(exact, dtype).tobytes()


def test_bad_rows_and_settings_are_refused():
    honest = rows(0)
    with pytest.raises(ShapeError, match=r"got honest rows of shape \(40,\)"):
        IPM()(honest[0], 1)
    with pytest.raises(ShapeError, match=r"shape \(0, 3\)"):
        IPM()(np.zeros((0, 3), np.float32), 1)
    with pytest.raises(ConfigError, match="got f=0, expected at least one attacker"):
        IPM()(honest, 0)
    honest[4, 3] = np.nan
    with pytest.raises(NonFiniteError, match="honest row 4 holds NaN or Inf"):
        IPM()(honest, 1)
    with pytest.raises(RangeError, match="a row does not fit float16"):
        IPM(1e6)(np.full((2, 2), 100, np.float16), 1)
    for made in (
        lambda: IPM(0.0), lambda: ALIE(z=math.nan), lambda: Gaussian(-1.0), lambda: Mimic(row=-1),
        lambda: Mimic(row=1.0), lambda: MinMax("up"), lambda: SignFlip(0.0),
    ):  # fmt: skip
        with pytest.raises(ConfigError):
            made()


@pytest.mark.parametrize("attack", [a for a in EACH if not isinstance(a, SignFlip)], ids=repr)
def test_updates_are_attacked_as_their_changes_from_the_reference(attack: Attack):
    reference, own = adapter(0), [adapter(8), adapter(9)]
    honest = [adapter(seed) for seed in range(1, 6)]
    start = flat(reference)
    crafted = attack(np.array([flat(update) - start for update in honest]), 2, seed=3)
    sent = attack.on_updates(honest, own, reference, seed=3)
    for update, mine, row in zip(sent, own, crafted, strict=True):
        expected = (start + row).astype(np.float32)
        assert np.array_equal(flat(update).astype(np.float32), expected)
        assert (update.client_id, update.num_examples, update.base) == (mine.client_id, mine.num_examples, mine.base)
        assert (update.layout, update.scaling) == (mine.layout, mine.scaling)
    one_by_one = attack.against(honest, 2, reference, seed=3)
    assert one_by_one(own[1], 1).digest() == sent[1].digest()


def test_sign_flip_of_updates_is_of_each_attackers_own():
    reference, own = adapter(0), [adapter(8), adapter(9)]
    sent = SignFlip(2.0).on_updates([adapter(1)], own, reference)
    assert [u.digest() for u in sent] == [sign_flip(u, reference, 2.0).digest() for u in own]


def test_updates_that_do_not_fit_are_named():
    with pytest.raises(LayoutError, match=r"client 'c2': tensor .* like the reference"):
        IPM().on_updates([adapter(1), adapter(2, rank=2)], [adapter(3)], adapter(0))
    with pytest.raises(ShapeError, match="got no honest row"):
        IPM().on_updates([], [adapter(3)], adapter(0))
    tensors = {"w": np.full(3, 200, np.float16)}
    huge, zero = Update.from_tensors(tensors), Update.from_tensors({"w": np.zeros(3, np.float16)})
    with pytest.raises(RangeError, match="IPM: tensor w does not fit float16"):
        IPM(1e3).on_updates([huge], [huge], zero)


def test_every_attack_of_a_configuration_is_here():
    assert {type(attack) for attack in EACH} == set(ATTACKS.values())
