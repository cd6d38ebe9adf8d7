"""Settings of every test run."""

from __future__ import annotations

import importlib.util
import os
import sys

# From the repository's root, `kernels/` looks like an empty namespace package called `kernels`, which transformers and
# bitsandbytes would take for a public package of that name.
_spec = importlib.util.find_spec("kernels")
if _spec is not None and _spec.origin is None:
    sys.modules["kernels"] = None  # type: ignore[assignment]


def _gpu() -> bool:
    if importlib.util.find_spec("torch") is None:
        return False
    import torch

    return torch.cuda.is_available()


# Triton reads this when it is imported: without a GPU its kernels run under the interpreter.
if not _gpu():
    os.environ.setdefault("TRITON_INTERPRET", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
