"""When a sum protects nobody."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fedcore.errors import PrivacyError, ShapeError
from fedcore.numbers import got
from fedcore.privacy.limits import check_whole


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
    tokens        that the clients in the sum trained on: one number each, with groups in their order, or in all, which
                  is taken to be as many of each client's
    corrupt       clients in the sum that may be with the server: they can take their own vectors off it. They may be
                  those with the most tokens, and all in one group
    groups        sizes of groups that are summed apart: of each its own sum is judged

    Raises PrivacyError for what is no such number, ShapeError where they are of other numbers of clients.

    The tokens: gradients of linear layers lie in the span of their inputs, which can be searched for known tokens as
    long as there are fewer tokens than dimensions, in a plain sum over clients as in one client's gradient (DAGER,
    Petrov et al. 2024, arXiv 2405.15586). Masks hide the parts, not what the sum itself says; noise does.
    """
    included, corrupt = check_whole("included", included, 0), check_whole("corrupt", corrupt, 0)
    sizes = [included] if groups is None else _counts("groups", groups)
    if sum(sizes) != included:
        raise ShapeError(f"groups: got {sum(sizes)} members in all, expected the {included} clients in the sum")
    width = None if hidden_size is None else check_whole("hidden_size", hidden_size)
    counts = None if tokens is None else _tokens(tokens, included)
    found, at, apart = [], 0, f" without the {corrupt} that may be corrupt" * bool(corrupt)
    if included - corrupt <= 1:
        found.append(f"{included} clients in the sum, {corrupt} of them may be corrupt: it shows one client's vector")
    for number, size in enumerate(sizes):
        if groups is not None and size - corrupt <= 1:
            found.append(f"group {number} has {size} members, {corrupt} may be corrupt: its sum shows one's vector")
        if counts is not None and width is not None:
            left = max(0, size - corrupt)
            if isinstance(counts, int):
                total = counts * left // max(included, 1)
            else:
                total = sum(sorted(counts[at : at + size])[:left])
            if total < width:
                found.append(
                    f"{'the cohort' if groups is None else f'group {number}'}{apart} trained on {total} tokens, fewer "
                    f"than the hidden size {width}: the tokens can be read from the sum; use more clients or "
                    "longer texts, or add noise (fc.privacy.Distributed)"
                )
        at += size
    return found


def _tokens(tokens: Sequence[int] | int, clients: int) -> list[int] | int:
    """Of each client, or of all."""
    if getattr(tokens, "ndim", 0) == 0 and not isinstance(tokens, Sequence):
        return check_whole("tokens", tokens, 0)
    counts = _counts("tokens", tokens)
    if len(counts) != clients:
        raise ShapeError(
            f"tokens: got {len(counts)} counts, expected one for each of the {clients} clients in the sum, or their sum"
        )
    return counts


def _counts(name: str, given: Any) -> list[int]:
    """Whole numbers from 0 on."""
    try:
        listed = list(given)
    except TypeError:
        raise PrivacyError(f"{got(name, given)}, expected whole numbers in a list") from None
    return [check_whole(f"{name}[{i}]", count, 0) for i, count in enumerate(listed)]
