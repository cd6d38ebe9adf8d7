"""The page of a run whose every word is markup, as a client, a data set or a stranger's folder may have it."""

from __future__ import annotations

import json
import re
from html import escape
from html.parser import HTMLParser

import fake_learner as fake
import pytest
from test_report import line

from fedcore.federation.folder import RunFolder
from fedcore.federation.privacy_plan import Plan
from fedcore.federation.simulation import run_arms
from fedcore.report import table
from fedcore.report.html import page


def bad(place: str) -> str:
    """What a browser would take for a tag, a reference and the end of an attribute, and where it came from."""
    return f'<i>&"{place}'


PLAN = Plan(
    mode=bad("mode"), epsilon=8.0, delta=1e-5, unit=bad("unit"), sampling="none", neighbours=bad("relation"),
    releases=2, population=5, expected_clients=5, sampling_rate=1.0, clip=1.0, numbers=12, charged=2.0, samples=12,
    noise_of_mean=0.4, notes=(bad("note"),),
)  # fmt: skip
SECURE = {
    "adversary": "semi_honest", "clients": [5], "corrupt": [1], "dropout": [1], "threshold": [3],
    "neighbours": [bad("holders")],
    "modulus_bits": 20, "min_honest": 3, "stream": bad("stream"), "survivors": [[bad("survivor")]],
    "liars": {bad("liar"): bad("why")}, "sums": [bad("sum")], "bytes_up": 1, "bytes_down": 1, "groups": 2,
    "void_groups": [bad("lost")], "warnings": [bad("warning")],
}  # fmt: skip
PRIVATE = {
    "mode": "central", "charge": bad("charge"), "epsilon": 1.0, "clip": 1.0, "noise_of_mean": 0.1, "output": "0" * 64,
    "inputs": bad("inputs"), "void": bad("void"),
}  # fmt: skip
#: each has a place of its own on the page, beside the entry as it stands in the ledger
PLACES = [
    "title", "base", "digest", "started", "arm", "private", "masked", "stopping", "rule", "parameter", "value", "space",
    "gone", "why gone", "zero", "why zero", "output", "stopped", "void", "mode", "unit", "relation", "note", "inputs",
    "stream", "liar", "why", "sum", "lost", "warning", "machine", "processor", "library", "version", "comment",
    "charge", "holders", "round",
]  # fmt: skip


KRUM = (
    fake.CONFIG[: fake.CONFIG.index("[[arms]]")].replace("rounds = 3", "rounds = 1")
    + """
[[arms]]
name = "krum"
rule = "krum"
parameters = { f = 1 }
"""
)


@pytest.fixture(scope="module")
def shown(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("report") / bad("title")
    whole = run_arms(fake.config(KRUM), fake.texts(), fake.FakeLearner(), path, resume=False)
    for entry in whole.ledger.entries[-1:]:
        entry = json.loads(json.dumps(entry).replace("client-0", "CLIENT"))
        entry |= {"arm": bad("arm"), "rule": bad("rule"), "parameters": {bad("parameter"): bad("value")}}
        entry |= {"space": bad("space"), "output": bad("output")}
        entry |= {"excluded": {bad("gone"): bad("why gone")}, "not_counted": {bad("zero"): bad("why zero")}}
        for field in ("coefficients", "change_norms"):
            entry[field] = {bad("who") if name == "CLIENT" else name: value for name, value in entry[field].items()}
        private = entry | {"arm": bad("private"), "privacy": PRIVATE}
        masked = entry | {"arm": bad("masked"), "secure": SECURE, "round": bad("round")}
        for made in (entry, private, masked, {"arm": bad("stopping"), "round": 1, "stopped": bad("stopped")}):
            whole.ledger.append(made)
    for arm in ("arm", "private", "masked"):
        whole.metrics.append(line(bad(arm), 1, 4.5, epsilon=1.0))
    facts = whole.facts | {"base_name": bad("base"), "base": bad("digest"), "started": bad("started")}
    facts["machine"] |= {bad("machine"): bad("processor")}
    facts["versions"] |= {bad("library"): bad("version")}
    facts["clients"][0] |= {"id": bad("who"), "labels": {bad("label"): 3}}
    said = (path / "config.toml").read_text() + f"# {bad('comment')}\n"
    (path / "config.toml").write_text(said)
    (path / "run.json").write_text(json.dumps(facts | {"config": said}))
    (path / "privacy.json").write_text(json.dumps(PLAN.as_json()))
    return page(RunFolder(path))


def test_nothing_of_the_run_is_markup(shown):
    assert "<i>" not in shown
    assert re.findall(r"&(?!\w+;|#)", shown) == []


@pytest.mark.parametrize("place", PLACES)
def test_each_word_of_the_run_is_on_the_page_as_it_is(shown, place):
    assert escape(bad(place)) in shown


def test_texts_of_plots_stay_inside_their_attribute(shown):
    class Reader(HTMLParser):
        def handle_starttag(self, tag, attributes):
            if tag == "img":
                assert [name for name, _ in attributes] == ["src", "alt"]
                said.append(dict(attributes)["alt"])

    said = []
    Reader().feed(shown)
    for place in ("arm", "who"):
        assert any(bad(place) in alternative for alternative in said), place


def test_a_mean_over_clients_of_whom_one_has_no_score_is_none():
    alone = [line("local-only", 2, 4.0, client="a"), line("local-only", 2, None, client="b", accuracy=None)]
    (row,) = table.rows(alone)
    assert (row.loss, row.perplexity, row.accuracy) == (None, None, None)
    (row,) = table.rows([alone[0], alone[0] | {"client": "b"}])
    assert (row.loss, row.accuracy) == (4.0, 0.25)
