"""What an attack is: rows that f attackers send in place of their own, made from what the honest ones send.

An attack is a frozen dataclass with its strength. It is omniscient, as the literature has it: it sees every honest row
of the round, (n_honest, d), as changes from the point that the clients moved from (the zero row), and gives (f, d).
The same on updates: the honest changes, one long row each, tensors in canonical order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from fedcore.dtypes import name_of, round_from_float64, to_float64
from fedcore.errors import ConfigError, LayoutError, NonFiniteError, RangeError, ShapeError
from fedcore.numbers import as_real, got
from fedcore.updates import Layout, Update


@dataclass(frozen=True)
class Attack:
    """An attack on one round. Subclasses say how they `craft`.

    finite   whether its rows are finite numbers; a server that raises on NaN and Inf stops at those that are not
    """

    finite: ClassVar[bool] = True

    def __call__(self, honest: Any, f: int, seed: int = 0) -> np.ndarray:
        """The rows of f attackers: (f, d) in the dtype of the honest rows.

        honest   (n_honest, d) array of fp32, fp16, bf16 or fp64, n_honest ≥ 1: changes, seen from the zero row
        seed     of an attack that draws (Gaussian); no other looks at it

        Computed in fp64, rounded once. Raises ShapeError, NonFiniteError for an honest row that holds NaN or Inf,
        ConfigError where the attack needs another cohort, RangeError where a value does not fit the dtype.
        """
        rows = np.asarray(honest)
        if rows.ndim != 2 or not len(rows):
            raise ShapeError(
                f"{self.name}: got honest rows of shape {rows.shape}, expected (n, d) with n of at least 1"
            )
        wide = rows.dtype == np.float64
        with np.errstate(over="ignore", invalid="ignore"):  # said below, by the attack's name
            crafted = self.crafted(rows if wide else to_float64(rows), f, seed)
        if not wide:
            return self.rounded(crafted, name_of(rows.dtype), "a row")
        return self.fitting(crafted, crafted, "float64", "a row")

    def on_updates(
        self, honest: Sequence[Update], own: Sequence[Update], reference: Update, seed: int = 0
    ) -> list[Update]:
        """What poisoned clients send in place of `own`.

        honest      updates of all other clients in the round, of one layout, trained from `reference`
        own         what poisoned clients trained: each keeps its identity, example count and scales, as the server
                    sees those

        The attack is on the parameters as they are sent, factors A and B each for itself. Holds (n_honest + f, d) in
        fp64. Raises LayoutError where a layout differs, else as for rows.
        """
        sent = self.against(honest, len(own), reference, seed)
        return [sent(update, k) for k, update in enumerate(own)]

    def against(
        self, honest: Sequence[Update], f: int, reference: Update, seed: int = 0
    ) -> Callable[[Update, int], Update]:
        """`on_updates` where attackers come one by one: (what one of the f trained, which one) -> what it sends.

        The rows of all f are crafted now; (f, d) in fp64 is held as long as what this returns. Raises as `on_updates`
        does, of an attacker's own update when it comes.
        """
        self._check_layouts(honest, reference)
        start = flat(reference)
        rows = np.empty((len(honest), len(start)))
        for row, update in zip(rows, honest, strict=True):
            np.subtract(flat(update), start, out=row)
        crafted = self.crafted(rows, f, seed)

        def sent(own: Update, which: int) -> Update:
            self._check_layouts([own], reference)
            return self.sent(start + crafted[which], own)

        return sent

    def _check_layouts(self, updates: Iterable[Update], reference: Update) -> None:
        for update in updates:
            if difference := reference.layout.difference(update.layout):
                raise LayoutError(f"{self.name}: client {update.client_id!r}: {difference} like the reference")

    def crafted(self, honest: np.ndarray, f: int, seed: int) -> np.ndarray:
        """`craft`, once the honest rows were looked at: (f, d) fp64."""
        if not len(honest):
            raise ShapeError(f"{self.name}: got no honest row, expected at least 1; poison fewer clients")
        if f < 1:
            raise ConfigError(f"{self.name}: got f={f}, expected at least one attacker")
        finite = np.isfinite(honest).all(axis=1)
        if not finite.all():
            raise NonFiniteError(
                f"{self.name}: honest row {int(finite.argmin())} holds NaN or Inf", int(finite.argmin())
            )
        self.check(len(honest) + f, f)
        return self.craft(honest, f, seed)

    def check(self, n: int, f: int) -> None:
        """Raise ConfigError if the attack cannot run with f attackers among n clients in all."""

    def craft(self, honest: np.ndarray, f: int, seed: int) -> np.ndarray:
        """(f, d) fp64 rows of the attackers from (n_honest, d) finite fp64 honest ones."""
        raise TypeError(f"{type(self).__name__}: an attack defines `craft`")

    @property
    def name(self) -> str:
        """What errors call it."""
        return type(self).__name__

    def rounded(self, values: np.ndarray, dtype: str, what: str) -> np.ndarray:
        """fp64 values in their dtype. Raises RangeError naming `what` where a finite attack does not fit."""
        result = round_from_float64(values, dtype)
        return self.fitting(result, to_float64(result), dtype, what)

    def fitting(self, result: np.ndarray, values: np.ndarray, dtype: str, what: str) -> np.ndarray:
        """`result`, whose values in fp64 these are. Raises RangeError where a finite attack's are not."""
        if self.finite and not np.isfinite(values).all():
            raise RangeError(f"{self.name}: {what} does not fit {dtype}; make the attack weaker")
        return result

    def sent(self, parameters: np.ndarray, update: Update) -> Update:
        """`update` with these parameters, (d,) fp64 in canonical order, in the tensors' dtypes."""
        tensors, starts = {}, offsets(update.layout)
        for k, (name, tensor) in enumerate(update.tensors.items()):
            values = parameters[starts[k] : starts[k + 1]].reshape(tensor.shape)
            tensors[name] = self.rounded(values, name_of(tensor.dtype), f"tensor {name}")
        return update.with_tensors(tensors)


def copies(row: np.ndarray, f: int) -> np.ndarray:
    """(f, d): all attackers send the same row."""
    return np.tile(row, (f, 1))


def flat(update: Update) -> np.ndarray:
    """All tensors of an update in canonical order as one (d,) fp64 row."""
    return np.concatenate([to_float64(tensor).reshape(-1) for tensor in update.tensors.values()])


def offsets(layout: Layout) -> np.ndarray:
    """Where each tensor starts in `flat`, and the end."""
    return np.cumsum([0, *(int(np.prod(shape, dtype=np.int64)) for shape in layout.shapes)])


def check_strength(attack: str, what: str, value: object, least: float = 0.0) -> float:
    """`value` as a float. Raises ConfigError unless it is a finite number above `least`."""
    number = as_real(value)
    if number is None or not math.isfinite(number) or number <= least:
        above = f" above {least:g}" if least > -math.inf else ""
        raise ConfigError(f"{got(what, value, attack)}, expected a finite number{above}")
    return number
