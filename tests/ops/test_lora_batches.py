"""The batched cores that tensors on a GPU take: the same results as on the host, for all modules of one size at once.

Run on the CPU's tensors where there is no GPU: torch.linalg is called alike.
"""

from __future__ import annotations

import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the batched cores take torch tensors")

import fedcore as fc  # noqa: E402
from fedcore.errors import NonFiniteError, ShapeError  # noqa: E402
from fedcore.ops import lora_batches  # noqa: E402
from fedcore.ops.lora_batches import passes, truncate_pass  # noqa: E402
from fedcore.ops.lora_stack import checked_parts  # noqa: E402
from tests.ops.test_lora_truncate import KINDS, factors  # noqa: E402
from tests.oracles.delta import truncated  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def module(kind: str, d_out: int, d_in: int, ranks: list[int], seed: int, dtype=torch.float32):
    """(b, a, coefficients) of clients of these ranks, tensors on the device."""
    b, a = factors(kind, d_out, d_in, 1, sum(ranks), seed)
    b, a = (torch.from_numpy(x).to(DEVICE, dtype) for x in (b, a))
    split = list(torch.split(b, ranks, 1)), list(torch.split(a, ranks, 0))
    return *split, np.linspace(0.5, -1.5, len(ranks))


def on_host(given):
    b, a, coefficients = given
    return [x.cpu() for x in b], [x.cpu() for x in a], coefficients


def delta_of(given) -> np.ndarray:
    b, a, coefficients = given
    parts = zip(coefficients, b, a, strict=True)
    return sum(c * x.double().cpu().numpy() @ y.double().cpu().numpy() for c, x, y in parts)


def batch(modules, ranks, core="gram", scale=1.0):
    parts = [checked_parts(*given, f"module {m}") for m, given in enumerate(modules)]
    assert passes(parts) == [list(range(len(modules)))]
    return truncate_pass(parts, ranks, scale, core)


@pytest.mark.parametrize("core", ["gram", "qr"])
def test_modules_of_rank_zero_beside_others_and_alone(core):
    empty, full = module("flat", 75, 60, [0, 0], 0), module("flat", 75, 60, [3, 0, 2], 1)
    (first, second), (alone,) = batch([empty, full], [4], core), batch([empty], [4], core)
    for found in (first[4], alone[4]):
        assert (found.norm, found.residual, found.most, found.least) == (0, 0, 0, 0)
        assert not found.b.any()
        np.testing.assert_allclose((found.a @ found.a.mT).cpu(), np.eye(4), atol=1e-12)
    assert second[4].norm == pytest.approx(np.linalg.norm(delta_of(full)), rel=1e-12)


@pytest.mark.parametrize("core", ["gram", "qr"])
@pytest.mark.parametrize(("d_out", "d_in"), [(75, 130), (130, 70)])
def test_each_module_of_a_pass_is_its_dense_truncation(core, d_out, d_in):
    """Modules of differing ranks, kinds and dtypes in one pass; and what is said of each is true."""
    ranks = [[8, 8, 8], [4, 16, 8, 1, 16], [3], [20, 20]]
    dtypes = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
    modules = [
        module(kind, d_out, d_in, own, seed, dtype)
        for seed, (kind, own, dtype) in enumerate(zip(KINDS, ranks, dtypes, strict=True))
    ]
    for given, found in zip(modules, batch(modules, [1, 6, 20], core, -0.5), strict=True):
        delta = delta_of(given)
        size = np.linalg.norm(delta)
        for rank, one in found.items():
            assert one.a.device.type == one.b.device.type == DEVICE
            product = -0.5 * (one.b @ one.a).cpu().numpy()
            best = truncated(delta, rank)
            assert np.linalg.norm(product - best) <= 1e-7 * size
            optimum = np.linalg.norm(delta - best) / size
            assert one.norm == pytest.approx(size, rel=1e-12)
            assert one.residual == pytest.approx(optimum, abs=2e-8)
            assert one.least <= optimum + 1e-15
            assert optimum <= one.most + 1e-15
            host = fc.ops.lora_truncate(*on_host(given), rank, scale=-0.5)[rank]
            np.testing.assert_allclose(product, -0.5 * (host.b @ host.a).numpy(), atol=2e-7 * size)
            # canonical: balanced, and of one sign
            sizes = [x.cpu().numpy() for x in (one.a.norm(dim=1), one.b.norm(dim=0))]
            alive = sizes[1] > 0
            np.testing.assert_allclose(sizes[0][alive], sizes[1][alive], rtol=1e-6)
            np.testing.assert_allclose(one.b[:, 0].cpu(), host.b[:, 0], atol=1e-6 * size)


def test_a_module_whose_grams_hide_its_update_is_left_to_qr():
    """Terms that cancel to 2⁻²⁴ of themselves, between two modules that the Gram core decides."""
    plain, other = (module("flat", 200, 150, [20, 20], seed) for seed in (0, 1))
    rng = np.random.default_rng(0)
    b, a = rng.standard_normal((200, 20)), rng.standard_normal((20, 150))
    nearly = a + 2.0**-24 * rng.standard_normal(a.shape)
    hidden = [[torch.from_numpy(x).to(DEVICE) for x in side] for side in ((b, -b), (a, nearly))]
    modules = [plain, (*hidden, [1.0, 1.0]), other]
    found = batch(modules, [8])
    assert [one[8].core for one in found] == ["gram", "qr", "gram"]
    delta = b @ (a - nearly)
    product = (found[1][8].b @ found[1][8].a).cpu().numpy()
    assert np.linalg.norm(product - truncated(delta, 8)) <= 1e-6 * np.linalg.norm(delta)
    for k in (0, 2):
        product = (found[k][8].b @ found[k][8].a).cpu().numpy()
        best = truncated(delta_of(modules[k]), 8)
        np.testing.assert_allclose(product, best, atol=1e-7 * np.linalg.norm(best))


def test_nothing_at_all_stays_trainable():
    b, a, coefficients = module("flat", 90, 70, [8, 8], 0)
    modules = [([x * 0 for x in b], a, coefficients), (b, a, np.zeros(2)), (b, a, coefficients)]
    found = batch(modules, [3])
    for one in (found[0][3], found[1][3]):
        assert (one.norm, one.residual, one.most, one.least) == (0, 0, 0, 0)
        assert not one.b.any()
        np.testing.assert_allclose((one.a @ one.a.T).cpu(), np.eye(3), atol=1e-12)
    assert found[2][3].norm > 0


@pytest.mark.parametrize("core", ["gram", "qr"])
def test_terms_that_cancel_to_nothing_stay_trainable(core):
    """Beside a module of which something is left: no value of the other is more than its rounding."""
    b, a, coefficients = module("flat", 90, 70, [4, 4], 0)
    found = batch([([b[0], -b[0]], [a[0], a[0]], np.ones(2)), (b, a, coefficients)], [3], core)
    one = found[0][3]
    assert (one.norm, one.residual, one.most, one.least) == (0, 0, 0, 0)
    assert not one.b.any()
    np.testing.assert_allclose((one.a @ one.a.T).cpu(), np.eye(3), atol=1e-12)
    assert found[1][3].norm > 0
    assert (found[1][3].b.norm(dim=0) > 0).all()


@pytest.mark.parametrize("core", ["gram", "qr"])
def test_directions_beyond_the_terms_are_fresh_and_those_of_the_host(core):
    modules = [module("flat", 90, 20, [2, 2], seed) for seed in range(2)]
    for given, found in zip(modules, batch(modules, [16, 30], core), strict=True):
        host = fc.ops.lora_truncate(*on_host(given), (16, 30))
        for rank, one in found.items():
            np.testing.assert_allclose(one.a.cpu(), host[rank].a, atol=1e-6 * np.abs(host[rank].a).max())
            fresh = one.a[4:20].cpu().numpy()
            np.testing.assert_allclose(fresh @ fresh.T, np.eye(len(fresh)), atol=1e-12)
            assert not one.b[:, 4:].any()


def test_sizes_whose_squares_do_not_fit_are_left_to_qr():
    b, a, coefficients = module("flat", 90, 70, [8, 8], 0, torch.float64)
    found = batch([([x * 1e-200 for x in b], [y * 1e200 for y in a], coefficients), (b, a, coefficients)], [3])
    assert [one[3].core for one in found] == ["qr", "gram"]
    np.testing.assert_allclose((found[0][3].b @ found[0][3].a).cpu(), (found[1][3].b @ found[1][3].a).cpu(), atol=1e-8)


@pytest.mark.parametrize("core", ["gram", "qr"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_and_inf_are_named_by_module_and_row(core, value):
    modules = [module("flat", 90, 70, [8, 4], seed) for seed in range(3)]
    modules[1][1][1][2, 3] = value
    with pytest.raises(NonFiniteError, match="module 1: row 1: its factors hold NaN or Inf") as caught:
        batch(modules, [3], core)
    assert caught.value.row == 1


def test_passes_hold_modules_of_one_size_up_to_a_limit(monkeypatch):
    sizes = [(64, 32), (32, 64), (64, 32), (64, 32), (32, 64)]
    parts = [checked_parts(*module("flat", *size, [4, 4], seed)) for seed, size in enumerate(sizes)]
    assert passes(parts) == [[0, 2, 3], [1, 4]]
    monkeypatch.setattr(lora_batches, "PASS", 2 * 8 * 8 * 96)
    assert passes(parts) == [[0, 2], [3], [1, 4]]
    monkeypatch.setattr(lora_batches, "PASS", 1)
    assert passes(parts) == [[0], [2], [3], [1], [4]]


def test_many_modules_come_back_in_order_whatever_they_are(monkeypatch):
    """Arrays, and tensors of two sizes; on the CPU the device path is forced, so that it is what answers."""
    monkeypatch.setattr("fedcore.ops.lora_stack.Parts.on_gpu", property(lambda parts: parts.device is not None))
    shapes = [(150, 310), (270, 240), (150, 310)]
    modules = [module("flat", *shape, [48, 48, 48], seed) for seed, shape in enumerate(shapes)]
    arrays = [[x.cpu().numpy() for x in side] for side in modules[1][:2]]
    given = [modules[0], modules[1], (*arrays, modules[1][2]), modules[2]]
    seen = []

    def counted(modules, *rest):
        seen.append(len(modules))
        return truncate_pass(modules, *rest)

    # the function of this name hides its module
    monkeypatch.setattr(sys.modules["fedcore.ops.lora_truncate"], "truncate_pass", counted)
    found = fc.ops.lora_truncate_modules(iter(given), (2, 4))
    assert seen == [2, 1]
    assert isinstance(found[2][4].b, np.ndarray)
    for source, one in zip(given, found, strict=True):
        assert list(one) == [2, 4]
        delta = delta_of(modules[1] if source is given[2] else source)
        product = np.asarray((one[4].b @ one[4].a).cpu() if source is not given[2] else one[4].b @ one[4].a)
        assert np.linalg.norm(product - truncated(delta, 4)) <= 1e-7 * np.linalg.norm(delta)
    alone = fc.ops.lora_truncate(*modules[0], 4)[4]
    np.testing.assert_allclose((alone.b @ alone.a).cpu(), (found[0][4].b @ found[0][4].a).cpu(), atol=1e-9)


def test_what_it_cannot_take_is_named():
    b, a, coefficients = module("flat", 9, 7, [2, 2], 0)
    with pytest.raises(ShapeError, match="got no module"):
        fc.ops.lora_truncate_modules([], 2)
    with pytest.raises(ShapeError, match=r"lora_truncate_modules: module 1: got coefficients \(1,\), expected \(2,\)"):
        fc.ops.lora_truncate_modules([(b, a, coefficients), (b, a, [1.0])], 2)
    with pytest.raises(ShapeError, match="row 1: expected arrays, or tensors on one device, like row 0"):
        fc.ops.lora_truncate([b[0], b[1].cpu().numpy()], [a[0], a[1].cpu().numpy()], coefficients, 2)
