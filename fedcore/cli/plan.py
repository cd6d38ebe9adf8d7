"""`fedcore plan`: which LoRA methods fit a federation, and why the others do not."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from fedcore.cli.run import Json
from fedcore.cli.terminal import print_json
from fedcore.errors import RuleError


def plan(
    method: Annotated[
        str | None, typer.Option(help="One method; exit code 1 if it does not fit.", show_default=False)
    ] = None,
    ranks: Annotated[str | None, typer.Option(help="The clients' ranks, such as 4,8,16.", show_default=False)] = None,
    masks: Annotated[bool, typer.Option("--masks", help="The server sees masked sums alone.")] = False,
    rule: Annotated[str, typer.Option(help="The aggregation rule.")] = "mean",
    json: Json = False,
) -> None:
    """Tell which LoRA methods fit: what trains, what travels, what is exact, and what is refused."""
    from fedcore.lora import METHODS
    from fedcore.lora.combination import make_method, refusals

    chosen = {method: type(make_method(method, {}))} if method else METHODS
    mixed = len(set(_ranks(ranks))) > 1
    found: dict[str, dict[str, Any]] = {}
    for name, kind in chosen.items():
        made = kind()
        trains = [" and ".join(factors) for factors in made.cycle]
        found[name] = asdict(kind.traits) | {
            "trains": ", then ".join(trains),
            "refused": refusals(made, mixed=mixed, masks=masks, rule=rule),
        }
    if json:
        print_json({"methods": found})
    else:
        _show(found)
    if method and found[method]["refused"]:
        raise RuleError("\n".join(found[method]["refused"]))


def _ranks(text: str | None) -> list[int]:
    try:
        ranks = [int(part) for part in text.split(",")] if text else []
    except ValueError:
        ranks = [0]
    if any(rank < 1 for rank in ranks):
        raise RuleError(f"--ranks: got {text!r}, expected whole numbers of at least 1, such as 4,8,16")
    return ranks


def _show(found: dict[str, dict[str, Any]]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table("method", "trains", "up", "down", "exact", "mixed", "masks", "", box=SIMPLE_HEAD, pad_edge=False)
    for name, traits in found.items():
        why = "refused" if traits["refused"] else ""
        marks = ["yes" if traits[key] else "no" for key in ("mixed", "linear")]
        table.add_row(name, traits["trains"], traits["up"], traits["down"], traits["exact"], *marks, why)
    console = Console()
    console.print(table)
    for traits in found.values():
        for line in traits["refused"]:
            console.print(line, highlight=False, soft_wrap=True)
