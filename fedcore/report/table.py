"""The table of a run: the base, local-only training, each arm. One source for the terminal, JSON and the page."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from fedcore.report.collapse import collapsed

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Row:
    """One line of the table.

    loss in nats per token, None where it is not finite; accuracy of likelihood ranking; bytes, seconds of the whole
    run; of a private run ε so far, and whether the arm is no better than the base (`collapsed`); failed: clients that
    could not train alone and are in no mean
    """

    name: str
    loss: float | None
    perplexity: float | None
    accuracy: float | None
    bytes_up: int
    bytes_down: int
    training: float
    aggregation: float
    evaluation: float
    epsilon: float | None = None
    collapsed: bool = False
    failed: int = 0


#: heading, field, how it is written
_COLUMNS = (
    ("", "name", str),
    ("ε", "epsilon", lambda value: "–" if value is None else f"{value:.3g}"),
    ("held-out loss", "loss", lambda value: "not finite" if value is None else f"{value:.3f}"),
    (
        "perplexity",
        "perplexity",
        lambda value: "∞" if value is None else f"{value:.1f}" if value < 1e5 else f"{value:.1e}",
    ),
    ("ranking accuracy", "accuracy", lambda value: "–" if value is None else f"{100 * value:.1f} %"),
    ("bytes up", "bytes_up", lambda value: size(value) if value else "–"),
    ("bytes down", "bytes_down", lambda value: size(value) if value else "–"),
    ("training", "training", lambda value: seconds(value) if value else "–"),
    ("aggregation", "aggregation", lambda value: seconds(value) if value else "–"),
    ("evaluation", "evaluation", lambda value: seconds(value)),
)


def rows(metrics: Sequence[dict[str, Any]]) -> list[Row]:
    """The lines of metrics.jsonl as table rows, in the order in which the arms ran."""
    names = list(dict.fromkeys(line["arm"] for line in metrics))
    found = [_row(name, [line for line in metrics if line["arm"] == name]) for name in names]
    base = next((row.loss for row in found if row.name == "base"), None)
    return [replace(row, collapsed=row.epsilon is not None and collapsed(base, row.loss)) for row in found]


def columns(table: Sequence[Row]) -> list[tuple[str, str, Any]]:
    """The columns that have something to show: ε where a row was noised."""
    private = any(row.epsilon is not None for row in table)
    return [column for column in _COLUMNS if private or column[1] != "epsilon"]


def _row(name: str, lines: list[dict[str, Any]]) -> Row:
    alone = [line for line in lines if "client" in line]
    trained = [line for line in alone if not line.get("failed")]
    last = trained or [max(lines, key=lambda line: line["round"])]
    loss, accuracy = _mean([line["loss"] for line in last]), _mean([line["accuracy"] for line in last])

    def spent(phase: str) -> float:
        return sum(line["seconds"].get(phase, 0.0) for line in lines)

    return Row(
        name=name,
        loss=loss,
        perplexity=last[0]["perplexity"] if not alone else math.exp(loss) if loss is not None and loss < 700 else None,
        accuracy=accuracy,
        bytes_up=sum(line["bytes_up"] for line in lines),
        bytes_down=sum(line["bytes_down"] for line in lines),
        training=spent("training"),
        aggregation=spent("aggregation"),
        evaluation=spent("evaluation"),
        epsilon=last[0].get("epsilon"),
        failed=len(alone) - len(trained),
    )


def _mean(values: list[float | None]) -> float | None:
    """None as soon as one value is not there: a mean over some clients would flatter."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def as_json(table: Sequence[Row]) -> list[dict[str, Any]]:
    """Rows as JSON-able objects."""
    return [asdict(row) for row in table]


def standard_error(accuracy: float, questions: int) -> float:
    """How far a fraction of so many questions is known, as a fraction: √(p(1 − p)/n).

    p is half a question from 0 and from 1 at least: all right, or none, is not certain either.
    """
    p = min(max(accuracy, 0.5 / questions), 1 - 0.5 / questions)
    return math.sqrt(p * (1 - p) / questions)


def _precision(table: Sequence[Row], questions: int) -> str:
    """What the accuracies are worth; '' where none was measured."""
    known = [standard_error(row.accuracy, questions) for row in table if questions and row.accuracy is not None]
    if not known:
        return ""
    of = f"of {questions} question{'s' * (questions > 1)}"
    return f"{of}: one is {100 / questions:.1f} points, standard error up to {100 * max(known):.1f}"


def _private(table: Sequence[Row]) -> str:
    """Where the times are that a private arm does not publish; '' where there is none."""
    if all(row.epsilon is None for row in table):
        return ""
    return "of private arms (with ε) training and aggregation are in private/rounds/"


def _failed(table: Sequence[Row]) -> str:
    """Who is in no mean of the clients that train alone; '' where all are."""
    count = sum(row.failed for row in table)
    return f"local-only leaves out {count} client{'s' * (count > 1)} that could not train" if count else ""


def as_rich(table: Sequence[Row], title: str, questions: int) -> Table:
    """Rows for the terminal; questions: of how many the accuracy is."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    precision = _precision(table, questions)
    notes = [f"ranking accuracy {precision}" if precision else "", _private(table), _failed(table)]
    shown = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        caption="\n".join(filter(None, notes)) or None,
        caption_justify="left",
        caption_style="",
        box=SIMPLE_HEAD,
        pad_edge=False,
        padding=0,
    )
    # on a terminal of 80 columns the headings take two lines
    split = {"perplexity": "perplex-\nity", "training": "train-\ning", "aggregation": "aggre-\ngation"}
    split |= {"evaluation": "evalu-\nation", "held-out loss": "loss"}
    for heading, field, _ in columns(table):
        short = split.get(heading, heading.replace(" ", "\n"))
        shown.add_column(
            short, justify="left" if field == "name" else "right", no_wrap=field != "name", overflow="fold"
        )
    for row in table:
        shown.add_row(*(write(getattr(row, field)) for _, field, write in columns(table)))
    return shown


def as_html(table: Sequence[Row], facts: Mapping[str, Any]) -> str:
    """Rows for the page, with a caption and scoped headings; facts: of run.json, how many questions and texts."""
    head = "".join(f'<th scope="col">{heading or "run"}</th>' for heading, _, _ in columns(table))
    body = []
    for row in table:
        cells = [html.escape(write(getattr(row, field))) for _, field, write in columns(table)]
        body.append(
            f'<tr><th scope="row">{cells[0]}</th>' + "".join(f"<td>{cell}</td>" for cell in cells[1:]) + "</tr>"
        )
    caption = html.escape(_caption(table, facts["held_out"], facts["questions"]))
    return f"<table><caption>{caption}</caption><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"


def _caption(table: Sequence[Row], held_out: int, questions: int) -> str:
    """What the figures are of, and what they are worth."""
    said = [
        f"Scores on {held_out} held-out text{'s' * (held_out > 1)} after the last round; bytes and seconds are sums "
        "over all rounds and clients: bytes of tensors, without headers, and seconds without the time that updates "
        "took to reach the disk.",
        "Local-only is the mean over clients that each train alone with the same number of steps; its perplexity is "
        "exp of the mean loss.",
    ]
    if failed := _failed(table):
        said.append(f"{failed[0].upper()}{failed[1:]}.")
    if precision := _precision(table, questions):
        said.append(
            f"Ranking accuracy is {precision}, which is √(p(1 − p)/{questions}): differences of a few questions say "
            "little. Each has four answers: guessing gives 25 %."
        )
    if private := _private(table):
        said.append(
            f"{private[0].upper()}{private[1:]} alone, until they expire: how long a round took tells how many trained."
        )
    return " ".join(said)


def size(count: float) -> str:
    """Bytes in decimal units."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def seconds(value: float) -> str:
    """A duration: milliseconds below one second."""
    return f"{1000 * value:.0f} ms" if value < 1 else f"{value:.1f} s"
