"""The roof reads every byte: a bit anywhere in the rows shows in its digest."""

from __future__ import annotations

import numpy as np
import pytest

from fedcore.rowtable import RowTable

pytest.importorskip("fedcore.native", reason="the C kernels are not built")

from fedcore.native.read import read


@pytest.mark.parametrize("isa", ["ref", "avx512"])
@pytest.mark.parametrize("streams", [1, 3, 16])
def test_every_element_is_read(monkeypatch, isa, streams):
    from fedcore.native import isa_available

    if isa not in isa_available():
        pytest.skip(f"{isa} does not run on this machine")
    monkeypatch.setenv("FEDCORE_ISA", isa)
    rows = [np.zeros(40_001, np.float32) for _ in range(5)]
    table = RowTable.from_arrays(rows)
    assert read(table, streams, 2) == 0
    for row, column in ((0, 0), (2, 16_384), (4, 40_000), (3, 39_999)):
        rows[row].view(np.uint32)[column] = 1
        assert read(table, streams, 2) != 0
        rows[row][column] = 0
