"""Memory that ran out while a model computed: torch's RuntimeError as an error with what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fedcore.errors import TrainingError

#: what torch's allocator for main memory says, in a plain RuntimeError
_MAIN = "can't allocate memory"


@contextmanager
def memory_named(what: str) -> Iterator[None]:
    """Raises TrainingError, by `what` was done, where memory of the device or the machine runs out in the `with`."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        full = isinstance(error, (torch.OutOfMemoryError, MemoryError)) or _MAIN in str(error)
        if not full:
            raise
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise TrainingError(
            f"{what}: memory ran out ({reason}); free some and go on, or start again with a smaller "
            "training.batch_size or training.sequence_length"
        ) from error
