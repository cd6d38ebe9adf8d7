"""One answer to what a whole number, a real number and a flag is, and errors that stay one short line."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from decimal import Decimal
from enum import IntEnum
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from fedcore.errors import PrivacyError, RuleError
from fedcore.numbers import as_flag, as_real, as_whole, flag, got, keep, positive, shown, whole


class Level(IntEnum):
    HIGH = 3


class Unshown:
    def __repr__(self) -> str:
        raise KeyError("no repr")


#: (value, as a whole number, as a real number, as a flag)
VALUES: list[tuple[Any, int | None, float | None, bool | None]] = [
    (3, 3, 3.0, None),
    (0, 0, 0.0, None),
    (-3, -3, -3.0, None),
    (Level.HIGH, 3, 3.0, None),
    (np.int8(3), 3, 3.0, None),
    (np.uint64(2**64 - 1), 2**64 - 1, 2.0**64, None),
    (np.array(3), 3, 3.0, None),
    (2**53, 2**53, 2.0**53, None),
    (10**5000, 10**5000, None, None),
    (3.0, None, 3.0, None),
    (math.inf, None, math.inf, None),
    (np.float16(0.5), None, 0.5, None),
    (np.float32(0.5), None, 0.5, None),
    (np.float64(3), None, 3.0, None),
    (np.longdouble(0.5), None, 0.5, None),
    (np.array(0.5, np.float32), None, None, None),
    (Fraction(1, 2), None, 0.5, None),
    (Fraction(10**400), None, None, None),
    (True, None, None, True),
    (False, None, None, False),
    (np.True_, None, None, True),
    (np.array(False), None, None, False),
    (None, None, None, None),
    ("3", None, None, None),
    (b"3", None, None, None),
    (np.str_("3"), None, None, None),
    (1j, None, None, None),
    (np.complex64(1), None, None, None),
    (Decimal(3), None, None, None),
    (np.timedelta64(3), None, None, None),
    (np.datetime64("2020"), None, None, None),
    ([3], None, None, None),
    (np.array([3]), None, None, None),
    (np.array([[0.5]]), None, None, None),
    (np.array([True]), None, None, None),
    (np.int64, None, None, None),
    (Unshown(), None, None, None),
]


def same(found: Any, expected: Any) -> bool:
    return type(found) is type(expected) and found == expected


@pytest.mark.parametrize(("value", "as_int", "as_float", "as_bool"), VALUES, ids=lambda v: shown(v)[:40])
def test_every_kind_of_value(value, as_int, as_float, as_bool):
    assert same(as_whole(value), as_int)
    assert same(as_real(value), as_float)
    assert same(as_flag(value), as_bool)


def test_every_kind_of_tensor():
    torch = pytest.importorskip("torch")
    for value, *expected in [
        (torch.tensor(3), 3, 3.0, None),
        (torch.tensor(3, dtype=torch.uint8), 3, 3.0, None),
        (torch.tensor(0.5), None, None, None),
        (torch.tensor(True), None, None, True),
        (torch.tensor([3]), None, None, None),
        (torch.tensor([0.5]), None, None, None),
        (torch.tensor([True]), None, None, None),
        (torch.tensor(1j), None, None, None),
        *((torch.empty((), dtype=dtype, device="meta"), None, None, None) for dtype in (torch.int64, torch.float32)),
        (torch.empty((), dtype=torch.bool, device="meta"), None, None, None),
    ]:
        for function, wanted in zip((as_whole, as_real, as_flag), expected, strict=True):
            assert same(function(value), wanted), (function, value)


def test_nan_is_a_number():
    assert math.isnan(as_real(math.nan) or 0)
    assert math.isnan(as_real(np.float32("nan")) or 0)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (2**128 - 1, str(2**128 - 1)),
        (2**128, "an integer of 129 bits"),
        (-(2**128), "a negative integer of 129 bits"),
        (10**5000, "an integer of 16610 bits"),
        ([10**5000], "a list that cannot be shown"),
        (Unshown(), "a Unshown that cannot be shown"),
        ("a\nb  c", "'a\\nb  c'"),
        (np.arange(4).reshape(2, 2), "array([[0, 1], [2, 3]])"),
        ("x" * 1000, f"'{'x' * 99}...{'x' * 39}'"),
        ("x" * 158, f"'{'x' * 158}'"),
    ],
    ids=lambda v: type(v).__name__,
)
def test_a_value_is_shown_on_one_short_line(value, text):
    assert shown(value) == text


def test_what_is_nested_too_deep_for_its_repr_is_named():
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    assert shown(deep) == "a deeply nested list"


@pytest.mark.parametrize("value", [entry[0] for entry in VALUES], ids=lambda v: shown(v)[:40])
def test_checks_take_what_is_one_and_refuse_the_rest_in_one_line(value):
    for check, found in (
        (lambda: whole("f", value, -(2**70), 2**20000, of="Krum", error=RuleError), as_whole(value)),
        (lambda: flag("f", value, of="Krum", error=RuleError), as_flag(value)),
        (
            lambda: positive("f", value, of="Krum", error=RuleError),
            n if 0 < (n := as_real(value) or 0) < math.inf else None,
        ),
    ):
        if found is not None:
            assert same(check(), found)
            continue
        with pytest.raises(RuleError, match=rf"^Krum: got f={re.escape(shown(value))}, expected ") as caught:
            check()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("most", "expected"),
    [
        (None, "of at least 2"),
        (2, "from 2 to 2"),
        (2**32, "from 2 to 4294967296"),
        (2**53, "from 2 to 2^53"),
        (2**63 - 1, "from 2 to 2^63 - 1"),
        (10**10, "from 2 to 10000000000"),
    ],
)
def test_a_range_is_said_whole(most, expected):
    for value in (1, 2**64) if most else (1,):
        with pytest.raises(PrivacyError, match=rf"^clients: got .*, expected a whole number {re.escape(expected)}$"):
            whole("clients", value, 2, most, error=PrivacyError)
    assert whole("clients", np.uint8(2), 2, most, error=PrivacyError) == 2


def test_an_error_begins_with_the_name_after_what_it_belongs_to():
    assert got("f", "x") == "f: got 'x'"
    assert got("f", 2**140, "Krum") == "Krum: got f=an integer of 141 bits"


def test_a_frozen_dataclass_keeps_what_was_checked():
    @dataclass(frozen=True)
    class Settings:
        f: int
        weighted: bool = False

        def __post_init__(self) -> None:
            keep(self, f=whole("f", self.f, 0, error=RuleError), weighted=flag("w", self.weighted, error=RuleError))

    made: Any = Settings(np.int8(3), np.True_)  # type: ignore[arg-type]
    assert repr(made).endswith("Settings(f=3, weighted=True)")
