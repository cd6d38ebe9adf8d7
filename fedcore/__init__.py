"""fedcore: an aggregation engine for federated post-training of open-weight language models."""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

from fedcore import errors, ops
from fedcore.backends import use_backend
from fedcore.dtypes import bf16
from fedcore.errors import FedcoreError
from fedcore.quantized import Quantized

if TYPE_CHECKING:
    from fedcore import lora, privacy, rules, secagg
    from fedcore.accumulator import Accumulator
    from fedcore.engine import Aggregate, Progress, Space, aggregate
    from fedcore.federation.server_optimizer import FedAdagrad, FedAdam, FedAvgM, FedYogi
    from fedcore.updates import Cohort, Layout, Update

__version__ = "0.1.0"

__all__ = [
    "Accumulator",
    "Aggregate",
    "Cohort",
    "FedAdagrad",
    "FedAdam",
    "FedAvgM",
    "FedYogi",
    "FedcoreError",
    "Layout",
    "Progress",
    "Quantized",
    "Space",
    "Update",
    "aggregate",
    "bf16",
    "errors",
    "lora",
    "ops",
    "privacy",
    "rules",
    "secagg",
    "use_backend",
]

#: what is imported on first use, and from where
_LAZY = {
    "Accumulator": "fedcore.accumulator",
    **dict.fromkeys(("Aggregate", "Progress", "Space", "aggregate"), "fedcore.engine"),
    **dict.fromkeys(("FedAdagrad", "FedAdam", "FedAvgM", "FedYogi"), "fedcore.federation.server_optimizer"),
    **dict.fromkeys(("Cohort", "Layout", "Update"), "fedcore.updates"),
}

if not TYPE_CHECKING:  # a type checker would take every name for one that there is

    def __getattr__(name: str) -> Any:
        """Import the parts above the ops on first use, so that `import fedcore` stays quick."""
        if name in _LAZY:
            globals()[name] = found = getattr(importlib.import_module(_LAZY[name]), name)
            return found
        if name in ("rules", "lora", "privacy", "secagg"):
            return importlib.import_module(f"fedcore.{name}")
        raise AttributeError(f"module 'fedcore' has no attribute {name!r}", name=name, obj=sys.modules[__name__])


def __dir__() -> list[str]:
    """The public names, whether they were used yet or not, and what every module has."""
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
