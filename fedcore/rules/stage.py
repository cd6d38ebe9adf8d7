"""What one stage of a composition found, kept for the report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Stage:
    """What one stage of a composition found: `rule` as it prints, and its `details` and `per_client` values."""

    rule: str
    details: dict[str, Any]
    per_client: dict[str, np.ndarray]

    def of_rows(self) -> dict[str, Any]:
        """All of it as details, for rows that are no clients."""
        return self.details | {name: values.tolist() for name, values in self.per_client.items()}
