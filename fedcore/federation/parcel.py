"""What travels of an adapter: the factors that a method sends, and what the receiver puts them back into.

A factor that was frozen is where it was, and one that stays with its client never leaves it: neither is in a message.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from fedcore.dtypes import name_of, round_from_float64, to_float64
from fedcore.lora.traits import Factors
from fedcore.updates import LoraPair, Update


def packed(update: Update, factors: Collection[str], fixed: Update | None = None) -> Update:
    """The update itself where both factors travel, else these alone, as <module>.a, <module>.b or <module>.core.

    A core is R in B = B₀ R, (r, r), by least squares, B₀ being the B of `fixed`. Tensors in no pair always travel.
    """
    if set(factors) == {"a", "b"}:
        return update
    tensors = {name: update.tensors[name] for name in update.dense}
    for module, pair in update.modules.items():
        for factor in factors:
            tensors[f"{module}.{factor}"] = (
                _core(update, pair, fixed) if factor == "core" else _factor(update, pair, factor)
            )
    return Update.from_tensors(tensors, num_examples=update.num_examples, client_id=update.client_id, base=update.base)


def unpacked(message: Update, held: Update, factors: Collection[str], fixed: Update | None = None) -> Update:
    """`held` with what a message holds of it: the adapter that its sender has."""
    if set(factors) == {"a", "b"}:
        return message
    tensors = dict(held.tensors) | {name: message.tensors[name] for name in held.dense}
    for module, pair in held.modules.items():
        for factor in factors:
            sent = message.tensors[f"{module}.{factor}"]
            tensors[pair.a if factor == "a" else pair.b] = _around(sent, pair, fixed) if factor == "core" else sent
    return Update.from_tensors(
        tensors,
        num_examples=message.num_examples,
        client_id=message.client_id,
        scaling=held.scaling,
        base=message.base,
        adapter_config=held.adapter_config,
    )


def kept(trains: Factors, sends: Factors) -> tuple[str, ...]:
    """The factors that train and do not travel: a client's own."""
    return tuple(factor for factor in trains if factor not in sends)


def _factor(update: Update, pair: LoraPair, factor: str) -> np.ndarray:
    return update.tensors[pair.a if factor == "a" else pair.b]


def _core(update: Update, pair: LoraPair, fixed: Update | None) -> np.ndarray:
    assert fixed is not None
    b = update.tensors[pair.b]
    core = np.linalg.lstsq(to_float64(fixed.tensors[pair.b]), to_float64(b), rcond=None)[0]
    return round_from_float64(np.ascontiguousarray(core), name_of(b.dtype))


def _around(core: np.ndarray, pair: LoraPair, fixed: Update | None) -> np.ndarray:
    assert fixed is not None
    return round_from_float64(to_float64(fixed.tensors[pair.b]) @ to_float64(core), name_of(core.dtype))
