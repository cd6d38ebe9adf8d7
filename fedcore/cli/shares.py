"""What `fedcore aggregate` shows of a result: each adapter's share, why some have none, and what some lack."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedcore.cli.terminal import inert

if TYPE_CHECKING:
    from fedcore.engine import Aggregate


def show_shares(clients: Iterable[str], result: Aggregate, output: Path, seconds: float) -> None:
    """Who counted, and where the result is."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Column, Table

    from fedcore.report.table import seconds as duration

    # an order rule gives no client a coefficient
    weighed = bool(result.coefficients)
    # a name that is cut tells nothing
    adapter, remarks = Column("adapter", overflow="fold"), Column("", overflow="fold")
    table = Table(adapter, *(("share", "coefficient") if weighed else ()), remarks, box=SIMPLE_HEAD, pad_edge=False)
    excluded = {client: _fact(client, reason) for client, reason in result.excluded.items()}
    left_out = result.report["not_counted"] | excluded
    counted = set(result.report["counted"])
    for client in clients:
        value = result.coefficients.get(client, 0.0)
        numbers = (f"{value / result.report['divisor']:.4f}", f"{value:.6g}") if weighed else ()
        remark = left_out.get(client, "" if weighed or client not in counted else "counts")
        table.add_row(inert(client), *numbers, remark)
    # paths are text, whatever they hold
    console = Console(markup=False, emoji=False)
    console.print(table)
    if modules := result.report.get("modules"):
        worst = max(modules, key=lambda module: modules[module]["residual"])
        if lost := modules[worst]["residual"]:
            said = f"truncation: at most {lost:.2g} of a module's norm is lost ({worst})"
            console.print(said, highlight=False, soft_wrap=True)
    said = f"{inert(str(output))}  {duration(seconds)}  SHA-256 {result.update.digest()}"
    console.print(said, highlight=False, soft_wrap=True)


def _fact(client: str, reason: str) -> str:
    """Why an adapter was excluded, without its name, which is beside, and the advice to exclude it."""
    from fedcore.rules.naming import RETRAIN

    return reason.removeprefix(f"client {client!r}: ").removesuffix(f"; {RETRAIN}")


def tell_lacking(report: dict[str, Any], reference: Path | None) -> None:
    """Tell on stderr of the module that most but not all adapters have: it may have another name in the others."""
    missing: dict[str, list[str]] = {}
    for client, modules in report.get("lacking", {}).items():
        for module in modules:
            missing.setdefault(module, []).append(client)
    if not missing:
        return
    module, clients = min(missing.items(), key=lambda item: (len(item[1]), item[0]))
    some = f"client {clients[0]!r} lacks module {module!r}; it counts"
    if more := len(clients) - 1:
        some = f"client {clients[0]!r} and {more} more lack module {module!r}; they count"
    stands = "with 0 (--reference gives another start)" if reference is None else f"with what {reference} has"
    others = f"; not in every adapter: {len(missing) - 1} more, which --json lists" if len(missing) > 1 else ""
    print(f"fedcore: note: {some} there {stands}{others}", file=sys.stderr)
