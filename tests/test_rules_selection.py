"""What decides between rows whose scores are intervals."""

from __future__ import annotations

import numpy as np
import pytest

from fedcore.rules.selection import lowest


def places(scores, half, count=1) -> list[int]:
    scores, half = np.array(scores, float), np.array(half, float)
    return lowest(scores, np.maximum(scores - half, 0), scores + half, count).tolist()


@pytest.mark.parametrize("width", [0.0, 1e-12, 1.0, 1e9, 1e30])
def test_a_wide_interval_does_not_win(width):
    assert places([2.7e7, 1.2, 1.17, 1.3], [width, 1e-12, 1e-12, 1e-12]) == [2]
    assert places([2.7e7, 1.2, 1.17, 1.3], [width, 1e-12, 1e-12, 1e-12], 3) == [2, 1, 3]


def test_ties_within_rounding_go_to_thelowest_row():
    assert places([5.0, 1 + 1e-13, 1.0, 1 - 1e-13], [1e-12] * 4) == [1]
    assert places([5.0, 1 + 1e-13, 1.0, 1 - 1e-13], [1e-12] * 4, 2) == [1, 2]
    assert places([1.0, 1.0], [0.0, 0.0]) == [0]
    assert places([np.nextafter(1.0, 2), 1.0], [0.0, 0.0]) == [1]
