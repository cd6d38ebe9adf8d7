"""The plots of a run: each takes lines of metrics.jsonl or ledger.jsonl and returns (SVG text, alternative text)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fedcore.report.drawing import Plot, figure_of, legend, legible, styled, svg
from fedcore.report.table import standard_error

Lines = Sequence[dict[str, Any]]

# Okabe and Ito's colours, told apart with the common forms of colour blindness too
ARMS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
PHASES = {"training": "#56B4E9", "journal": "#E69F00", "aggregation": "#D55E00", "evaluation": "#BBBBBB"}
GREY, POISONED = "#666666", "#B00020"


def colour(arms: Sequence[str], arm: str) -> str:
    """The colour of an arm on every plot."""
    return ARMS[list(arms).index(arm) % len(ARMS)]


@styled
def curves(metrics: Lines, field: str, title: str, label: str, questions: int = 0) -> Plot:
    """A score by round, one line an arm; the base and local-only training as dashed levels.

    questions: of how many the score is a fraction; then whiskers beside the last round show its standard error
    """
    arms = arm_names(metrics)
    figure, axes = figure_of(5.4, 3.5)
    markers = "osD^vP*"
    said, handles = [], []
    last: dict[str, tuple[int, float]] = {}
    for index, arm in enumerate(arms):
        points = sorted(
            (line["round"], line[field]) for line in metrics if line["arm"] == arm and line[field] is not None
        )
        if not points:
            continue
        x, y = zip(*points, strict=True)
        # identical curves stay visible: later arms are thinner and lie on top
        look = {"color": colour(arms, arm), "marker": markers[index % 7], "lw": 3 - 0.6 * min(index, 3), "ms": 5}
        handles += axes.plot(x, y, **look, label=arm)
        last[arm] = x[-1], y[-1]
        said.append(f"{arm} {y[-1]:.3f}")
    for name, dash in (("base", (0, (1, 2))), ("local-only", (0, (5, 3)))):
        values = [line[field] for line in metrics if line["arm"] == name and line[field] is not None]
        if values:
            level = float(np.mean(values))
            handles.append(axes.axhline(level, color=GREY, lw=1.3, ls=dash, label=name))
            said.append(f"{name} {level:.3f}")
    end = max((number for number, _ in last.values()), default=1)
    axes.set(title=title, xlabel="round", ylabel=label, xticks=range(1, end + 1))
    axes.margins(x=0.06)
    alternative = f"{title}. After the last round: " + ", ".join(said) + "."
    if questions and last:
        errors = {arm: standard_error(value, questions) for arm, (_, value) in last.items()}
        whiskers: dict[str, Any] = {"fmt": ".", "capsize": 3, "lw": 0, "elinewidth": 1.3}
        for index, (arm, error) in enumerate(errors.items(), 1):
            # side by side, where the curves have ended
            place = end + 0.05 * max(end - 1, 1) * index
            axes.errorbar(place, last[arm][1], error, color=colour(arms, arm), **whiskers)
        handles.append(axes.errorbar([], [], [], color=GREY, label="± standard error", **whiskers))
        alternative += f" Standard error at most {max(errors.values()):.3f}."
    legend(axes, handles, [handle.get_label() for handle in handles])
    return svg(figure), alternative


@styled
def coefficients(ledger: Lines) -> Plot:
    """The share that each client counted for: clients down, rounds across, a panel an arm; a cross is a share of 0."""
    arms, clients = arm_names(ledger), client_names(ledger)
    figure, grid = figure_of(1.6 + 2.9 * len(arms), 1.1 + 0.27 * len(clients), 1, len(arms))
    shares = [{c: v / line["divisor"] for c, v in line["coefficients"].items()} for line in ledger]
    top = max((abs(v) for share in shares for v in share.values()), default=1.0) or 1.0
    said = []
    for axes, arm in zip(np.atleast_1d(grid), arms, strict=True):
        lines = [line for line in ledger if line["arm"] == arm]
        own = [share for share, line in zip(shares, ledger, strict=True) if line["arm"] == arm]
        values = np.array([[share.get(c, 0.0) for share in own] for c in clients], float)
        axes.imshow(values, cmap="Blues", vmin=0, vmax=1.25 * top, aspect="auto")
        for (row, column), value in np.ndenumerate(values):
            text, ink = (f"{value:.2f}", "white" if value > 0.7 * top else "#222222") if value else ("×", "#AA4444")
            axes.text(column, row, text, ha="center", va="center", fontsize=8, color=ink)
        never = [c for c, row in zip(clients, values, strict=True) if not row.any()]
        said.append(f"{arm}: " + (f"{', '.join(never)} never counted" if never else "every client counted"))
        axes.set(title=arm, xlabel="round", xticks=range(len(lines)), xticklabels=[line["round"] for line in lines])
        _client_ticks(axes, clients, lines[0]["poisoned"], arm == arms[0])
        axes.grid(False)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
    return svg(figure), "Share of each client by round. " + "; ".join(said) + "."


@styled
def norms(ledger: Lines) -> Plot:
    """Euclidean norm of each client's change, a dot a round, one panel an arm; filled if it counted, hollow if not.

    Where no line of an arm has coefficients, as its method weighs clients by itself, every one counted.
    """
    arms, clients = arm_names(ledger), client_names(ledger)
    figure, grid = figure_of(1.6 + 2.9 * len(arms), 1.1 + 0.27 * len(clients), 1, len(arms), sharex=True)
    largest = max((v for line in ledger for v in line["change_norms"].values()), default=0.0)
    for axes, arm in zip(np.atleast_1d(grid), arms, strict=True):
        lines = [line for line in ledger if line["arm"] == arm]
        bad = lines[0]["poisoned"]
        for line in lines:
            for row, client in enumerate(clients):
                if (norm := line["change_norms"].get(client)) is not None:
                    ink = POISONED if client in bad else colour(arms, arm)
                    counted = "coefficients" not in line or line["coefficients"].get(client, 0.0) != 0
                    axes.plot(norm, row, "o", ms=6, mec=ink, mfc=ink if counted else "white", alpha=0.85)
        axes.set(title=arm, xlabel="norm of the change", ylim=(len(clients) - 0.5, -0.5), xlim=(0, largest * 1.08 or 1))
        _client_ticks(axes, clients, bad, arm == arms[0])
    return svg(figure), (
        f"Norm of each client's change by arm, one dot a round; the largest is {largest:.2f}. "
        "Filled dots counted in the aggregate, hollow ones did not; poisoned clients are red."
    )


@styled
def time_by_phase(metrics: Lines) -> Plot:
    """Seconds by phase, one bar an arm."""
    names = list(dict.fromkeys(line["arm"] for line in metrics))
    figure, axes = figure_of(7.2, 0.9 + 0.36 * len(names))
    left = np.zeros(len(names))
    bars, said = [], []
    for phase, ink in PHASES.items():
        spent = np.array([sum(x["seconds"].get(phase, 0.0) for x in metrics if x["arm"] == name) for name in names])
        bars.append(axes.barh(names, spent, left=left, color=ink, height=0.65))
        left += spent
        said.append(f"{phase} {spent.sum():.1f} s")
    axes.invert_yaxis()
    axes.set(title="Time by phase", xlabel="seconds")
    axes.grid(axis="y", visible=False)
    legend(axes, bars, list(PHASES))
    return svg(figure), "Seconds by phase for each arm. In all: " + ", ".join(said) + "."


@styled
def traffic(metrics: Lines) -> Plot:
    """Megabytes that clients send and receive in one round, by arm."""
    arms = arm_names(metrics)
    first = [next(line for line in metrics if line["arm"] == arm) for arm in arms]
    figure, axes = figure_of(7.2, 0.9 + 0.44 * len(arms))
    places, bars = np.arange(len(arms)), []
    for offset, field, ink in ((-0.2, "bytes_up", "#0072B2"), (0.2, "bytes_down", "#56B4E9")):
        values = [line[field] / 1e6 for line in first]
        bars.append(axes.barh(places + offset, values, 0.36, color=ink))
        axes.bar_label(bars[-1], fmt="%.2f", fontsize=8, padding=3)
    axes.set(title="Bytes in one round", xlabel="MB, all clients together", yticks=places, yticklabels=arms)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.grid(axis="y", visible=False)
    legend(axes, bars, ("up", "down"))
    up, down = first[0]["bytes_up"] / 1e6, first[0]["bytes_down"] / 1e6
    return svg(figure), f"Bytes in one round: {up:.2f} MB up and {down:.2f} MB down in {arms[0]}."


@styled
def data_by_client(clients: Lines) -> Plot:
    """How many texts of each label each client holds."""
    labels = sorted({label for client in clients for label in client["labels"]})
    # each with the labels that it stands for
    shown = [(legible(label) or "texts", [label]) for label in labels[:6]]
    shown += [("other labels", labels[6:])] if labels[6:] else []
    figure, axes = figure_of(7.2, max(0.9 + 0.29 * len(clients), 0.5 + 0.2 * len(shown)))
    names = [client["id"] for client in clients]
    left, bars = np.zeros(len(clients)), []
    for (_, members), ink in zip(shown, ARMS, strict=False):
        counts = np.array([sum(client["labels"].get(m, 0) for m in members) for client in clients])
        bars.append(axes.barh(names, counts, left=left, height=0.7, color=ink, alpha=0.85))
        left += counts
    axes.invert_yaxis()
    axes.set(title="What each client holds", xlabel="texts")
    axes.grid(axis="y", visible=False)
    legend(axes, bars, [name for name, _ in shown])
    said = ", ".join(f"{client['id']} {client['examples']}" for client in clients)
    return svg(figure), f"Texts held by each client: {said}."


def arm_names(lines: Lines) -> list[str]:
    """The federated arms, in the order in which they ran."""
    return list(dict.fromkeys(line["arm"] for line in lines if line["arm"] not in ("base", "local-only")))


def client_names(ledger: Lines) -> list[str]:
    """Every client that sent something, sorted."""
    return sorted({client for line in ledger for client in line["inputs"]})


def _client_ticks(axes: Any, clients: Sequence[str], poisoned: Sequence[str], named: bool) -> None:
    """Client names beside the first panel; beside the others only which of them poisoned."""
    names = [" ".join([c if named else "", "(poisoned)" if c in poisoned else ""]).strip() for c in clients]
    axes.set_yticks(range(len(clients)), names, fontsize=9)
    for label, client in zip(axes.get_yticklabels(), clients, strict=True):
        if client in poisoned:
            label.set_color(POISONED)
