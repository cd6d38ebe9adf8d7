"""What a type checker is told of an op over rows: NumPy in gives NumPy out, torch in gives torch out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Protocol, TypeAlias, cast, overload

import numpy as np

from fedcore.quantized import Quantized
from fedcore.rowtable import RowTable

if TYPE_CHECKING:
    import torch

Rest = ParamSpec("Rest")
#: an (n, d) array, n 1-D ones, or a table
NumpyRows: TypeAlias = np.ndarray | Sequence[np.ndarray | Quantized] | RowTable
#: an (n, d) tensor, or n 1-D ones
TorchRows: TypeAlias = "torch.Tensor | Sequence[torch.Tensor]"


class OverRows(Protocol[Rest]):
    """An op whose result is of the library of its rows. Where torch is not installed, NumPy is all that is told."""

    @overload
    def __call__(self, rows: NumpyRows, *rest: Rest.args, **named: Rest.kwargs) -> np.ndarray: ...

    @overload
    def __call__(self, rows: TorchRows, *rest: Rest.args, **named: Rest.kwargs) -> torch.Tensor: ...


def in_kind(op: Callable[Concatenate[Any, Rest], Any]) -> OverRows[Rest]:
    """The op itself: one pair of overloads stands for all of them, as a type checker cannot see what ops look at."""
    return cast("OverRows[Rest]", op)
