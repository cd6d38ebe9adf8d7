"""What a round of adapters that were taken out of their base (PiSSA and its like) cannot be asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fedcore.errors import LayoutError, RuleError
from fedcore.lora.delta import Rank
from fedcore.updates import Update
from fedcore.updates.taken import begun_by, check_same_rest


def check_taken(
    known: Sequence[tuple[str, Update]], references: Mapping[str, Update | None], rank: Rank, dense: bool
) -> None:
    """Refuse what would put a result on another rest of the base than the clients', or take zero for the base.

    known       (who, update) of all that takes part
    references  what the rule compares with; None is zero

    Raises LayoutError naming who has another rank or scale, or the reference that is missing, and RuleError for a
    `rank` that is not the clients', or Δ kept `dense`.
    """
    begun = begun_by(update for _, update in known)
    if begun is None:
        return
    check_same_rest(known)
    if None in references.values():
        raise LayoutError(
            f"reference: missing, and adapters begun by {begun!r} start as a part of the base and not at 0; give the "
            "adapter that was broadcast"
        )
    ranks = {pair.rank for _, update in known for pair in update.modules.values()}
    if rank is not None and ranks != {rank}:
        raise RuleError(
            f"rank: got {rank!r} for adapters begun by {begun!r}, of whose rank a part is taken out of the base; "
            "leave rank=None"
        )
    if dense:
        raise RuleError(
            f"dense: got True for adapters begun by {begun!r}, whose Δ is on what is left of the base and not on it; "
            "leave it out"
        )
