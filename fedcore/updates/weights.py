"""Which client has which weight, however weights were given."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

import numpy as np

from fedcore.errors import ShapeError, WeightError
from fedcore.numbers import shown
from fedcore.updates.metadata import MOST_EXAMPLES
from fedcore.updates.update import Update


def weights_by_id(weights: Any, updates: Sequence[Update]) -> dict[str, Any] | None:
    """client_id -> weight, from such a mapping or from one number for each update in order; None stays None.

    Raises ShapeError naming the client that has none, or that sent no update, and WeightError naming the client whose
    weight is no number.
    """
    if weights is None:
        return None
    if not isinstance(weights, Iterable) or isinstance(weights, (str, bytes, Set)) or getattr(weights, "ndim", 1) == 0:
        why = "which has no order, " if isinstance(weights, Set) else ""
        raise ShapeError(f"weights: got {shown(weights)}, {why}expected a mapping by client_id or a list in order")
    ids = [update.client_id for update in updates]
    if isinstance(weights, Mapping):
        for name in sorted(set(ids) ^ weights.keys(), key=str):
            have = "has no weight" if name in ids else "sent no update but has a weight"
            raise ShapeError(f"weights: client {name!r} {have}; give one weight for each client")
        return _numbers(dict(weights))
    values: Any = weights.tolist() if hasattr(weights, "tolist") else list(weights)
    if not isinstance(values, list) or len(values) != len(ids):
        raise ShapeError(f"weights: got {np.shape(values)}, expected ({len(ids)},), one for each update")
    return _numbers(dict(zip(ids, values, strict=True)))


def _numbers(weights: dict[str, Any]) -> dict[str, Any]:
    """The same. Raises WeightError naming the first client whose weight is no real number of 64 bits."""
    for client, value in weights.items():
        kind = "O" if isinstance(value, (Sequence, Mapping)) else np.asarray(value).dtype.kind
        if kind not in "buif":
            raise WeightError(
                f"client {shown(client)}: got weight {shown(value)}, expected a finite number above 0; correct it"
            )
    return weights


def pooled_examples(updates: Sequence[Update]) -> tuple[int, bool]:
    """(num_examples, counted) of a result that these updates count in.

    There is no count where some of them never said theirs, or where a client's lie makes the sum larger than any may
    be, which must not end a round that looks at no counts; the sum is then held to what an update may say.
    """
    examples = sum(update.num_examples for update in updates)
    counted = all(update.counted for update in updates) and 1 <= examples <= MOST_EXAMPLES
    return min(max(examples, 1), MOST_EXAMPLES), counted
