"""The Triton kernel of the Gram matrix within its bound of the definition, interpreted and, with `-m gpu`, on a GPU.

Sizes come from its constants: a block is 256 columns and a chunk 8192, a tile 16 or 32 rows.
"""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the Triton kernels take torch tensors")
triton = pytest.importorskip("triton", reason="Triton is not installed; fedcore[train] brings it")

from triton_rows import DTYPES, make_rows, place, table  # noqa: E402

from fedcore.dtypes import to_float64  # noqa: E402
from fedcore.kernels import gram  # noqa: E402
from fedcore.ops.tensors import view_of_tensor  # noqa: E402
from fedcore.reference import gram as gram_definition  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, for the Inf and NaN that tests feed


def check_gram(tensors, center=None) -> np.ndarray:
    """Assert the documented bound and symmetry; return the kernel's Gram matrix."""
    got = gram.gram(tensors, center).cpu().numpy()
    exact = gram_definition.gram(table(tensors), None if center is None else table([center]))
    diagonal = exact.diagonal()[:, None] + exact.diagonal()[None, :]
    assert (np.abs(got - exact) <= gram_definition.EPSILON / 4 * diagonal).all()
    np.testing.assert_array_equal(got, got.T)
    return got


def distances(matrix: np.ndarray) -> np.ndarray:
    return matrix.diagonal()[:, None] + matrix.diagonal()[None, :] - 2 * matrix


class TestGram:
    def test_constants_are_the_definitions(self):
        of_a_chain = gram_definition.BLOCK // gram_definition.CHAINS
        assert of_a_chain == gram.RUN
        assert (gram.BLOCK, gram.CHUNK) == (gram_definition.BLOCK, gram_definition.CHUNK)

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize(("n", "d"), [(5, 1), (2, 255), (1, 256), (16, 257), (17, 300), (33, 300), (2, 1025)])
    def test_bound(self, device, dtype, n, d):
        tensors = make_rows(n, d, dtype, device, seed=1)
        check_gram(tensors)
        check_gram(tensors, tensors[n // 2])

    def test_bound_over_full_and_cut_chunks(self, device):
        check_gram(make_rows(2, gram.CHUNK + 257, "float32", device))

    def test_no_columns(self, device):
        assert (check_gram(make_rows(3, 0, "float32", device)) == 0.0).all()

    @pytest.mark.parametrize("center_dtype", DTYPES)
    def test_center_of_another_dtype(self, device, center_dtype):
        check_gram(make_rows(3, 300, "bfloat16", device), make_rows(1, 300, center_dtype, device, seed=9)[0])

    @pytest.mark.parametrize("scale", [1e30, 1e-30, 1e-44, 1e38])
    def test_bound_holds_at_any_scale(self, device, scale):
        values = np.random.default_rng(2).uniform(-3, 3, (3, 300)) * scale
        tensors = [place(v, "float32", device) for v in values]
        assert (check_gram(tensors).diagonal() > 0).all()
        check_gram(tensors, tensors[1])

    def test_rows_of_different_scale_in_one_cohort(self, device):
        values = np.random.default_rng(2).normal(size=(6, 700))
        values *= np.array([1e30, 1e-30, 1.0, 1e-44, 0.0, 1e15])[:, None]
        values[2, :256] *= 1e-35  # one block of a row small, the next not
        tensors = [place(v, "float32", device) for v in values]
        got = check_gram(tensors)
        exact = np.array([to_float64(view_of_tensor(t.cpu())) for t in tensors])
        np.testing.assert_allclose(got.diagonal(), (exact**2).sum(1), rtol=1e-6)
        check_gram(tensors, tensors[0])

    def test_a_difference_beyond_fp32(self, device):
        tensors = [place(v, "float32", device) for v in ([3e38, 1.0, -2.0], [-3e38, 3.0, 1e-3], [-2e38, 0.0, 5.0])]
        assert np.isfinite(check_gram(tensors, tensors[0])).all()

    def test_a_small_difference_of_large_rows(self, device):
        """Rows that agree where they are large; what is left is far below 2⁻⁴⁰ and is neither lost nor flushed."""
        base = np.array([3e38] * 10 + [1e-38] * 300)
        tensors = [place(base, "float32", device), place(base * np.array([1.0] * 10 + [1.5] * 300), "float32", device)]
        got = check_gram(tensors, tensors[0])
        assert got[0].tolist() == [0.0, 0.0]
        assert got[1, 1] > 0

    def test_honest_pairs_beside_an_attacker(self, device):
        """Honest rows that differ by 1e-4 of their size, an attacker at +50: the honest distances stay good to 1e-6."""
        rng = np.random.default_rng(4)
        shared = rng.normal(size=3000)
        values = [shared * (1 + 1e-4 * rng.normal(size=3000)) for _ in range(5)] + [shared + 50.0]
        tensors = [place(v, "float32", device) for v in values]
        got = distances(check_gram(tensors, tensors[0]))
        x = np.array([to_float64(view_of_tensor(t.cpu())) for t in tensors])
        exact = ((x[:, None] - x[None]) ** 2).sum(-1)
        honest = ~np.eye(5, dtype=bool)
        np.testing.assert_allclose(got[:5, :5][honest], exact[:5, :5][honest], rtol=1e-6)

    def test_the_same_bits_whatever_the_partials_buffer(self, device, monkeypatch):
        monkeypatch.setattr(gram, "CHUNK", 256)
        tensors = make_rows(3, 5 * 256 + 7, "float32", device)
        whole = check_gram(tensors)
        monkeypatch.setattr(gram, "PARTIALS", 2 * 16 * 16 * 8)
        np.testing.assert_array_equal(whole, check_gram(tensors))

    def test_a_row_has_the_same_bits_beside_rows_that_need_scaling(self, device):
        tensors = make_rows(3, 600, "float32", device)
        alone = gram.gram(tensors[:2]).cpu().numpy()
        tensors[2].mul_(1e35)
        np.testing.assert_array_equal(alone, gram.gram(tensors).cpu().numpy()[:2, :2])

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    @pytest.mark.parametrize("center", [False, True])
    def test_a_bad_row_shows_on_its_diagonal_only(self, device, center, value):
        tensors = make_rows(3, 600, "float32", device)
        tensors[1][599] = value
        got = gram.gram(tensors, tensors[0] if center else None).cpu().numpy()
        assert np.isfinite(got.diagonal()).tolist() == [True, False, True]
        assert np.isfinite(got[0, 2])
