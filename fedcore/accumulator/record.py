"""What is kept of an update whose data is not."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from fedcore.updates import Update


@dataclass(frozen=True, eq=False, repr=False)
class Record(Update):
    """An update without its tensors' bytes: what the report and later checks need. It is pickled as it is."""

    @classmethod
    def of(cls, update: Update, last: Record | None) -> Record:
        """What is equal is shared with the record before: one is small, however many tensors there are."""
        kept = {field.name: getattr(update, field.name) for field in fields(update)}
        if last is not None:
            kept |= {name: getattr(last, name) for name in ("layout", "offsets", "scales", "scaling")}
            if kept["adapter_config"] == last.adapter_config:
                kept["adapter_config"] = last.adapter_config
        return cls(**kept | {"buffer": np.empty(0, np.uint8), "file": None})

    def __reduce__(self) -> tuple[Any, ...]:
        return Record, tuple(getattr(self, field.name) for field in fields(self))
