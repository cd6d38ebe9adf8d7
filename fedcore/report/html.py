"""The report of a run: one HTML file with its plots inside, which opens without a network."""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from fedcore.federation.folder import RunFolder
from fedcore.federation.private_run import read_plan
from fedcore.report import plots, privacy, secure
from fedcore.report.table import as_html, rows
from fedcore.updates.atomic import write_atomically

STYLE = """
:root { color-scheme: light; --ink: #1c1c1c; --soft: #5a5a5a; --line: #dedede; --accent: #0072b2; }
* { box-sizing: border-box; }
body { font: 16px/1.55 system-ui, sans-serif; color: var(--ink); background: #fff;
  margin: 0 auto; max-width: 68rem; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.75rem; line-height: 1.25; margin: 0 0 .25rem; } h2 { font-size: 1.2rem; margin: 2.75rem 0 .5rem; }
p { max-width: 46rem; } .soft, caption, figcaption { color: var(--soft); font-size: .875rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; width: 100%; font-size: .85rem; }
caption { caption-side: bottom; text-align: left; padding-top: .6rem; }
th, td { padding: .4rem .45rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap;
  vertical-align: top; }
th:first-child, td.text, th.text { text-align: left; }
thead th { border-bottom: 2px solid var(--ink); font-weight: 600; }
tbody th { font-weight: 600; } figure { margin: 1rem 0; } figure img { max-width: 100%; height: auto; display: block; }
.pair { display: flex; flex-wrap: wrap; gap: 0 1rem; } .pair figure { flex: 1 1 26rem; }
pre, code { font: .82rem/1.5 ui-monospace, monospace; }
pre { background: #f6f6f6; padding: 1rem; overflow-x: auto; border-radius: 4px; }
summary { cursor: pointer; color: var(--accent); } .bad { color: #b00020; }
@media print { body { max-width: none; } details { display: block; } }
"""

#: what plots take of an entry of the ledger, which is long where clients are many
_SHOWN = ("arm", "round", "inputs", "change_norms", "poisoned")


def write_report(folder: RunFolder) -> Path:
    """Write report.html into a run folder from what lies there, replacing an earlier one. Returns its path.

    Raises DependencyError without matplotlib, StorageError if it cannot be written.
    """
    path = folder.path / "report.html"
    write_atomically(path, page(folder).encode())
    folder.even_times()
    return path


def page(folder: RunFolder) -> str:
    """The whole page. Everything that comes from the run is escaped."""
    metrics, ledger, facts = folder.metrics.entries, folder.ledger, folder.facts
    # that which the run began with: the file may have been edited since
    config, changed = f"<pre>{escape(folder.config_text)}</pre>", folder.changed()
    if changed:
        config = f'<p class="bad">Changed after the run began: {escape(changed)}. The run began with:</p>{config}'
    title = f"Federated run: {folder.path.resolve().name}"
    plan, table = read_plan(folder.path), rows(metrics)
    sections = [
        f"<header><h1>{escape(title)}</h1>{_summary(metrics, ledger, facts)}</header>",
        _section(
            "Results",
            f'<div class="scroll">{as_html(table, facts)}</div>' if metrics else "<p>No round has finished yet.</p>",
        ),
        *([] if plan is None else [_section("Privacy", privacy.section(plan, table, ledger))]),
        *([_section("Secure aggregation", said)] if (said := secure.section(ledger)) else []),
        *_plots(metrics, ledger, facts),
        _section("Ledger", _ledger(ledger)),
        _section("Configuration", config),
        _section("Machine and versions", _machine(facts)),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body>\n<main>\n"
        + "\n".join(sections)
        + "\n</main>\n</body></html>\n"
    )


def _summary(metrics: Sequence[dict[str, Any]], ledger: Iterable[dict[str, Any]], facts: dict[str, Any]) -> str:
    """Two sentences: what ran, and how it came out."""
    counts = [client["examples"] for client in facts["clients"]]
    # what each client holds is private where [privacy] is
    held = (
        f"{len(counts)} clients with {min(counts)} to {max(counts)} texts" if counts else f"{population(facts)} clients"
    )
    base = f"{facts['base_name']} (SHA-256 {facts['base'][:12]}…)"
    ran = f"{held}, {rounds_run(ledger)}, on the base {base}. Begun {facts['started']}."
    shown = {row.name: row for row in rows(metrics)} if metrics else {}
    outcome = ", ".join(f"{row.name} {row.loss:.3f}" for row in shown.values() if row.loss is not None)
    text = f"<p>{escape(ran)}</p>"
    return text + (f'<p class="soft">Held-out loss in nats per token: {escape(outcome)}.</p>' if outcome else "")


def rounds_run(ledger: Iterable[dict[str, Any]]) -> str:
    """In words, how many rounds in how many arms."""
    rounds = Counter(entry["arm"] for entry in ledger if "output" in entry)
    if not rounds:
        return "no round yet"
    each, arms = set(rounds.values()), len(rounds)
    number = each.pop() if len(each) == 1 else rounds.total()
    where = "1 arm" if arms == 1 else f"each of {arms} arms" if not each else f"{arms} arms"
    return f"{number} round{'s' * (number > 1)} in {where}"


def unseen(ledger: Iterable[dict[str, Any]]) -> str:
    """A sentence for each reason why nobody sees how much the clients of an arm counted, with the arms; '' for none."""
    private = dict.fromkeys(entry["arm"] for entry in ledger if "privacy" in entry)
    masked = dict.fromkeys(e["arm"] for e in ledger if "secure" in e and e["arm"] not in private)
    said, weighed = "", {entry["arm"] for entry in ledger if "coefficients" in entry}
    themselves = dict.fromkeys(e["arm"] for e in ledger if "change_norms" in e and e["arm"] not in weighed)
    for arms, why in (
        (themselves, "the method weighs clients by itself, in each module otherwise"),
        (masked, "under masks the server sees sums alone, and nobody the share of a client"),
        (private, "who took part in a private arm, and with what share, is not published"),
    ):
        if arms:
            *most, last = arms
            named = f"{', '.join(most)} and {last} are" if most else f"{last} is"
            said += f" {named} not shown: {why}."
    return said


def _plots(metrics: Sequence[dict[str, Any]], ledger: Iterable[dict[str, Any]], facts: dict[str, Any]) -> list[str]:
    """The sections with plots; those that have nothing to show yet are left out."""
    sections = []
    if plots.arm_names(metrics):
        pair = _figure(plots.curves(metrics, "loss", "Held-out loss", "nats per token"))
        if any(line["accuracy"] is not None for line in metrics):
            pair += _figure(plots.curves(metrics, "accuracy", "Ranking accuracy", "fraction right", facts["questions"]))
        sections.append(_section("Round by round", f'<div class="pair">{pair}</div>'))
    opened = [{name: entry[name] for name in _SHOWN} | _shares(entry) for entry in ledger if "change_norms" in entry]
    if opened:
        said = "The share that each client counted for. A cross is a share of zero: the rule left that client out."
        hidden = unseen(ledger)
        weighed = [entry for entry in opened if "coefficients" in entry]
        change = "Distance of each client's parameters from the round's starting point. Hollow: left out by the rule."
        shares = (
            _figure(plots.coefficients(weighed), said + hidden) if weighed else f"<p>{escape('Shares:' + hidden)}</p>"
        )
        sections.append(_section("Who counted", shares + _figure(plots.norms(opened), change)))
    if facts["clients"]:
        sections.append(_section("Clients", _figure(plots.data_by_client(facts["clients"]))))
    if plots.arm_names(metrics):
        note = (
            "Training is how long the run waited for its clients, one after the other or as many at a time as it has "
            "workers; of local-only it is the sum over clients. Aggregation includes decoding the received bytes."
        )
        if any("epsilon" in line for line in metrics):
            note += " Of private arms evaluation alone is published."
        sections.append(
            _section("Time and traffic", _figure(plots.time_by_phase(metrics), note) + _figure(plots.traffic(metrics)))
        )
    return sections


def _shares(entry: dict[str, Any]) -> dict[str, Any]:
    return {name: entry[name] for name in ("coefficients", "divisor") if name in entry}


def population(facts: dict[str, Any]) -> int:
    """How many clients a run has."""
    return len(facts["clients"]) or facts["population"]


def _section(heading: str, content: str) -> str:
    return f"<section><h2>{escape(heading)}</h2>{content}</section>"


def _figure(plot: plots.Plot, caption: str = "") -> str:
    """A plot as an image inside the page, so that no two plots share identifiers, with its text alternative."""
    svg, alternative = plot
    data = base64.b64encode(svg.encode()).decode()
    said = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f'<figure><img src="data:image/svg+xml;base64,{data}" alt="{escape(alternative)}">{said}</figure>'


def _ledger(ledger: Iterable[dict[str, Any]]) -> str:
    """One line a round, each with its whole entry behind a fold."""
    lines = []
    for entry in (entry for entry in ledger if "output" in entry):
        excluded, not_counted = (
            escape(", ".join(f"{client}: {reason}" for client, reason in entry.get(key, {}).items()) or "–")
            for key in ("excluded", "not_counted")
        )
        parameters = ", ".join(f"{name} = {value}" for name, value in entry["parameters"].items())
        rule = entry["rule"] + (f" ({parameters})" if parameters else "")
        rule += f", {entry['space']}" if "space" in entry else ""
        whole = escape(json.dumps(entry, indent=1))
        lines.append(
            f'<tr><th scope="row">{escape(entry["arm"])}</th><td>{escape(str(entry["round"]))}</td>'
            f'<td class="text">{escape(rule)}</td>'
            f'<td class="text">{excluded}</td><td class="text">{not_counted}</td>'
            f'<td class="text"><code>{escape(entry["output"][:16])}</code></td>'
            f'<td class="text"><details><summary>whole</summary><pre>{whole}</pre></details></td>'
            "</tr>"
        )
    head = '<th scope="col">arm</th><th scope="col">round</th>' + "".join(
        f'<th scope="col" class="text">{name}</th>'
        for name in ("rule", "excluded", "not counted", "output SHA-256", "entry")
    )
    where = "updates/ and arms/"
    if any("privacy" in entry for entry in ledger):
        where += " (updates of private arms are in private/updates/, until they expire)"
    caption = (
        f"<caption>What an auditor needs to make each round's output again from the bytes in {where}. Excluded: sent "
        "NaN or Inf, or factors that cancel; the rule never saw it. Not counted: given a coefficient of zero by the "
        "rule.</caption>"
    )
    table = f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    return f'<div class="scroll">{table}</div>'


def _machine(facts: dict[str, Any]) -> str:
    pairs = [*facts["machine"].items(), *((k, v) for k, v in facts["versions"].items() if v)]
    body = "".join(
        f'<tr><th scope="row">{escape(str(k))}</th><td class="text">{escape(str(v))}</td></tr>' for k, v in pairs
    )
    return f"<table><caption>Where this run was made.</caption><tbody>{body}</tbody></table>"
