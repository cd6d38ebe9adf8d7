"""The server optimiser's step after an aggregation."""

from __future__ import annotations

from typing import Any

from fedcore.federation.config import Arm
from fedcore.federation.context import Federation
from fedcore.federation.server_state import ServerState
from fedcore.updates import Update


def move(
    federation: Federation, arm: Arm, number: int, broadcast: Update, aggregated: Update | None
) -> tuple[Update, ServerState | None]:
    """(the next global adapter, the server optimiser's state): the aggregate itself where there is no optimiser.

    aggregated: None for a void round, in which nothing moves. With momentum it would, and what clients train from and
    are grouped by would be new, though nothing was learned. Raises RangeError and NonFiniteError as `step` does.
    """
    optimizer, folder = federation.config.optimizer_of(arm), federation.folder
    if optimizer is None:
        return aggregated or broadcast, None
    state = optimizer.start(broadcast)
    if number > 1:
        entry = folder.ledger.find(arm=arm.name, round=number - 1)
        assert entry is not None
        state = folder.rounds.load_state(arm.name, number - 1, entry["optimizer"]["state"])
    return (broadcast, state) if aggregated is None else optimizer.step(broadcast, aggregated, state)


def optimizer_facts(
    federation: Federation, arm: Arm, number: int, aggregated: Update | None, state: ServerState | None
) -> dict[str, Any]:
    """Keep the optimiser's state; what the ledger says of it. `aggregated` as in `move`."""
    if state is None:
        return {}
    facts = {
        "rule": repr(federation.config.optimizer_of(arm)),
        "aggregate": None if aggregated is None else aggregated.digest(),
        "state": federation.folder.rounds.save_state(arm.name, number, state),
    }
    return {"optimizer": facts}
