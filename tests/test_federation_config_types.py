"""Values of a type that a key does not take: one line each, in the words of TOML."""

from __future__ import annotations

import pytest
from test_federation_config import SMALLEST, fault

SWITCH = "input should be a valid table, true or false"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[arms]]\nname = 'a'\nsecure = 'yes'\n", f"arms[0].secure: got 'yes'; {SWITCH}"),
        ("[[arms]]\nname = 'a'\nsecure = 1\n", f"arms[0].secure: got 1; {SWITCH}"),
        (
            "[[arms]]\nname = 'a'\nsecure = { bits = 1 }\n",
            "arms[0].secure.bits: got 1; input should be greater than or equal to 2",
        ),
        ("[secure]\nbits = true\n", "secure.bits: got true; input should be a valid integer"),
        ("[adapter]\nranks = []\n", "adapter.ranks: got []; list should have at least 1 item"),
        (
            "[adapter]\ntarget_modules = 3\n",
            "adapter.target_modules: got 3; input should be a valid string or a valid list",
        ),
        ("[adapter]\ntarget_modules = [3]\n", "adapter.target_modules[0]: got 3; input should be a valid string"),
        ("[aggregation]\nparameters = [1]\n", "aggregation.parameters: got [1]; input should be a valid table"),
        ("[aggregation]\nbefore = ['arc']\n", "aggregation.before[0]: got 'arc'; input should be a valid table"),
        (
            "[aggregation]\nmethod = 'flexlora'\nparameters = { rank = true }\n",
            "arms[0]: flexlora: parameter 'rank': got true, expected a whole number",
        ),
    ],
)  # fmt: skip
def test_a_fault_of_a_type_is_one_line_in_the_words_of_toml(text, said):
    assert fault(SMALLEST + text) == f"c.toml: {said}"


def test_a_key_above_all_tables_takes_a_table_true_or_false():
    assert fault("secure = 'yes'\n" + SMALLEST) == f"c.toml: secure: got 'yes'; {SWITCH}"


def test_several_faults_within_one_table_of_masks_are_a_line_each():
    lines = fault(SMALLEST + "[[arms]]\nname = 'a'\nsecure = { bits = 1, corrupt = 2.0 }\n").splitlines()
    assert [line.partition(":")[2].partition(":")[0] for line in lines] == [
        " arms[0].secure.corrupt", " arms[0].secure.bits"
    ]  # fmt: skip
