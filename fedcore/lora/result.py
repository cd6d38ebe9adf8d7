"""The LoRA part of a rule's result: factors rounded to the clients' dtype, and what truncation and rounding lost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from fedcore.dtypes import to_float64
from fedcore.lora.measure import change_norm, norm_of
from fedcore.lora.stacks import dtype_of, rounded
from fedcore.ops.lora_truncate import Truncated, balanced, leading
from fedcore.updates import Update


class ModuleReport(NamedTuple):
    """What became of one module.

    rank       of the result
    norm       ‖Δ‖ before truncation
    residual   ‖Δ − result‖ / ‖Δ‖ with the result as it is returned, in the clients' dtype; `most` is what it is at
               most, and no product of this rank has one below `least`
    core       how it was found: 'qr', 'gram' or 'block' (fedcore/ops/lora_truncate.py), 'stacked' where nothing was
               truncated, or 'kept' as one client sent it
    """

    rank: int
    norm: float
    residual: float
    most: float
    least: float
    core: str


class Combined(NamedTuple):
    """The LoRA part of a result: tensors by name, scales and reports by module."""

    tensors: dict[str, np.ndarray]
    scaling: dict[str, float]
    modules: dict[str, ModuleReport]

    def keep(self, module: str, like: Update, found: Truncated) -> None:
        """Add a module: its factors rounded once to the dtypes of `like`, whose scale they are for.

        With D what rounding changes, ‖Δ − result‖² = ‖lost‖² + ‖D‖² to first order: what a truncation loses is
        orthogonal to both factors that it keeps, and D is their roundings' product with the other one.
        """
        pair, values = like.modules[module], []
        for name, factor in ((pair.a, found.a), (pair.b, found.b)):
            self.tensors[name] = rounded(factor, dtype_of(like, name), name)
            values.append(to_float64(self.tensors[name]))
        changed, bound = change_norm((values[1], values[0]), (found.b, found.a))
        norm, scale = found.norm, abs(pair.scale)
        share = scale * changed / norm if norm else 0.0
        slack = scale * bound / norm if norm else 0.0
        self.modules[module] = ModuleReport(
            len(found.a),
            norm,
            float(np.hypot(found.residual, share)),
            float(found.most + share + slack),
            found.least,
            found.core,
        )
        self.scaling[module] = pair.scale


def whole(b: np.ndarray, a: np.ndarray, scale: float) -> Truncated:
    """Stacked factors of Δ as they are while their rank fits it, and else all that it has."""
    narrow = min(len(b), a.shape[1])
    if 0 < len(a) <= narrow:
        return Truncated(a, b / scale, norm_of(b, a), 0.0, 0.0, 0.0, "stacked")
    if not len(a):  # nothing counts: the zero update
        b, a, narrow = np.zeros((len(b), 1)), np.zeros((1, a.shape[1])), 1
    return balanced(leading(b, a, np.ones(len(a)), narrow), narrow, scale)


def report_of(modules: Mapping[str, ModuleReport]) -> dict[str, dict[str, float]]:
    """The reports as JSON-able dictionaries by module."""
    return {module: report._asdict() for module, report in modules.items()}
