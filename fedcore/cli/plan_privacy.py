"""The part of `fedcore plan` that says what privacy budgets cost."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedcore.errors import PrivacyError

if TYPE_CHECKING:
    from fedcore.privacy.trade_off import TradeOff


def budgets(text: str | None) -> list[float]:
    """The ε of an option such as '2,8,50'; none where it is not given. Raises PrivacyError."""
    try:
        return [float(part) for part in text.split(",")] if text is not None else []
    except ValueError:
        raise PrivacyError(f"--epsilon: got {text!r}, expected numbers above 0, such as 2,8,50") from None


def show_trade_offs(plans: dict[float, TradeOff], delta: float) -> None:
    """A row a budget: noise against the clip, expected relative error, clients needed; local DP beside it."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    columns = ("ε", "noise", "a number", "error", "clients", "local error")
    table = Table(*columns, box=SIMPLE_HEAD, pad_edge=False)
    for epsilon, plan in plans.items():
        figures = (epsilon, plan.noise_multiplier, plan.noise_per_number, plan.relative_error)
        cells = [f"{figure:.4g}" for figure in figures]
        table.add_row(*cells, str(plan.clients_needed), f"{plan.local_relative_error:.4g}")
    console = Console()
    console.print(table)
    console.print(
        f"δ = {delta:g}. Noise: of the sum, over the clip (noise multiplier); of a number of the mean, over the clip. "
        "Error: the noise's norm over the mean's if every client moves the same way by the whole clip; "
        "clients that disagree make it larger; above 1 a round tells more about the noise than about them. Clients: "
        "needed in a round for an error of 1, at this sampling rate. Local error: if each client adds noise itself.",
        highlight=False,
        soft_wrap=True,
    )
