"""What a round starts from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fedcore.updates import Update


@dataclass(frozen=True)
class Start:
    """What a round starts from.

    adapter  the global adapter
    side     the side adapter that lies beside it, None for none
    fixed    the factors that a trained core lies between, None for none
    starts   client_id -> what it starts from, where that is not `adapter`: its own rank, or a factor that stays with it
    """

    adapter: Update
    side: Update | None = None
    fixed: Update | None = None
    starts: Mapping[str, Update] = field(default_factory=dict)

    def of(self, client_id: str) -> Update:
        """What a client starts from."""
        return self.starts.get(client_id, self.adapter)
