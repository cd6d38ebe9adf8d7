"""The server optimiser's step after an aggregation."""

from __future__ import annotations

from typing import Any

from fedcore.federation.context import Round
from fedcore.federation.server_state import ServerState
from fedcore.updates import Update


def move(about: Round, aggregated: Update | None) -> tuple[Update, ServerState | None]:
    """(the next global adapter, the server optimiser's state): the aggregate itself where there is no optimiser.

    aggregated: None for a void round, in which nothing moves. With momentum it would, and what clients train from and
    are grouped by would be new, though nothing was learned. Raises RangeError and NonFiniteError as `step` does.
    """
    optimizer, broadcast = about.config.optimizer_of(about.arm), about.start.adapter
    if optimizer is None:
        return aggregated or broadcast, None
    state = optimizer.start(broadcast)
    if about.number > 1:
        state = about.folder.rounds.load_state(
            about.arm.name, about.number - 1, about.entry_before["optimizer"]["state"]
        )
    return (broadcast, state) if aggregated is None else optimizer.step(broadcast, aggregated, state)


def optimizer_facts(about: Round, aggregated: Update | None, state: ServerState | None) -> dict[str, Any]:
    """Keep the optimiser's state; what the ledger says of it. `aggregated` as in `move`."""
    if state is None:
        return {}
    facts = {
        "rule": repr(about.config.optimizer_of(about.arm)),
        "aggregate": None if aggregated is None else aggregated.digest(),
        "state": about.folder.rounds.save_state(about.arm.name, about.number, state),
    }
    return {"optimizer": facts}
