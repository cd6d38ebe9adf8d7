"""Rows and references that no rule takes: what is wrong is named as the caller named it, with what would fit."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from fedcore.errors import DTypeError, LayoutError, ShapeError
from fedcore.rowtable import RowTable
from fedcore.rules import CenteredClipping, FLTrust, Median, NormClipping

ROWS = np.random.default_rng(0).standard_normal((7, 5)).astype(np.float32)
TAKEN = "expected one of float32, float16, bfloat16; convert the array first"


@pytest.mark.parametrize("dtype", [np.int8, np.int64, np.float64, np.complex64, np.bool_])
def test_a_dtype_that_rows_cannot_have_says_those_that_they_can(dtype):
    rows, name = ROWS.astype(dtype), np.dtype(dtype).name
    for given, what in ((rows, "rows"), (rows[:, ::2], "row 0"), (list(rows), "row 0"), ([ROWS[0], rows[1]], "row 1")):
        with pytest.raises(DTypeError, match=rf"^{what}: got {name}, {TAKEN}$"):
            Median()(given)
    tensors = torch.from_numpy(rows)
    for given, what in (
        (tensors, "row 0"),
        (list(tensors), "row 0"),
        ([torch.from_numpy(ROWS[0]), tensors[1]], "row 1"),
    ):
        with pytest.raises(DTypeError, match=rf"^{what}: got torch\.{name}, {TAKEN}$"):
            Median()(given)
    with pytest.raises(DTypeError, match=rf"^reference: got {name}, {TAKEN}$"):
        NormClipping(1.0)(ROWS, reference=rows[0])


def test_another_byte_order_names_the_rows():
    with pytest.raises(DTypeError, match=r"^rows: got >f4, expected this machine's byte order; use array\.astype"):
        Median()(ROWS.astype(">f4"))


@pytest.mark.parametrize(
    ("rule", "name"), [(NormClipping(1.0), "reference"), (FLTrust(), "server"), (CenteredClipping(1.0), "center")]
)
@pytest.mark.parametrize("as_torch", [False, True])
@pytest.mark.parametrize("shape", [(7, 5), (1, 5), (3,), ()])
def test_the_shape_of_a_reference_is_that_of_a_row(rule, name, as_torch, shape):
    made = torch.from_numpy if as_torch else np.asarray
    with pytest.raises(
        LayoutError, match=rf"^{name}: got shape {re.escape(str(shape))}, expected \(5,\) like the rows$"
    ):
        rule(made(ROWS), **{name: made(np.ones(shape, np.float32))})


def test_whatever_else_is_wrong_with_a_reference_names_it():
    rule = NormClipping(1.0)
    for given, error, text in (
        ("abc", DTypeError, "reference: got str, expected a NumPy array or a torch tensor"),
        ([1.0] * 5, DTypeError, "reference: got list, expected a NumPy array or a torch tensor"),
        (np.ones(10, np.float32)[::2], ShapeError, "reference: its elements are not contiguous"),
        (np.ones(5, np.float16), LayoutError, "reference: got float16, expected float32 like the rows; convert it"),
        (RowTable.from_matrix(ROWS), LayoutError, "reference: got 7 rows, expected one"),
    ):
        with pytest.raises(error, match=f"^{text}"):
            rule(ROWS, reference=given)
