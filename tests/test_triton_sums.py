"""Triton weighted_sums, sign_counts and squared_distances against their definitions, interpreted and on a GPU."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the Triton kernels take torch tensors")
pytest.importorskip("triton", reason="Triton is not installed; fedcore[train] brings it")

from triton_rows import DTYPES, OUT_DTYPES, check_bits, check_kernel, make_rows, place, table  # noqa: E402

import fedcore as fc  # noqa: E402
from fedcore.backends import default  # noqa: E402
from fedcore.errors import NonFiniteError  # noqa: E402
from fedcore.kernels import sign_counts, squared_distances, weighted_sums  # noqa: E402
from fedcore.reference import sign_counts as sign_counts_definition  # noqa: E402
from fedcore.reference import squared_distances as squared_distances_definition  # noqa: E402
from fedcore.reference import weighted_sums as weighted_sums_definition  # noqa: E402
from fedcore.rules.rows import RowExecutor  # noqa: E402
from tests.cohorts import decided  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, for the Inf and NaN that tests feed


def check_weighted_sums(tensors, weights, divisors, out_dtype: str = "float32") -> bool:
    weights = np.asarray(weights, np.float32)
    kernel, definition = weighted_sums.weighted_sums, weighted_sums_definition.weighted_sums
    shape = (len(weights), len(tensors[0]))
    return check_kernel(kernel, definition, tensors, (weights, divisors), shape, out_dtype)


class TestWeightedSums:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize(("m", "n", "d"), [(1, 5, 1), (2, 1, 511), (15, 9, 512), (16, 3, 513), (17, 33, 1100)])
    def test_bits(self, device, m, n, d, dtype):
        rng = np.random.default_rng(m)
        tensors = make_rows(n, d, dtype, device, seed=m)
        weights = rng.normal(size=(m, n)) * (rng.uniform(size=(m, n)) < 0.8)
        for out_dtype in OUT_DTYPES:
            check_weighted_sums(tensors, weights, None, out_dtype)
            check_weighted_sums(tensors, np.abs(weights), rng.uniform(1, 9, m), out_dtype)

    def test_bits_at_every_magnitude(self, device):
        tensors = make_rows(3, 700, "float32", device, seed=7, spread=36.0)
        check_weighted_sums(tensors, [[1.0, 0.3, -0.7], [3e38, -3e38, 2.0**-126]], None, "float64")

    def test_a_row_without_weight_is_not_read(self, device):
        tensors = make_rows(3, 520, "float32", device)
        tensors[1].fill_(float("nan"))
        assert not check_weighted_sums(tensors, [[1, 0, 2], [0, 0, 1]], np.array([3.0, 1.0]))
        assert check_weighted_sums(tensors, [[1, 0, 2], [0, 1, 1]], None)

    def test_nothing_to_add(self, device):
        tensors = make_rows(3, 520, "float32", device)
        assert not check_weighted_sums(tensors, np.zeros((2, 3)), None, "bfloat16")
        assert not check_weighted_sums(tensors, np.zeros((0, 3)), None)
        assert not check_weighted_sums(make_rows(3, 0, "float32", device), np.ones((2, 3)), None)

    @pytest.mark.parametrize("column", [0, 519])
    def test_not_finite_is_reported(self, device, column):
        tensors = make_rows(2, 520, "float16", device)
        tensors[1][column] = float("inf")
        assert check_weighted_sums(tensors, np.ones((17, 2)), None)
        assert check_weighted_sums([place([6e4], "float32", device)] * 2, np.ones((17, 2)), None, "float16")


def check_sign_counts(tensors, center) -> bool:
    kernel, definition = sign_counts.sign_counts, sign_counts_definition.sign_counts
    return check_kernel(kernel, definition, tensors, (center,), (len(tensors[0]),), "int32")


class TestSignCounts:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize(("n", "d"), [(1, 1), (2, 1023), (5, 1024), (33, 1025)])
    def test_counts(self, device, n, d, dtype):
        tensors = make_rows(n, d, dtype, device, seed=n)
        tensors[0][::3] = 0.0
        assert not check_sign_counts(tensors, None)
        for other in DTYPES:
            center = place(tensors[n // 2].double().cpu().numpy(), other, device, lead=3)
            assert not check_sign_counts(tensors, center)

    def test_zeros_are_equal_and_subnormals_are_not_zero(self, device):
        for dtype, tiny in (("float32", 2.0**-149), ("bfloat16", 2.0**-133), ("float16", 2.0**-24)):
            tensors = [place([-0.0, 0.0, tiny, -tiny, tiny], dtype, device)] * 2
            assert not check_sign_counts(tensors, None)
            assert not check_sign_counts(tensors, place([0.0, -0.0, 0.0, tiny, tiny], dtype, device))

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
    def test_not_finite_is_reported(self, device, value):
        tensors, center = make_rows(3, 1030, "float32", device), make_rows(1, 1030, "bfloat16", device)[0]
        assert not check_sign_counts(tensors, center)
        center[1029] = value
        assert check_sign_counts(tensors, center)
        tensors[2][5] = value
        assert check_sign_counts(tensors, None)

    def test_no_columns(self, device):
        assert not check_sign_counts(make_rows(3, 0, "float32", device), None)


def check_distances(tensors, pairs) -> np.ndarray:
    pairs = np.asarray(pairs, np.int64).reshape(-1, 2)
    got = squared_distances.squared_distances(tensors, pairs)
    expected = squared_distances_definition.squared_distances(table(tensors), pairs)
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(np.isfinite(got.cpu().numpy()), finite)
    check_bits(got[torch.tensor(finite, device=got.device)], expected[finite])
    return expected


class TestSquaredDistances:
    @pytest.fixture(autouse=True)
    def small_chunks(self, monkeypatch, device):
        """The interpreter needs a second for a chunk of 4096 columns that is added one by one."""
        if device == "cpu":
            monkeypatch.setattr(squared_distances, "CHUNK", 128)
            monkeypatch.setattr(squared_distances, "BLOCK", 64)

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("d", [1, 127, 128, 129, 1000])
    def test_bits(self, device, dtype, d):
        d = d if device == "cpu" else 33 * d
        tensors = make_rows(4, d, dtype, device, seed=d)
        check_distances(tensors, [[0, 1], [3, 2], [1, 3], [2, 2]])

    def test_ordered(self, device):
        """1e20 swallows each 64² that comes after it, not the sum of those that came before."""
        zero = place([0.0] * 300, "float32", device)
        before = place([*[64.0] * 299, 1e10], "float32", device)
        after = place([1e10, *[64.0] * 299], "float32", device)
        first, last = check_distances([zero, before, after], [[0, 1], [0, 2]])
        assert first > last == np.float64(np.float32(1e10)) ** 2

    def test_ties_are_rounded_by_the_sum_so_far(self, device):
        """From 2⁵⁵ on the unit in the last place is 8, so that 2² and 6² lie halfway and the sum's last bit decides."""
        rng = np.random.default_rng(1)
        values = np.concatenate([[2.0**27] * 2, rng.choice([1.0, 2.0, 3.0, 6.0, 7.0], 900)])
        tensors = [place(values, "float32", device), place(np.zeros(len(values)), "float32", device)]
        expected = check_distances(tensors, [[0, 1]])
        assert expected[0] != np.sum(values**2), "the draw has no rounding in it"

    def test_a_sum_that_ends_on_a_power_of_two(self, device):
        values = np.ones(128 * 9)
        tensors = [place(values, "float32", device), place(np.zeros(len(values)), "float32", device)]
        tensors[0][640:] = 2.0**-30
        check_distances(tensors, [[0, 1]])

    @pytest.mark.parametrize("spread", [0.0, 6.0, 30.0])
    def test_sums_that_grow_by_jumps(self, device, spread):
        tensors = make_rows(3, 900, "float32", device, seed=3, spread=spread)
        for row in tensors:
            row[:300] *= 2.0**-40
        check_distances(tensors, [[0, 1], [1, 2]])

    def test_equal_rows_and_a_late_difference(self, device):
        row = make_rows(1, 900, "float32", device)[0]
        other = row.clone()
        other[700:] += 1.0
        assert check_distances([row, row.clone(), other], [[0, 1], [0, 2]])[0] == 0.0

    def test_most_chunks_are_added_whole(self, device, monkeypatch):
        """Of the chunks of ordinary rows those at a new binade and some early ones, with ties, go one by one."""
        if device == "cpu":
            monkeypatch.setattr(squared_distances, "CHUNK", 32)
            monkeypatch.setattr(squared_distances, "BLOCK", 32)
        sums = []
        ordered = squared_distances._ordered_kernel

        class Recorded:
            def __getitem__(self, grid):
                def run(addresses, pairs, powers, steps, total, *rest, **options):
                    sums.append((powers.cpu().numpy().copy(), steps.cpu().numpy().copy()))
                    return ordered[grid](addresses, pairs, powers, steps, total, *rest, **options)

                return run

        monkeypatch.setattr(squared_distances, "_ordered_kernel", Recorded())
        chunk = squared_distances.CHUNK
        tensors = [place(np.random.default_rng(i).normal(size=chunk * 150), "float32", device) for i in range(2)]
        expected = check_distances(tensors, [[0, 1]])
        ((powers, steps),) = sums
        total, whole = 0.0, 0
        exact = (np.subtract(*(t.double().cpu().numpy() for t in tensors)) ** 2).reshape(-1, chunk)
        for power, step, terms in zip(powers[:, 0], steps[:, 0], exact, strict=True):
            fits = total > 0 and 2.0 ** np.floor(np.log2(total)) == power and total + step < 2 * power
            total = total + step if fits else np.cumsum([total, *terms])[-1]
            whole += fits
        assert total == expected[0]
        assert whole >= 100

    @pytest.mark.parametrize("factor", [0.5, 2.0, 2.0**40, float("nan")])
    def test_a_wrong_guess_changes_no_bit(self, device, monkeypatch, factor):
        guess = squared_distances._guessed_powers
        monkeypatch.setattr(squared_distances, "_guessed_powers", lambda sums, total: guess(sums, total) * factor)
        check_distances(make_rows(2, 700, "float32", device), [[0, 1]])

    def test_goes_on_from_a_total(self, device):
        tensors, pairs = make_rows(3, 700, "float32", device), np.array([[0, 1], [2, 1]])
        total = squared_distances.squared_distances([t[:301].clone() for t in tensors], pairs)
        found = squared_distances.squared_distances([t[301:].clone() for t in tensors], pairs, total=total)
        assert found is total
        check_bits(total, squared_distances_definition.squared_distances(table(tensors), pairs))

    def test_the_same_bits_whatever_the_batches(self, device, monkeypatch):
        monkeypatch.setattr(squared_distances, "PARTIALS", 1)
        check_distances(make_rows(4, 300, "bfloat16", device), [[0, 1], [2, 3], [0, 3]])

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    @pytest.mark.parametrize("column", [0, 500])
    def test_only_pairs_of_the_bad_row_are_not_finite(self, device, value, column):
        tensors = make_rows(3, 600, "float32", device)
        tensors[1][column] = value
        assert np.isfinite(check_distances(tensors, [[0, 1], [0, 2]])).tolist() == [False, True]

    def test_extremes(self, device):
        check_distances([place([v] * 200, "float32", device) for v in (3e38, -3e38, 2.0**-149)], [[0, 1], [1, 2]])
        for dtype, tiny in (("float32", 2.0**-149), ("bfloat16", 2.0**-133)):
            assert check_distances([place([v] * 200, dtype, device) for v in (0.0, tiny)], [[0, 1]])[0] > 0

    def test_nothing_to_add(self, device):
        assert check_distances(make_rows(2, 0, "float32", device), [[0, 1]]).tolist() == [0.0]
        assert check_distances(make_rows(2, 10, "float32", device), []).tolist() == []


def test_public_ops(device):
    tensors = make_rows(4, 60, "bfloat16", device)
    on_cpu = [t.cpu() for t in tensors]
    pairs, weights = [[0, 3], [2, 1]], np.array([[1.0, 0.0, 2.0, 0.5], [1, 1, 1, 1]])
    for call in (
        lambda rows, backend: torch.tensor(fc.ops.squared_distances(rows, pairs, backend=backend)),
        lambda rows, backend: fc.ops.sign_counts(rows, rows[0], backend=backend),
        lambda rows, backend: fc.ops.weighted_sums(rows, weights, [3.5, 4.0], backend=backend),
    ):
        assert torch.equal(call(tensors, "triton").cpu(), call(on_cpu, "reference"))
    tensors[3][5] = float("nan")
    with pytest.raises(NonFiniteError, match="row 3 holds nan at column 5"):
        fc.ops.squared_distances(tensors, pairs, backend="triton")


def test_a_selection_is_redone_where_the_rows_lie(device):
    """Equal rows tie, so pairs are formed again; rows on a GPU stay there."""
    rows = [row.float() for row in make_rows(3, 300, "bfloat16", device) for _ in range(2)]
    executor = RowExecutor.from_rows(rows, references={}, backend="triton", threads=None)
    assert executor.redone_on(False) == "triton"
    found, error = executor.exact(np.array([[0, 1], [0, 2], [4, 3]]), None)
    np.testing.assert_array_equal(
        found, squared_distances_definition.squared_distances(table(rows), np.array([[0, 1], [0, 2], [4, 3]]))
    )
    assert not error.any()
    krum = fc.rules.Krum(f=1)
    assert torch.equal(krum(rows, backend="triton").cpu(), krum([r.cpu() for r in rows], backend="reference"))
    # mixtures are formed on the host
    for rule, where in ((krum, "triton"), (fc.rules.NormClipping(1.0).then(krum), default(False))):
        assert decided(rule, rows, backend="triton").details["redone_on"] == where
