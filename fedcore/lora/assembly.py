"""What a method said of each module, made into updates and a report."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fedcore.dtypes import to_float64
from fedcore.lora.cohort import Clients, Part
from fedcore.lora.measure import product_norm
from fedcore.lora.module import Held, Module
from fedcore.lora.stacks import rounded
from fedcore.lora.traits import Traits
from fedcore.updates import LoraPair, Update

#: the dtype of side adapters: what a quantised base would round away is kept in full
SIDE = "float32"
#: (pair, bytes of an element) -> (bytes up, bytes down) of one module at one client
Traffic = Callable[[LoraPair, int], tuple[int, int]]


@dataclass(frozen=True)
class Aggregated:
    """What a method makes of a round.

    update        the adapter that clients start the next round from; client_id "global", of the highest rank
    side          what lies beside it, an adapter of scale 1 in fp32 to be added to each module's output, or None
    starts        client_id -> its own start, where that is not `update`: its own rank, or a factor that stays local
    coefficients  client_id -> its weight as used (an fp32 value); p_i is that over report["divisor"]
    report        JSON-able: method, round, n, divisor, traits; by module the rank, ‖T‖, `residual` = ‖T − what clients
                  hold‖ / ‖T‖ and `without_side`, the same where the side adapter is left out; by client the bytes up
                  and down
    """

    update: Update
    side: Update | None
    starts: dict[str, Update]
    coefficients: dict[str, float]
    report: dict[str, Any]

    def start_of(self, client_id: str) -> Update:
        """What a client starts the next round from."""
        return self.starts.get(client_id, self.update)


def as_sent(found: Held, dtype: str, name: str) -> Held:
    """The same with the adapter in the clients' dtype and the side adapter in its own, so that reports are of these."""

    def as_dtype(part: Part, dtype: str) -> Part:
        b, a = (to_float64(rounded(values, dtype, name)) for values in (part.b, part.a))
        return Part(b, a, part.scale)

    side = None if found.side is None else as_dtype(found.side, SIDE)
    return replace(found, adapter=as_dtype(found.adapter, dtype), side=side)


def module_report(module: Module, found: Held) -> dict[str, float]:
    """rank, ‖T‖, and how much of T clients no longer hold, with the side adapter and without it."""
    b, a = module.target()
    norm = product_norm(b, a)[0]
    held = [(1.0, found.adapter)] if found.held is None else found.held
    beside = [(1.0, found.side)] if found.side is not None else []
    report: dict[str, float] = {"rank": found.adapter.rank, "norm": norm}
    for name, terms in (("residual", [*held, *beside]), ("without_side", held)):
        b_held, a_held = module.stack(terms)
        lost = product_norm(np.hstack((b, -b_held)), np.vstack((a, a_held)))[0]
        report[name] = lost / norm if norm else 0.0
    return report | {"side_rank": 0 if found.side is None else found.side.rank} | dict(found.details)


def assemble(
    method: str,
    traits: Traits,
    traffic: Traffic,
    clients: Clients,
    held: Mapping[str, Held],
    side: Update | None,
    number: int,
    modules: dict[str, dict[str, float]],
) -> Aggregated:
    """The updates that hold what `held` says, and the report."""
    cohort = clients.cohort
    dense = {
        name: clients.mean([name] * len(cohort), range(len(cohort)), _dtype(cohort[0], name))
        for name in cohort[0].dense
    }
    adapter = _update(clients, {name: found.adapter for name, found in held.items()}, dense, "global", None)
    starts = {}
    for row, update in enumerate(cohort):
        if any(row in found.own for found in held.values()):
            parts = {name: held[name].own.get(row, held[name].adapter) for name in update.modules}
            starts[update.client_id] = _update(clients, parts, dense, update.client_id, update)
    beside = {name: found.side for name, found in held.items() if found.side is not None}
    kept = _side(clients, side, beside) if traits.side else side
    report = {
        "method": method,
        "round": number,
        "n": len(cohort),
        "exact": traits.exact,
        "divisor": clients.divisor,
        "modules": modules,
        "bytes": _traffic(traffic, clients, held),
    }
    weights = dict(zip(cohort.client_ids, map(float, clients.coefficients), strict=True))
    return Aggregated(adapter, kept, starts, weights, report)


def _update(
    clients: Clients, parts: Mapping[str, Part], dense: Mapping[str, np.ndarray], client_id: str, like: Update | None
) -> Update:
    """An adapter of these factors in the clients' dtypes; `like` has the config and the examples that it takes over."""
    tensors, scaling = dict(dense), {}
    for name, part in parts.items():
        pair = clients.modules[name]
        for key, values in ((pair.a, part.a), (pair.b, part.b)):
            tensors[key] = rounded(values, clients.dtype(name), key)
        scaling[name] = part.scale
    whole = [update for update in clients.cohort if update.modules.keys() == parts.keys()]
    examples = int(clients.cohort.num_examples.sum()) if like is None else like.num_examples
    return Update.from_tensors(
        tensors,
        num_examples=examples,
        client_id=client_id,
        scaling=scaling,
        base=_base(clients),
        adapter_config=(like or whole[0]).adapter_config if like or whole else None,
    )


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
    """client_id -> bytes of tensors up in this round and down after it, without headers; a side adapter is fp32."""
    beside = sum(
        4 * held[name].side_rank * (pair.d_out + pair.d_in) for name, pair in clients.modules.items() if name in held
    )
    found = {}
    for update in clients.cohort:
        sizes = dict(zip(update.layout.names, update.layout.decoded().nbytes.tolist(), strict=True))
        dense = sum(sizes[name] for name in update.dense)
        up, down = dense, dense + beside
        for pair in update.modules.values():
            more = traffic(pair, sizes[pair.a] // (pair.rank * pair.d_in))
            up, down = up + more[0], down + more[1]
        found[update.client_id] = {"up": up, "down": down}
    return found


def _dtype(update: Update, name: str) -> str:
    return update.layout.dtypes[update.layout.index[name]]
