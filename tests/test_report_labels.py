"""Labels are the user's own words: whatever they hold, the plot is well-formed and shows them, and stderr is empty."""

from __future__ import annotations

import re
import warnings
import xml.etree.ElementTree as ElementTree

import pytest

from fedcore.report import plots

#: label -> what the plot shows of it
SHOWN = {
    "$^$": "$^$",
    "$x^2$": "$x^2$",
    "_x": "_x",
    "健康": "健康",
    "\x07": "␇",
    'a<b>&"c': 'a<b>&"c',
    "one\ntwo\tthree\r": "one␊two␉three␍",
    "\x7f\ufffe": "␡�",
    "--> \\frac": "--> \\frac",
    "": "texts",
    "other labels": "other labels",
    "w" * 32: "w" * 32,
    "w" * 200: "w" * 31 + "…",
    "健" * 16: "健" * 16,
    "健" * 17: "健" * 15 + "…",
}


def drawn(labels: dict[str, int]) -> list[str]:
    """The texts of the plot of one client with these labels; any warning is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        svg, _ = plots.data_by_client([{"id": "client-0", "examples": 3, "labels": labels}])
    # none is typeset as a formula: each is one text element
    return [node.text for node in ElementTree.fromstring(svg).iter() if node.tag.endswith("}text")]


@pytest.mark.parametrize("label", SHOWN)
def test_a_label_is_shown_as_it_is(label):
    without = drawn({"other": 3})
    assert drawn({label: 2, "other": 1}).count(SHOWN[label]) == without.count(SHOWN[label]) + 1


def test_all_labels_at_once_each_beside_its_colour():
    labels = ["$^$", "$x^2$", "_x", "健康", "\x07", 'a<b>&"c']
    assert set(drawn(dict.fromkeys(labels, 1))) >= {SHOWN[label] for label in labels}


def test_a_label_that_is_called_as_the_rest_is_not_taken_for_it():
    clients = [{"id": "client-0", "examples": 8, "labels": {"other labels": 1} | dict.fromkeys("pqrstuv", 1)}]
    texts = drawn(clients[0]["labels"])
    assert texts.count("other labels") == 2
    # eight texts in all, on an axis that ends a little above: counted twice, they would be ten
    assert max(int(text) for text in texts if text.isdigit()) == 8


def test_a_legend_leaves_room_for_letters_that_a_browser_draws_wider_than_matplotlib_measures():
    def axis_ends(label: str) -> float:
        svg, _ = plots.data_by_client([{"id": "client-0", "examples": 1, "labels": {label: 1}}])
        background = re.search(r'id="patch_2">\s*<path d="M [\d.]+ [\d.]+\s*L ([\d.]+)', svg)
        assert background is not None
        return float(background[1])

    # of ten letters matplotlib draws ten boxes of 0.6 em; in a browser they take 9 points each
    assert axis_ends("国" * 10) == pytest.approx(axis_ends("अ" * 10) - 10 * 0.4 * 9, abs=1)
