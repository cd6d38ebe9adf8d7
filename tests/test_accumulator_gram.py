"""A Gram that grows: what it says of rounding, and its memory."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

import fedcore as fc
from fedcore.accumulator.growing_gram import GrowingGram
from fedcore.errors import BudgetError
from fedcore.rules.files import FileExecutor, budget_for

N, COLUMNS = 5, 2000


@pytest.fixture(scope="module")
def clients() -> list[fc.Update]:
    """Rows of many magnitudes."""
    rng = np.random.default_rng(3)
    rows = (rng.standard_normal((N, COLUMNS)) * 2.0 ** rng.uniform(-9, 9, (N, COLUMNS))).astype(np.float32)
    return [fc.Update.from_tensors({"a": row}, client_id=f"c{i}") for i, row in enumerate(rows)]


def grown(clients: list[fc.Update], memory: int) -> GrowingGram:
    made = GrowingGram({}, {"memory": memory, "threads": 2, "backend": None, "progress": None})
    made.grow(clients)
    return made


def test_redone_distances_round_no_more_than_it_says(clients):
    """Against exact fractions."""
    names, pairs = [client.client_id for client in clients], np.array([(0, 1), (2, 3), (1, 4)])
    executor = FileExecutor.from_files(fc.Cohort(clients), {}, names, backend=None, threads=1)
    off = []
    for (i, j), value in zip(pairs, executor.exact(pairs, None)[0], strict=True):
        columns = zip(clients[i].tensors["a"].tolist(), clients[j].tensors["a"].tolist(), strict=True)
        true = sum((Fraction(x) - Fraction(y)) ** 2 for x, y in columns)
        off.append(abs(Fraction(value) - true) / true)
    found = grown(clients, 10**9).gram(list(range(N)))
    assert 0 < max(off) <= found.rounding <= 1e-12


def test_where_it_has_no_memory_it_is_refused_before_a_row_is_read(clients, monkeypatch):
    """A budget that is enough for the rows alone is not."""
    rows, least = (budget_for(clients[0].layout, clients, "1GB", matrices, 2).least for matrices in (0, 1))
    assert least > rows
    assert grown(clients, least).clients == N
    monkeypatch.setattr(FileExecutor, "tiles", lambda *_: pytest.fail("rows are read"))
    for memory in (least - 1, rows):
        with pytest.raises(BudgetError, match=r"expected at least .* for the Gram of 5 rows"):
            grown(clients, memory)
