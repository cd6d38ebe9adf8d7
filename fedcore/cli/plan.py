"""`fedcore plan`: which LoRA methods fit a federation, why the others do not, and what a privacy budget costs."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Annotated, Any

import typer

from fedcore.cli.plan_privacy import budgets, show_trade_offs
from fedcore.cli.run import Json
from fedcore.cli.terminal import print_json, showing
from fedcore.errors import RuleError


def plan(
    method: Annotated[
        str | None, typer.Option(help="One method; exit code 1 if it does not fit.", show_default=False)
    ] = None,
    ranks: Annotated[str | None, typer.Option(help="The clients' ranks, such as 4,8,16.", show_default=False)] = None,
    masks: Annotated[bool, typer.Option("--masks", help="The server sees masked sums alone.")] = False,
    rule: Annotated[str, typer.Option(help="The aggregation rule.")] = "mean",
    scales: Annotated[str | None, typer.Option(help="The clients' scales, such as 2,1.", show_default=False)] = None,
    modules_differ: Annotated[bool, typer.Option("--modules-differ", help="Clients adapt different modules.")] = False,
    optimizer: Annotated[str, typer.Option(help="The server optimizer.")] = "none",
    epsilon: Annotated[
        str | None, typer.Option(help="Privacy budgets to compare, such as 2,8,50.", show_default=False)
    ] = None,
    delta: Annotated[
        float, typer.Option(help="δ of (ε, δ): what probabilities may differ by beyond the factor e^ε.")
    ] = 1e-5,
    rounds: Annotated[int, typer.Option(help="Rounds that the budget is for.")] = 100,
    clients: Annotated[int, typer.Option(help="Clients expected in a round.")] = 100,
    population: Annotated[int, typer.Option(help="Clients in all.")] = 10_000,
    dimension: Annotated[
        int, typer.Option(help="Numbers released a round, such as r * d_out over modules.")
    ] = 1_000_000,
    sampling: Annotated[str, typer.Option(help="How clients come into a round: poisson, fixed or none.")] = "poisson",
    neighbours: Annotated[str, typer.Option(help="add_remove or replace_one client.")] = "add_remove",
    json: Json = False,
) -> None:
    """Tell which LoRA methods fit: what trains, what travels, what is exact, and what is refused.

    With --epsilon also what differential privacy costs: the noise on a clipped mean, and the clients that it takes.
    """
    from fedcore.federation.rule_names import named_rule
    from fedcore.federation.server_optimizer import OPTIMIZERS
    from fedcore.lora import METHODS
    from fedcore.lora.combination import make_method, refusals
    from fedcore.privacy import combination
    from fedcore.privacy.trade_off import trade_off

    named_rule(rule)
    if optimizer not in ("none", *OPTIMIZERS):
        raise RuleError(f"--optimizer: got {optimizer!r}, expected one of none, {', '.join(OPTIMIZERS)}")
    chosen = {method: type(make_method(method, {}))} if method else METHODS
    mixed = modules_differ or len(set(_ranks(ranks))) > 1 or len(set(_scales(scales))) > 1
    found: dict[str, dict[str, Any]] = {}
    for name, kind in chosen.items():
        made = kind()
        trains = [" and ".join(factors) for factors in made.cycle]
        found[name] = asdict(kind.traits) | {
            "trains": ", then ".join(trains),
            "refused": refusals(made, mixed=mixed, masks=masks, rule=rule, optimizer=optimizer),
        }
        if epsilon:
            found[name]["refused"] += combination.refusals(method=made)
    plans = {
        budget: trade_off(
            epsilon=budget,
            delta=delta,
            rounds=rounds,
            clients=clients,
            population=population,
            dimension=dimension,
            sampling=sampling,
            neighbours=neighbours,
        )
        for budget in budgets(epsilon)
    }
    with showing():
        if json:
            costs = [{"epsilon": budget, **asdict(plan)} for budget, plan in plans.items()]
            print_json({"methods": found} | ({"privacy": costs} if costs else {}))
        elif method:
            _show_one(found[method])
        else:
            _show(found)
        if plans and not json:
            show_trade_offs(plans, delta)
    if method and found[method]["refused"]:
        raise RuleError("; ".join(found[method]["refused"]))


def _ranks(text: str | None) -> list[int]:
    try:
        ranks = [int(part) for part in text.split(",")] if text else []
    except ValueError:
        ranks = [0]
    if any(rank < 1 for rank in ranks):
        raise RuleError(f"--ranks: got {text!r}, expected whole numbers of at least 1, such as 4,8,16")
    return ranks


def _scales(text: str | None) -> list[float]:
    try:
        scales = [float(part) for part in text.split(",")] if text else []
    except ValueError:
        scales = [math.nan]
    if not all(math.isfinite(scale) and scale for scale in scales):
        raise RuleError(f"--scales: got {text!r}, expected numbers other than 0, such as 2,1")
    return scales


#: trait -> what it means
_NOTES = {
    "mixed": "takes clients of mixed ranks, scales and modules",
    "linear": "needs the sum of messages alone, so it works under masks",
    "side": "leaves a side adapter beside the adapter",
    "reference": "needs the adapter that clients started from",
}


def _show(found: dict[str, dict[str, Any]]) -> None:
    """Every method in a line or two, and why some are refused."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("method", no_wrap=True, min_width=max(map(len, found)))
    for heading in ("trains", "up", "down", "exact", ""):
        table.add_column(heading, overflow="fold")
    for name, traits in found.items():
        notes = [note for note in _NOTES if traits[note]] + (["refused"] if traits["refused"] else [])
        table.add_row(name, traits["trains"], traits["up"], traits["down"], traits["exact"], ", ".join(notes))
    console = Console()
    console.print(table)
    for note, meaning in _NOTES.items():
        console.print(f"{note}: {meaning}", highlight=False)
    for line in _grouped([line for traits in found.values() for line in traits["refused"]]):
        console.print(line, highlight=False, soft_wrap=True)


def _grouped(refused: list[str]) -> list[str]:
    """Refusals of one reason, "name: reason", as one line that names all methods."""
    names: dict[str, list[str]] = {}
    for line in refused:
        name, _, reason = line.partition(": ")
        names.setdefault(reason, []).append(name)
    return [f"{', '.join(each)}: {reason}" for reason, each in names.items()]


def _show_one(traits: dict[str, Any]) -> None:
    """All that is known of one method."""
    for key in ("trains", "up", "down", "exact", "sense", "start", "paper"):
        print(f"{key:8} {traits[key]}")
    for note, meaning in _NOTES.items():
        if traits[note]:
            print(f"{'':8} {meaning}")
