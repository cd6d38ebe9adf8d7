"""What the first round of an arm starts from, and the adapter of each client at its own rank."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import numpy as np

from fedcore import ops
from fedcore.dtypes import name_of, round_from_float64
from fedcore.federation.config import Arm, Config
from fedcore.federation.context import Federation
from fedcore.federation.methods import method_of
from fedcore.federation.private_start import private_start
from fedcore.federation.start import Start
from fedcore.lora import FedSB, FRLoRA
from fedcore.updates import Update


def first_start(federation: Federation, arm: Arm) -> Start:
    """What an arm's first round starts from. FR-LoRA takes its factors out of the base weights (`FRLoRA.restart`)."""
    initial, method = federation.learner.initial(), method_of(federation.config, arm)
    secure = federation.config.secure_of(arm) is not None
    if federation.config.privacy_of(arm) is not None or (secure and isinstance(method, FedSB)):
        assert method is not None, "the configuration is checked for a method"
        return private_start(method, initial, federation.config.run.seed)
    if isinstance(method, FRLoRA):
        adapter, side = method.restart(initial, cast(dict[str, np.ndarray], federation.learner.weights()))
        return Start(adapter, side)
    each = {client.id: initial_of(federation, client.id) for client in federation.clients}
    return Start(initial, starts={name: update for name, update in each.items() if update is not initial})


def initial_of(federation: Federation, client_id: str) -> Update:
    """The initial adapter at a client's rank: the first rows of A, so that methods that freeze A find one A at all.

    Rows of A are drawn alike at any rank, so that this is a fresh adapter of the lower rank, too.
    """
    initial, rank = federation.learner.initial(), rank_of(federation, client_id)
    if rank == federation.config.adapter.highest_rank:
        return initial
    factors = {pair.a: initial.tensors[pair.a][:rank] for pair in initial.modules.values()}
    factors |= {pair.b: initial.tensors[pair.b][:, :rank] for pair in initial.modules.values()}
    return _of_rank(initial, factors, federation.config, rank)


def cut_to_ranks(federation: Federation, adapter: Update) -> Start:
    """The adapter that a rule made; clients of another rank start from what comes closest to it at theirs.

    A rule on true updates gives the scale of any client, so that of the adapter is first brought to its rank's own.
    """
    config, made, starts = federation.config, dict[int, Update](), dict[str, Update]()
    if not config.adapter.mixed:
        return Start(adapter)
    if any(pair.scale != config.adapter.scale(pair.rank) for pair in adapter.modules.values()):
        adapter = _closest(adapter, config, max(pair.rank for pair in adapter.modules.values()))
    for client in federation.clients:
        rank = rank_of(federation, client.id)
        if any(pair.rank != rank for pair in adapter.modules.values()):
            if rank not in made:
                made[rank] = _closest(adapter, config, rank)
            starts[client.id] = made[rank]
    return Start(adapter, starts=starts)


def _closest(adapter: Update, config: Config, rank: int) -> Update:
    factors, scale = {}, config.adapter.scale(rank)
    for pair in adapter.modules.values():
        a, b = adapter.tensors[pair.a], adapter.tensors[pair.b]
        found = ops.lora_truncate([b], [a], [pair.scale], rank, scale=scale)[rank]
        factors[pair.a] = round_from_float64(np.ascontiguousarray(found.a), name_of(a.dtype))
        factors[pair.b] = round_from_float64(np.ascontiguousarray(found.b), name_of(b.dtype))
    return _of_rank(adapter, factors, config, rank)


def _of_rank(like: Update, factors: Mapping[str, np.ndarray], config: Config, rank: int) -> Update:
    return Update.from_tensors(
        dict(like.tensors) | dict(factors),
        client_id=like.client_id,
        scaling=dict.fromkeys(like.modules, config.adapter.scale(rank)),
        base=like.base,
        adapter_config=like.adapter_config,
    )


def rank_of(federation: Federation, client_id: str) -> int:
    """The rank at which a client trains: those of adapter.ranks in turn."""
    ranks = federation.config.adapter.each_rank
    return ranks[[client.id for client in federation.clients].index(client_id) % len(ranks)]
