"""What a type checker tells a user of fedcore. `make lint` reads this file; nothing runs it.

An ignore that is there for nothing is an error too (warn_unused_ignores), so each one says that mypy refuses the line.
"""

# mypy: warn-return-any

from __future__ import annotations

from typing import assert_type

import numpy as np
import numpy.typing as npt
import torch

import fedcore as fc
from fedcore.engine import Progress, Space


def numpy_in_numpy_out(rows: npt.NDArray[np.float32], row: np.ndarray) -> npt.NDArray[np.float32]:
    assert_type(fc.ops.weighted_sum([row, row], [1, 1]), np.ndarray)
    assert_type(fc.ops.squared_norms(rows), np.ndarray)
    assert_type(fc.ops.gram(rows), np.ndarray)
    assert_type(fc.ops.median(rows), np.ndarray)
    assert_type(fc.ops.trimmed_mean(rows, 1), np.ndarray)
    assert_type(fc.ops.mean_around_median(rows, 1), np.ndarray)
    assert_type(fc.rules.Krum(f=1).explained(rows)[0], np.ndarray)
    return fc.rules.Krum(f=1)(rows)


def torch_in_torch_out(rows: torch.Tensor) -> torch.Tensor:
    assert_type(fc.ops.weighted_sum([rows[0], rows[1]], [1, 1]), torch.Tensor)
    assert_type(fc.ops.squared_norms(rows), torch.Tensor)
    assert_type(fc.ops.gram(rows), torch.Tensor)
    assert_type(fc.ops.median(rows), torch.Tensor)
    assert_type(fc.ops.trimmed_mean(rows, 1), torch.Tensor)
    assert_type(fc.ops.mean_around_median(rows, 1), torch.Tensor)
    assert_type(fc.rules.Krum(f=1).explained(rows)[0], torch.Tensor)
    return fc.rules.Krum(f=1)(rows)


def of_a_cohort(cohort: fc.Cohort, space: Space, progress: Progress) -> fc.Aggregate:
    assert_type(cohort[0], fc.Update)
    assert_type(cohort[1:], tuple[fc.Update, ...])
    shown: fc.Progress = progress
    where: fc.Space = "delta"
    fc.aggregate(cohort, fc.rules.Mean(), "params")  # type: ignore[arg-type]
    return fc.aggregate(cohort, fc.rules.Mean(), space or where, progress=shown)


def slips() -> None:
    fc.Acumulator  # type: ignore[attr-defined]  # noqa: B018
    fc.rules.Krumm  # type: ignore[attr-defined]  # noqa: B018
    fc.ops.median(3)  # type: ignore[call-overload]
    fc.ops.trimmed_mean(np.ones((3, 4)), f="1")  # type: ignore[call-overload]
    fc.rules.Krum(f=1)(3)  # type: ignore[call-overload]
