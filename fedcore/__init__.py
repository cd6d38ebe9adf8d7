"""fedcore: an aggregation engine for federated post-training of open-weight language models."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fedcore import errors, ops
from fedcore.backends import use_backend
from fedcore.dtypes import bf16
from fedcore.errors import FedcoreError
from fedcore.quantized import Quantized

if TYPE_CHECKING:
    from fedcore import lora, privacy, rules, secagg
    from fedcore.accumulator import Accumulator
    from fedcore.engine import Aggregate, aggregate
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
    "Quantized",
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

_LAZY = {
    "Accumulator": "fedcore.accumulator",
    "Aggregate": "fedcore.engine",
    "aggregate": "fedcore.engine",
    "Cohort": "fedcore.updates",
    "Layout": "fedcore.updates",
    "Update": "fedcore.updates",
} | dict.fromkeys(("FedAdagrad", "FedAdam", "FedAvgM", "FedYogi"), "fedcore.federation.server_optimizer")


def __getattr__(name: str) -> Any:
    """Import the parts above the ops on first use, so that `import fedcore` stays quick."""
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    if name in ("rules", "lora", "privacy", "secagg"):
        return importlib.import_module(f"fedcore.{name}")
    raise AttributeError(f"module 'fedcore' has no attribute {name!r}")
