"""Which client has which weight, however weights were given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedcore.errors import ShapeError
from fedcore.updates.metadata import MOST_EXAMPLES
from fedcore.updates.update import Update


def weights_by_id(weights: Any, updates: Sequence[Update]) -> dict[str, Any] | None:
    """client_id -> weight, from such a mapping or from one number for each update in order; None stays None.

    Raises ShapeError naming the client that has none, or that sent no update.
    """
    if weights is None:
        return None
    ids = [update.client_id for update in updates]
    if isinstance(weights, Mapping):
        for name in sorted(set(ids) ^ weights.keys()):
            have = "has no weight" if name in ids else "sent no update but has a weight"
            raise ShapeError(f"weights: client {name!r} {have}; give one weight for each client")
        return dict(weights)
    values = weights.tolist() if hasattr(weights, "tolist") else list(weights)
    if not isinstance(values, list) or len(values) != len(ids):
        raise ShapeError(f"weights: got {np.shape(weights)}, expected ({len(ids)},), one for each update")
    return dict(zip(ids, values, strict=True))


def pooled_examples(updates: Sequence[Update]) -> tuple[int, bool]:
    """(num_examples, counted) of a result that these updates count in.

    There is no count where some of them never said theirs, or where a client's lie makes the sum larger than any may
    be, which must not end a round that looks at no counts; the sum is then held to what an update may say.
    """
    examples = sum(update.num_examples for update in updates)
    counted = all(update.counted for update in updates) and 1 <= examples <= MOST_EXAMPLES
    return min(max(examples, 1), MOST_EXAMPLES), counted
