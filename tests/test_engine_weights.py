"""fc.aggregate: weights by client or in order, the counts that a result says, and every weight that is refused."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import fedcore as fc
from fedcore.errors import ShapeError, WeightError
from fedcore.rules import Krum, Mean, Median, MultiKrum
from tests.engine_cohorts import CLIENTS, SPACES


@pytest.mark.parametrize("space", SPACES)
def test_weights_by_client_or_in_the_order_given(space):
    order = [CLIENTS[3], CLIENTS[0], CLIENTS[5]]
    by_order = fc.aggregate(order, Mean(), space, weights=[7, 1, 2])
    by_client = fc.aggregate(order, Mean(), space, weights={"c0": 1, "c3": 7, "c5": 2})
    assert by_order.coefficients == by_client.coefficients == {"c0": 1.0, "c3": 7.0, "c5": 2.0}
    assert by_order.update.digest() == by_client.update.digest()


@pytest.mark.parametrize(
    ("weights", "error", "text"),
    [
        ({"c0": 1}, ShapeError, "client 'c1' has no weight"),
        ({f"c{i}": 1 for i in range(7)}, ShapeError, "client 'c6' sent no update"),
        ([1, 1], ShapeError, "one for each update"),
        ([1, 1, 0, 1, 1, 1], WeightError, "client 'c2': got weight 0"),
        ([1, 1, 1, -1, 1, 1], WeightError, "client 'c3': got weight -1"),
        ([1, 1, 1, 1, np.inf, 1], WeightError, "client 'c4': got weight inf"),
        ([1, 1, 1, 1, 1, np.nan], WeightError, "client 'c5': got weight nan"),
        ([2**24 + 2, 1, 1, 1, 1, 1], WeightError, "client 'c0': got weight 16777218"),
        ([0] * 6, WeightError, "got weight 0"),
    ],
)
def test_bad_weights_are_named_by_client(weights, error, text):
    with pytest.raises(error, match=text):
        fc.aggregate(CLIENTS, Mean(), weights=weights)


@pytest.mark.parametrize(
    ("weights", "error", "text"),
    [
        (3, ShapeError, r"^weights: got 3, expected a mapping by client_id or a list in order$"),
        ("abcdef", ShapeError, r"^weights: got 'abcdef', expected a mapping"),
        (np.float32(3), ShapeError, r"^weights: got .*3.*, expected a mapping"),
        ({1.0, 2.0, 3.0, 4.0, 5.0, 6.0}, ShapeError, r"^weights: got .*, which has no order, expected"),
        ([1, 1, None, 1, 1, 1], WeightError, r"^client 'c2': got weight None, expected a finite number above 0"),
        (
            [1, 1, 1, 10**400, 1, 1],
            WeightError,
            r"^client 'c3': got weight an integer of 1329 bits, expected a finite number above 0",
        ),
        ({f"c{i}": None if i == 4 else 1 for i in range(6)}, WeightError, r"^client 'c4': got weight None, expected"),
        (dict.fromkeys(range(6), 1), ShapeError, r"^weights: client 0 sent no update but has a weight"),
        ([1, "2", 1, 1, 1, 1], WeightError, r"^client 'c1': got weight '2', expected"),
        ([1, [2], 1, 1, 1, 1], WeightError, r"^client 'c1': got weight \[2\], expected"),
    ],
)
def test_weights_that_are_no_numbers_are_named(weights, error, text):
    for way in (
        lambda **given: fc.aggregate(CLIENTS, Mean(), **given),
        lambda **g: fc.lora.FedIT().aggregate(CLIENTS, **g),
    ):
        with pytest.raises(error, match=text) as caught:
            way(weights=weights)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 300


@pytest.mark.parametrize("space", SPACES)
def test_a_result_has_the_count_of_those_that_count_and_none_where_one_of_them_never_said_it(space):
    said = [dataclasses.replace(u, num_examples=10) for u in CLIENTS]
    silent = [dataclasses.replace(u, counted=i != 5) for i, u in enumerate(said)]
    many = [dataclasses.replace(u, num_examples=2**39) for u in CLIENTS]
    n = len(CLIENTS)
    for rule, cohort, examples, counted in [
        (Mean(), said, 10 * n, True),
        (Mean(), silent, 10 * n, False),
        (Krum(1), silent, 10, True),
        (Median(), many, 2**40, False),
    ]:
        update = fc.aggregate(cohort, rule, space).update
        assert (update.num_examples, update.counted) == (examples, counted)
        again = fc.Update.from_bytes(update.to_bytes())
        assert again.counted == counted
        assert again.num_examples == (examples if counted else 1)


def test_what_clients_report_does_not_move_krum():
    lying = [dataclasses.replace(u, num_examples=2**40 if i == 5 else 1) for i, u in enumerate(CLIENTS)]
    for space in SPACES:
        expected, found = (fc.aggregate(u, MultiKrum(1), space) for u in (CLIENTS, lying))
        assert found.update.digest() == expected.update.digest()
    with pytest.raises(WeightError, match="client 'c5'"):
        fc.aggregate(lying, Mean())
