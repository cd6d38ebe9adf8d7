"""What one client does: hold a quantised base, train an adapter on its own texts, evaluate.

Settings, `Question`, `Metrics` and the corpus need no torch; the rest imports torch, transformers, peft and
bitsandbytes on first use and says which extra brings them where they are missing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fedcore.clients.corpus import Document, python_documentation, questions, split
from fedcore.clients.settings import (
    AdapterSettings,
    Metrics,
    PretrainingSettings,
    Question,
    TrainingResult,
    TrainingSettings,
)
from fedcore.errors import DependencyError

if TYPE_CHECKING:
    from fedcore.clients.adapter import attach, load, read
    from fedcore.clients.base import Base, load_base
    from fedcore.clients.evaluation import evaluate
    from fedcore.clients.pretraining import make_base
    from fedcore.clients.training import train

__all__ = [
    "AdapterSettings",
    "Base",
    "Document",
    "Metrics",
    "PretrainingSettings",
    "Question",
    "TrainingResult",
    "TrainingSettings",
    "attach",
    "evaluate",
    "load",
    "load_base",
    "make_base",
    "python_documentation",
    "questions",
    "read",
    "split",
    "train",
]

_LAZY = {
    "Base": "base",
    "load_base": "base",
    "attach": "adapter",
    "load": "adapter",
    "read": "adapter",
    "train": "training",
    "evaluate": "evaluation",
    "make_base": "pretraining",
}


if not TYPE_CHECKING:  # a type checker would take every name for one that there is

    def __getattr__(name: str) -> Any:
        """Import torch and its company on first use of what needs them. Raises DependencyError where one is missing."""
        if name not in _LAZY:
            raise AttributeError(f"module 'fedcore.clients' has no attribute {name!r}")
        try:
            return getattr(importlib.import_module(f"fedcore.clients.{_LAZY[name]}"), name)
        except ModuleNotFoundError as error:
            raise DependencyError(
                f"fedcore.clients.{name}: the package {error.name} is not installed; pip install 'fedcore[train]'",
                name=error.name,
            ) from error
