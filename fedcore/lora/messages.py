"""Linear methods from sums of messages alone: what one client sends, and what a server makes of the weighted sum.

A message is fp32 arrays by name. Multiplied by the client's weight and summed over clients, in any way that gives the
sum (masks, encryption, a tree of servers), it is all that the server needs: a mean of factors or cores is what one
client would have sent, so the method itself goes on from there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from fedcore.dtypes import to_float64
from fedcore.errors import LayoutError, NonFiniteError, RangeError, WeightError
from fedcore.lora.cohort import Part, read_part
from fedcore.lora.core import core_of
from fedcore.lora.stacks import check_factors, dtype_of, remedy, rounded
from fedcore.numbers import shown
from fedcore.rules.naming import not_finite
from fedcore.updates import LoraPair, Update
from fedcore.updates.bases import check_same_base
from fedcore.updates.taken import check_same_rest

if TYPE_CHECKING:
    from fedcore.lora.method import Method


def parts_for(method: Method, update: Update, start: Update) -> Iterator[tuple[str, LoraPair, Part]]:
    """(module, its pair in `start`, the client's factors) of every module; what it did not train is as in `start`.

    Raises LayoutError for what is of another base, size or module, naming it.
    """
    who = whose(update)
    check_same_base([("the start", start), (who, update)])
    check_same_rest([("the start", start), (who, update)])
    check_factors([start, update], ["the start", who], 1, dense=1)
    for extra in sorted(update.modules.keys() - start.modules.keys()):
        raise LayoutError(f"{who}: module {shown(extra)} is extra, the start has none; send the same adapter")
    for name, pair in start.modules.items():
        part = read_part(update, name, 0, who)
        if part is None and not method.traits.mixed:
            raise LayoutError(f"{who}: module {shown(name)} is missing; {method.traits.name} takes no mixed modules")
        known = read_part(start, name, -1, "the start") if part is None else part
        assert known is not None
        yield name, pair, known


def factor_message(method: Method, update: Update, start: Update, number: int) -> dict[str, np.ndarray]:
    """The factors that travel in this round, padded to the start's rank where that changes nothing.

    Returns fp32 arrays by name. Raises LayoutError naming what does not fit the start or was to stay frozen,
    NonFiniteError for NaN and Inf, and RangeError for what fp32 cannot hold.
    """
    who, sends, trains = whose(update), method.sends(number), method.trains(number)
    found = read_dense(update, start)
    for name, pair, part in parts_for(method, update, start):
        known = read_part(start, name, -1, "the start")
        assert known is not None
        if (part.rank, part.scale) != (known.rank, known.scale):
            if not (method.traits.mixed and tuple(sends) == ("b",)):
                raise LayoutError(
                    f"{who}: module {shown(name)} has rank {part.rank} and scale {part.scale:g}, expected {known.rank} "
                    f"and {known.scale:g} as in the start: sums of {method.traits.name}'s messages take no others"
                )
            b = np.zeros_like(known.b)
            b[:, : part.rank] = part.b * (part.scale / known.scale)
            part, known = Part(b, part.a, known.scale), known._replace(a=known.a[: part.rank])
        if "core" in sends:
            dtype, key = dtype_of(update, update.modules[name].b), f"{name}.core"
            found[key] = as_float32(core_of(part, known, f"{who}: module {shown(name)}", dtype), key, who)
            continue
        for factor in ("a", "b"):
            if factor not in trains and not np.array_equal(getattr(part, factor), getattr(known, factor)):
                raise LayoutError(
                    f"{who}: module {shown(name)}: {factor.upper()} is frozen in this round and differs from the "
                    "start's; train with it frozen"
                )
        for factor in sends:
            key = getattr(pair, factor)
            found[key] = as_float32(getattr(part, factor), key, who)
    return found


def factor_mean(method: Method, sums: Mapping[str, np.ndarray], weight: float, start: Update, number: int) -> Update:
    """The adapter that one client with the mean of the messages would have sent."""
    tensors = dense_sums(sums, weight, start)
    for name, pair in start.modules.items():
        sizes = {"a": (pair.rank, pair.d_in), "b": (pair.d_out, pair.rank)}
        known = read_part(start, name, -1, "the start")
        assert known is not None
        tensors |= {pair.a: known.a, pair.b: known.b}
        for factor in method.sends(number):
            if factor == "core":
                tensors[pair.b] = known.b @ (check_sum(sums, f"{name}.core", (pair.rank,) * 2) / weight)
            else:
                key = getattr(pair, factor)
                tensors[key] = check_sum(sums, key, sizes[factor]) / weight
    return mean_adapter(tensors, start)


def read_dense(update: Update, start: Update) -> dict[str, np.ndarray]:
    """The dense tensors in fp32.

    Raises LayoutError unless they are those of the start, and NonFiniteError naming the client for NaN and Inf.
    """
    if difference := sorted(set(start.dense) ^ set(update.dense)):
        state = "missing" if difference[0] in start.dense else "extra"
        raise LayoutError(
            f"{whose(update)}: tensor {shown(difference[0])} is {state}; send the same adapter as the start"
        )
    found = {name: to_float64(update.tensors[name]).astype(np.float32) for name in start.dense}
    for name, values in found.items():
        if not np.isfinite(values).all():
            raise not_finite(whose(update), name, int(np.flatnonzero(~np.isfinite(values))[0]), 0)
    return found


def as_float32(values: np.ndarray, name: str, who: str, row: int = 0) -> np.ndarray:
    """One array of a message as it travels. Raises RangeError naming it and whose it is where fp32 cannot hold it."""
    with np.errstate(over="ignore"):
        found = values.astype(np.float32)
    if not np.isfinite(found).all():
        raise RangeError(f"{who}: its message {shown(name)} does not fit float32; {remedy(row, who)}")
    return found


def dense_sums(sums: Mapping[str, np.ndarray], weight: float, start: Update) -> dict[str, np.ndarray]:
    """The means of the dense tensors in fp64. Raises WeightError for a weight that nothing can be divided by."""
    if not (np.isfinite(weight) and weight > 0):
        raise WeightError(f"weight: got {weight!r}, expected the sum of the clients' weights, above 0")
    return {name: check_sum(sums, name, start.tensors[name].shape) / weight for name in start.dense}


def check_sum(sums: Mapping[str, np.ndarray], name: str, shape: Sequence[int]) -> np.ndarray:
    """One sum in fp64. Raises LayoutError where it is missing or of another shape, NonFiniteError for NaN and Inf."""
    if name not in sums:
        raise LayoutError(f"sums: {shown(name)} is missing; give the sum of the clients' messages")
    found = np.asarray(sums[name], np.float64)
    if found.shape != tuple(shape):
        raise LayoutError(f"sums: {shown(name)} has shape {found.shape}, expected {tuple(shape)}")
    if not np.isfinite(found).all():
        raise NonFiniteError(f"sums: {shown(name)} holds NaN or Inf; have the round repeated")
    return found


def mean_adapter(tensors: Mapping[str, np.ndarray], start: Update) -> Update:
    """An adapter like the start of these tensors, rounded once to its dtypes."""
    found = {name: rounded(values, dtype_of(start, name), name) for name, values in tensors.items()}
    return start.with_tensors(found, client_id="global", num_examples=1)


def whose(update: Update) -> str:
    """What messages call the client of an update."""
    return f"client {shown(update.client_id)}"
