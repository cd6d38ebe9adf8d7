"""sign_flip: the change reversed and scaled in what the model sees, exact where it can be, nearest where not."""

from __future__ import annotations

import numpy as np
import pytest

from fedcore.attacks import sign_flip
from fedcore.dtypes import round_from_float64
from fedcore.errors import ConfigError, LayoutError, RangeError
from fedcore.updates import Update

MODULES = {"base_model.model.q": (12, 20), "base_model.model.v": (8, 20)}


def adapter(seed, rank=3, b_zero=False, a_seed=None, scale=2.0, dtype="float32", dense=True, modules=MODULES):
    draw, of_a = np.random.default_rng(seed), np.random.default_rng(seed if a_seed is None else a_seed)
    tensors = {}
    for module, (d_out, d_in) in modules.items():
        tensors[f"{module}.lora_A.weight"] = round_from_float64(of_a.standard_normal((rank, d_in)), dtype)
        b = draw.standard_normal((d_out, rank)) * (0 if b_zero else 1)
        tensors[f"{module}.lora_B.weight"] = round_from_float64(b, dtype)
    if dense:
        tensors["base_model.model.score.weight"] = round_from_float64(draw.standard_normal((4, 5)), dtype)
    return Update.from_tensors(
        tensors, num_examples=9, client_id=f"c{seed}", scaling=dict.fromkeys(modules, scale), base="tiny"
    )


def deltas(update):
    return {
        m: p.scale * update.tensors[p.b].astype(np.float64) @ update.tensors[p.a].astype(np.float64)
        for m, p in update.modules.items()
    }


def wanted(update, reference, scale):
    change, start = deltas(update), deltas(reference)
    return {m: start[m] - scale * (change[m] - start[m]) for m in change}


@pytest.mark.parametrize("scale", [0.5, 1.0, 10.0])
@pytest.mark.parametrize("case", ["first round", "frozen A", "another scale"])
def test_the_flip_is_exact_where_the_rows_of_a_span_the_references(case, scale):
    reference = {
        "first round": adapter(0, b_zero=True),
        "frozen A": adapter(0, a_seed=7),
        "another scale": adapter(0, a_seed=7, scale=1.0),
    }[case]
    update = adapter(1, a_seed=None if case == "first round" else 7)
    got, expected = deltas(sign_flip(update, reference, scale)), wanted(update, reference, scale)
    for module in MODULES:
        assert np.allclose(got[module], expected[module], rtol=0, atol=1e-5 * np.abs(expected[module]).max())


def test_elsewhere_it_is_the_nearest_with_the_clients_own_a():
    update, reference, scale = adapter(1), adapter(0), 3.0
    poisoned = sign_flip(update, reference, scale)
    for module, target in wanted(update, reference, scale).items():
        pair = update.modules[module]
        a = update.tensors[pair.a].astype(np.float64)
        assert np.array_equal(poisoned.tensors[pair.a], update.tensors[pair.a])
        start = deltas(reference)[module]
        missing = (1 + scale) * (start - start @ np.linalg.pinv(a) @ a)
        assert np.allclose(target - deltas(poisoned)[module], missing, atol=1e-4)
        # least squares: what is missing has nothing left in the span of A's rows
        assert np.abs(missing @ a.T).max() < 1e-9


def test_a_tensor_in_no_pair_is_flipped_as_it_is():
    update, reference, name = adapter(1), adapter(0), "base_model.model.score.weight"
    x, start = update.tensors[name].astype(np.float64), reference.tensors[name].astype(np.float64)
    assert np.array_equal(sign_flip(update, reference, 2.0).tensors[name], (3 * start - 2 * x).astype(np.float32))


def test_an_update_that_did_not_move_stays_where_it_is():
    update = adapter(1)
    for module, delta in deltas(sign_flip(update, update, 5.0)).items():
        assert np.allclose(delta, deltas(update)[module], atol=1e-5)


def test_the_server_sees_the_client_as_it_was_and_the_originals_are_kept():
    update, reference = adapter(1), adapter(0)
    digests = update.digest(), reference.digest()
    poisoned = sign_flip(update, reference, 1.0)
    assert (poisoned.client_id, poisoned.num_examples, poisoned.base) == ("c1", 9, "tiny")
    assert poisoned.scaling == update.scaling
    assert poisoned.layout == update.layout
    assert (update.digest(), reference.digest()) == digests


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_narrow_dtypes_stay_what_they_are(dtype):
    poisoned = sign_flip(adapter(1, dtype=dtype), adapter(0, dtype=dtype), 1.0)
    assert set(poisoned.layout.dtypes) == {dtype}


def test_a_value_that_does_not_fit_is_refused_by_name():
    with pytest.raises(RangeError, match=r"tensor base_model\.model\..* does not fit float16"):
        sign_flip(adapter(1, dtype="float16"), adapter(0, dtype="float16"), 1e6)


def test_another_layout_or_scale_is_refused():
    with pytest.raises(LayoutError, match=r"tensor base_model\.model\.q\.lora_A\.weight differs"):
        sign_flip(adapter(1), adapter(0, rank=2), 1.0)
    with pytest.raises(LayoutError, match=r"tensor base_model\.model\.score\.weight differs"):
        sign_flip(adapter(1), adapter(0, dense=False), 1.0)
    for scale in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="expected a finite number above 0"):
            sign_flip(adapter(1), adapter(0), scale)
