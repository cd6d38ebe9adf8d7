"""The table, the plots and the page: right figures, one file, nothing from outside, everything escaped."""

from __future__ import annotations

import math
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from base64 import b64decode
from html.parser import HTMLParser
from pathlib import Path

import fake_learner as fake
import pytest

from fedcore.federation.folder import RunFolder
from fedcore.federation.simulation import run_arms
from fedcore.report import plots, table
from fedcore.report.html import page, rounds_run, write_report


def line(arm: str, number: int, loss: float | None, **more) -> dict:
    seconds = {"training": 2.0, "journal": 0.1, "aggregation": 0.5, "evaluation": 1.0}
    perplexity = math.exp(loss) if loss is not None else None
    known = {"arm": arm, "round": number, "loss": loss, "perplexity": perplexity, "accuracy": 0.25, "bytes_up": 1000}
    return known | {"bytes_down": 2000, "seconds": seconds} | more


METRICS = [
    line("base", 0, 5.0, bytes_up=0, bytes_down=0),
    line("local-only", 2, 4.0, client="a", bytes_up=0, bytes_down=0),
    line("local-only", 2, 4.4, client="b", bytes_up=0, bytes_down=0),
    line("first", 1, 4.5),
    line("first", 2, 3.5),
    line("ruined", 1, 9.0),
    line("ruined", 2, None),
]


FACTS = {"questions": 40, "held_out": 200}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> RunFolder:
    path = tmp_path_factory.mktemp("report") / "a <b>run & more"
    return run_arms(fake.config(), fake.texts(), fake.FakeLearner(), path, resume=False)


def test_rows_take_the_last_round_and_add_up_bytes_and_seconds():
    base, local, first, ruined = table.rows(METRICS)
    assert (base.name, base.loss, base.bytes_up) == ("base", 5.0, 0)
    assert local.loss == pytest.approx(4.2)
    assert local.perplexity == pytest.approx(math.exp(4.2))
    assert local.training == 4.0
    assert (first.loss, first.bytes_up, first.bytes_down) == (3.5, 2000, 4000)
    assert (first.training, first.aggregation, first.evaluation) == (4.0, 1.0, 2.0)
    assert ruined.loss is None


def test_epsilon_has_a_column_where_there_is_noise_and_an_arm_that_learnt_nothing_is_named():
    from rich.console import Console

    losses = {"learnt": 4.9, "nothing": 4.999, "worse": 6.0, "ruined": None}
    private = [line(name, 1, loss, epsilon=7.5) for name, loss in losses.items()]
    made = table.rows([METRICS[0], *private])
    assert [row.name for row in made if row.collapsed] == ["nothing", "worse", "ruined"]
    assert not any(row.collapsed for row in table.rows(METRICS))  # of runs without noise nothing is said
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table.as_rich(made, "t", 40))
    assert "ε" in console.export_text()
    assert "7.5" in table.as_html(made, FACTS)
    assert "ε" not in table.as_html(table.rows(METRICS), FACTS)


def test_the_table_fits_a_terminal_of_80_columns():
    from rich.console import Console

    with open("/dev/null", "w") as nowhere:
        console = Console(width=80, record=True, file=nowhere)
        console.print(
            table.as_rich(
                [table.Row("poisoned-krum", 5.123, 161.3, 0.26, 5 * 10**6, 10**9, 123.4, 0.098, 99.9, 7.994)], "t", 40
            )
        )
    assert "…" not in console.export_text()


def test_terminal_json_and_page_show_the_same_rows():
    from rich.console import Console

    made = table.rows(METRICS)
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table.as_rich(made, "title", 40))
    terminal, page_table = console.export_text(), table.as_html(made, FACTS)
    for row, data in zip(made, table.as_json(made), strict=True):
        assert data["name"] == row.name
        for shown in (row.name, "not finite" if row.loss is None else f"{row.loss:.3f}"):
            assert shown in terminal
            assert shown in page_table
    assert "<caption>" in page_table
    assert page_table.count('scope="row"') == 4


def test_the_accuracy_says_of_how_many_questions_it_is_and_how_far_it_is_known():
    from rich.console import Console

    assert table.standard_error(0.25, 40) == pytest.approx(math.sqrt(0.25 * 0.75 / 40))
    # all right and none right are not certain either
    assert table.standard_error(1.0, 4) == table.standard_error(0.0, 4) == pytest.approx(math.sqrt(7 / 64 / 4))
    made = [table.Row(name, 5.0, 148.4, accuracy, 0, 0, 0, 0, 1) for name, accuracy in (("a", 0.3), ("b", 0.5))]
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table.as_rich(made, "t", 40))
    said = "of 40 questions: one is 2.5 points, standard error up to 7.9"
    assert f"ranking accuracy {said}" in " ".join(console.export_text().split())
    page_table = table.as_html(made, FACTS)
    assert f"{said}, which is √(p(1 − p)/40)" in page_table
    assert "Scores on 200 held-out texts" in page_table
    assert "1 held-out text after" in table.as_html(made, {"questions": 40, "held_out": 1})
    # without questions nothing is said of them
    none = [table.Row("a", 5.0, 148.4, None, 0, 0, 0, 0, 1)]
    assert "question" not in table.as_html(none, {"questions": 0, "held_out": 200})
    console.print(table.as_rich(none, "t", 0))
    assert "question" not in console.export_text()


def test_times_that_a_private_arm_does_not_publish_are_said_to_be_in_its_folder():
    private = table.rows([METRICS[0], line("noised", 1, 4.9, epsilon=7.5, seconds={"evaluation": 1.0})])
    said = "in private/rounds/"
    assert said in table.as_html(private, FACTS)
    assert said not in table.as_html(table.rows(METRICS), FACTS)


@pytest.mark.parametrize(
    ("ends", "said"),
    [
        ({"a": 4, "b": 4}, "4 rounds in each of 2 arms"),
        ({"a": 4, "b": 3}, "7 rounds in 2 arms"),
        ({"a": 1, "b": 1}, "1 round in each of 2 arms"),
        ({"a": 4}, "4 rounds in 1 arm"),
        ({"a": 1}, "1 round in 1 arm"),
        ({}, "no round yet"),
    ],
)
def test_rounds_are_counted_an_arm_where_arms_have_as_many(ends, said):
    from fedcore.report.html import rounds_run

    assert rounds_run([{"arm": arm, "output": ""} for arm, rounds in ends.items() for _ in range(rounds)]) == said


def test_the_accuracy_plot_has_a_whisker_an_arm_and_the_loss_none(folder):
    metrics = [entry for entry in METRICS if entry["arm"] != "ruined"] + [line("second", 2, 3.5)]
    (plain, _), (whiskers, said) = (plots.curves(metrics, "accuracy", "t", "l", n) for n in (0, 40))
    assert "± standard error" not in plain
    assert whiskers.count("± standard error") == 1
    assert said.endswith(" Standard error at most 0.068.")
    # one in the colour of each arm beside the last round
    for ink in plots.ARMS[:2]:
        assert whiskers.count(f"stroke: {ink.lower()}; stroke-width: 1.3") == 1
        assert f"stroke: {ink.lower()}; stroke-width: 1.3" not in plain
    assert "± standard error" not in plots.curves(metrics, "loss", "t", "l", 0)[0]


@pytest.mark.parametrize(
    ("count", "shown"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (2_500_000, "2.5 MB"), (3e13, "30.0 TB")]
)
def test_sizes(count, shown):
    assert table.size(count) == shown


def test_plots_are_svg_that_is_the_same_each_time_and_say_what_they_show(folder):
    metrics, ledger = folder.metrics.entries, folder.ledger.entries
    made = [
        plots.curves(metrics, "loss", "Held-out loss", "nats per token"),
        plots.coefficients(ledger),
        plots.norms(ledger),
        plots.time_by_phase(metrics),
        plots.traffic(metrics),
        plots.data_by_client(folder.facts["clients"]),
    ]
    for svg, alternative in made:
        assert ElementTree.fromstring(svg).tag.endswith("svg")
        assert len(alternative) > 30
    assert plots.coefficients(ledger) == made[1]
    assert "krum: client-4 never counted" in made[1][1] or "client-4" in made[1][1]
    for text in ("client-0", "(poisoned)", "krum"):
        assert text in made[1][0]


def test_a_ruined_arm_does_not_break_the_plots():
    svg, said = plots.curves(METRICS, "loss", "Held-out loss", "nats per token")
    assert "ruined 9.000" in said
    assert "<svg" in svg


class Reader(HTMLParser):
    """Collects tags, image texts and whatever the page would load."""

    def __init__(self):
        super().__init__()
        self.open, self.images, self.loads, self.tags = [], [], [], set()

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.tags.add(tag)
        self.loads += [values[key] for key in ("src", "href", "srcset", "action") if key in values]
        if tag == "img":
            self.images.append(values)
        if tag not in ("meta", "img", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_one_whole_file_that_needs_nothing_else(folder):
    text = write_report(folder).read_text()
    reader = Reader()
    reader.feed(text)
    assert reader.open == []
    assert "script" not in reader.tags
    assert all(source.startswith("data:image/svg+xml;base64,") for source in reader.loads)
    assert len(reader.images) >= 6
    for image in reader.images:
        assert image["alt"].strip()
        svg = b64decode(image["src"].partition(",")[2]).decode()
        # names of namespaces aside, nothing is fetched
        assert not re.search(r'(href|src)="(?!#|data:)', svg)
    assert "@import" not in text
    assert "url(" not in text
    assert list(folder.path.glob(".report*")) == []


def test_everything_from_the_run_is_escaped(folder):
    text = page(folder)
    assert "<b>run" not in text
    assert "a &lt;b&gt;run &amp; more" in text


def test_the_page_has_table_ledger_configuration_and_machine(folder):
    text = page(folder)
    for entry in folder.ledger.entries:
        assert entry["output"][:16] in text
    for heading in ("Results", "Who counted", "Time and traffic", "Ledger", "Configuration", "Machine and versions"):
        assert f"<h2>{heading}</h2>" in text
    assert "not selected" in text
    assert "[[arms]]" in text


def test_arms_whose_shares_nobody_sees_are_named(folder):
    from fedcore.report.html import unseen

    open_arm = {"arm": "open", "output": "", "coefficients": {}}
    masked = {"arm": "masked", "output": "", "secure": {}}
    hidden = {"arm": "hidden", "output": "", "privacy": {}, "secure": {}}
    assert unseen([open_arm]) == ""
    assert unseen([open_arm, masked, masked]) == (
        " masked is not shown: under masks the server sees sums alone, and nobody the share of a client."
    )
    assert unseen([open_arm, hidden, {**hidden, "arm": "other"}]) == (
        " hidden and other are not shown: who took part in a private arm, and with what share, is not published."
    )
    assert unseen([open_arm, masked, hidden]).count("not shown") == 2
    assert "not shown" not in page(folder)


def test_an_unfinished_run_has_a_report_too(folder, tmp_path: Path):
    path = tmp_path / "begun"
    path.mkdir()
    for name in ("config.toml", "run.json"):
        (path / name).write_bytes((folder.path / name).read_bytes())
    assert "No round has finished yet." in page(RunFolder.read(path))


def test_files_of_a_run_are_utf_8_whatever_the_locale(folder):
    """Python tells of each open() that takes the locale's encoding; here it is an error."""
    code = "import sys, pathlib, fedcore.report.html as h; h.page(h.RunFolder.read(pathlib.Path(sys.argv[1])))"
    options = ("-X", "warn_default_encoding", "-W", "error::EncodingWarning:fedcore.report.html")
    subprocess.run([sys.executable, *options, "-c", code, str(folder.path)], check=True, capture_output=True)


def test_the_mean_of_clients_alone_is_of_all_that_could_train():
    def alone(loss, client, **more):
        return line("local-only", 1, loss, client=client, perplexity=None, **more)

    [row] = table.rows([alone(1.0, "a"), alone(3.0, "b"), alone(None, "c", failed=True)])
    assert (row.loss, row.failed) == (2.0, 1)
    [row] = table.rows([alone(1.0, "a"), alone(None, "b")])
    assert row.loss is row.perplexity is None
    [row] = table.rows([line("local-only", 1, None, client="a") | {"loss": 800.0}])
    assert (row.loss, row.perplexity) == (800.0, None)


def test_who_did_not_count_is_hollow():
    def hollow(coefficients):
        norms = {"b": 1.0, "c": 2.0, "d": 3.0}
        entry = {"arm": "a", "round": 1, "inputs": dict.fromkeys(norms, ""), "poisoned": [], "divisor": 1.0}
        return plots.norms([entry | {"change_norms": norms, "coefficients": coefficients}])[0].count(
            "fill: #ffffff; fill-opacity: 0.85"
        )

    assert hollow({"b": 1.0, "c": 0.0, "d": 1.0}) == 1
    assert hollow({"b": 1.0, "c": 1.0, "d": 1.0}) == 0


def test_a_round_that_was_stopped_was_not_run():
    assert rounds_run([{"arm": "a", "output": "x"}, {"arm": "a", "stopped": "why"}]) == "1 round in 1 arm"
