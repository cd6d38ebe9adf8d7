"""What a method said of each module, made into updates and a report."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fedcore.dtypes import STORAGE, to_float64
from fedcore.lora.cohort import Clients, Part
from fedcore.lora.module import Held, Module
from fedcore.lora.stacks import dtype_of, rounded
from fedcore.lora.traits import Traits
from fedcore.updates import Update
from fedcore.updates.making import config_like
from fedcore.updates.weights import pooled_examples

#: the dtype of side adapters: what a quantised base would round away is kept in full
SIDE = "float32"
#: (pair, bytes of an element, rank=the global adapter's) -> (bytes up, bytes down) of one module at one client
Traffic = Callable[..., tuple[int, int]]


@dataclass(frozen=True)
class Aggregated:
    """What a method makes of a round.

    update        the adapter that clients start the next round from; client_id "global", of the highest rank
    side          what lies beside it, an adapter of scale 1 in fp32 to be added to each module's output, or None
    starts        client_id -> its own start, where that is not `update`: its own rank, or a factor that stays local.
                  Of a module that it did not train it has what `update` has
    coefficients  client_id -> its weight as used (an fp32 value); p_i is that over report["divisor"]. 1 each under a
                  method that takes no weights
    report        JSON-able: method, round, n, divisor; `exact` and `weighted` as the method's traits have them, and
                  where `weighted` is false T is of the plain mean, so that its residuals are not to be compared with
                  those of other methods; by module the rank, ‖T‖ as `norm`, ‖H‖ as `held` with H the mean over clients
                  of what they hold, `residual` = ‖T − H‖ / ‖T‖, so what the next round's T lacks if nobody trains, or
                  1 where T is 0 and H is not; `without_side`, the same where the side adapter is left out; where
                  clients start from factors of their own, `starts`, by client the residual of what it holds; by client
                  the bytes up and down; "lacking", where there are any: client_id -> modules that others sent and it
                  did not
    """

    update: Update
    side: Update | None
    starts: dict[str, Update]
    coefficients: dict[str, float]
    report: dict[str, Any]

    def start_of(self, client_id: str) -> Update:
        """What a client starts the next round from."""
        return self.starts.get(client_id, self.update)


def as_sent(module: Module, found: Held) -> Held:
    """The same with factors in the clients' dtype and the side adapter in its own, so that reports are of these."""
    once = {id(part): module.as_sent(part) for part in (found.adapter, *found.own.values())}
    side = None
    if found.side is not None:
        b, a = (to_float64(rounded(values, SIDE, module.name)) for values in (found.side.b, found.side.a))
        side = Part(b, a, found.side.scale)
    own = {row: once[id(part)] for row, part in found.own.items()}
    return replace(found, adapter=once[id(found.adapter)], side=side, own=own)


def assemble(
    method: str,
    traits: Traits,
    traffic: Traffic,
    clients: Clients,
    held: Mapping[str, Held],
    side: Update | None,
    number: int,
    modules: dict[str, dict[str, Any]],
) -> Aggregated:
    """The updates that hold what `held` says, and the report."""
    cohort = clients.cohort
    dense = {
        name: clients.mean([name] * len(cohort), range(len(cohort)), dtype_of(cohort[0], name))
        for name in cohort[0].dense
    }
    adapter = _update(clients, {name: found.adapter for name, found in held.items()}, dense, "global", None)
    starts = {}
    for row, update in enumerate(cohort):
        if any(row in found.own for found in held.values()):
            parts = {name: found.own.get(row, found.adapter) for name, found in held.items()}
            starts[update.client_id] = _update(clients, parts, dense, update.client_id, update)
    beside = {name: found.side for name, found in held.items() if found.side is not None}
    kept = _side(clients, side, beside) if traits.side else side
    report = {
        "method": method,
        "round": number,
        "n": len(cohort),
        "exact": traits.exact,
        "weighted": traits.weighted,
        "divisor": clients.divisor,
        "modules": modules,
        "bytes": _traffic(traffic, clients, held),
    }
    if lacking := cohort.lacking:
        report["lacking"] = lacking
    weights = dict(zip(cohort.client_ids, map(float, clients.coefficients), strict=True))
    return Aggregated(adapter, kept, starts, weights, report)


def _update(
    clients: Clients, parts: Mapping[str, Part], dense: Mapping[str, np.ndarray], client_id: str, like: Update | None
) -> Update:
    """An adapter of these factors in the clients' dtypes.

    It takes the examples from `like`, and settings from it or a client (see `config_like`).
    """
    tensors, scaling = dict(dense), {}
    for name, part in parts.items():
        pair = clients.modules[name]
        for key, values in ((pair.a, part.a), (pair.b, part.b)):
            tensors[key] = rounded(values, clients.dtype(key), key)
        scaling[name] = part.scale
    settings = config_like([*([] if like is None else [like]), *clients.cohort], parts)
    examples, counted = pooled_examples([*clients.cohort] if like is None else [like])
    made = Update.from_tensors(
        tensors,
        num_examples=examples,
        client_id=client_id,
        scaling=scaling,
        base=_base(clients),
        adapter_config=settings,
    )
    return replace(made, counted=counted)


def _base(clients: Clients) -> str | None:
    return next((update.base for update in clients.cohort if update.base is not None), None)


def _side(clients: Clients, before: Update | None, parts: Mapping[str, Part]) -> Update | None:
    """The side adapter: what `parts` say, and of modules that nobody trained this round what lay there before."""
    tensors: dict[str, np.ndarray] = {}
    for name, part in parts.items():
        pair = clients.modules[name]
        tensors[pair.a], tensors[pair.b] = rounded(part.a, SIDE, pair.a), rounded(part.b, SIDE, pair.b)
    scaling = dict.fromkeys(parts, 1.0)
    for name, pair in ({} if before is None else before.modules).items():
        if before is not None and name not in clients.modules:
            tensors |= {key: before.tensors[key] for key in (pair.a, pair.b)}
            scaling[name] = pair.scale
    if not tensors:
        return None
    return Update.from_tensors(tensors, client_id="side", scaling=scaling, base=_base(clients))


def _traffic(traffic: Traffic, clients: Clients, held: Mapping[str, Held]) -> dict[str, dict[str, int]]:
    """client_id -> bytes of tensors up in this round and down after it, without headers; a side adapter is fp32.

    Of a module that others trained the global adapter comes down.
    """
    beside = sum(
        4 * held[name].side_rank * (pair.d_out + pair.d_in) for name, pair in clients.modules.items() if name in held
    )
    found, trained = {}, {name for update in clients.cohort for name in update.modules}
    for update in clients.cohort:
        sizes = dict(zip(update.layout.names, update.layout.decoded().nbytes.tolist(), strict=True))
        dense = sum(sizes[name] for name in update.dense)
        up, down = dense, dense + beside
        for name, pair in update.modules.items():
            more = traffic(pair, sizes[pair.a] // (pair.rank * pair.d_in), rank=held[name].adapter.rank)
            up, down = up + more[0], down + more[1]
        for name in trained - update.modules.keys():
            rank = held[name].adapter.rank
            size = STORAGE[clients.dtype(clients.modules[name].a)].itemsize
            down += traffic(clients.modules[name]._replace(rank=rank), size, rank=rank)[1]
        found[update.client_id] = {"up": up, "down": down}
    return found
