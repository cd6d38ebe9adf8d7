"""When a sum protects nobody, and methods that sums cannot serve."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fedcore.errors import PrivacyError


def leaks(
    included: int,
    *,
    hidden_size: int | None = None,
    tokens: Sequence[int] | int | None = None,
    corrupt: int = 0,
    groups: Sequence[int] | None = None,
) -> list[str]:
    """Why a sum shows what it should hide, in words; empty where nothing known does.

    included      clients in the sum
    hidden_size   d of the model, the width of its layers
    tokens        that the clients in the sum trained on, one number each or in all
    corrupt       clients in the sum that may be with the server: they can take their own vectors off it
    groups        sizes of groups that are summed apart

    The tokens: gradients of linear layers lie in the span of their inputs, which can be searched for known tokens as
    long as there are fewer tokens than dimensions, in a plain sum over clients as in one client's gradient (DAGER,
    Petrov et al. 2024, arXiv 2405.15586). Masks hide the parts, not what the sum itself says; noise does.
    """
    found, left = [], included - corrupt
    if left <= 1:
        found.append(f"{included} clients in the sum, {corrupt} of them may be corrupt: it shows one client's vector")
    for number, size in enumerate(groups or []):
        if size - corrupt <= 1:
            found.append(f"group {number} has {size} members, {corrupt} may be corrupt: its sum shows one's vector")
    if tokens is not None and hidden_size is not None:
        total = int(np.sum(tokens))
        if total < hidden_size:
            found.append(
                f"the cohort trained on {total} tokens, fewer than the hidden size {hidden_size}: the tokens can be "
                "read from the sum; use more clients or longer texts, or add noise (fc.privacy.Distributed)"
            )
    return found


def require_linear(method: Any) -> None:
    """Raise PrivacyError for a method whose server needs more than a weighted sum of what clients send.

    method: one of `fc.lora`, whose `traits.linear` says so.
    """
    traits = getattr(method, "traits", None)
    if traits is None or not traits.linear:
        raise PrivacyError(
            f"{type(method).__name__}: its server needs each client's update, which a secure sum hides; take a method "
            "that needs sums only, such as FedIT or FFALoRA"
        )
