"""Help as a result like any other: where stdout takes no more, the one line is about stdout."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand, TyperGroup

from fedcore.cli.terminal import showing


class Command(TyperCommand):
    """A command whose help is printed within `showing`."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        with showing():
            super().format_help(ctx, formatter)


class Group(TyperGroup):
    """A group of such commands."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        with showing():
            super().format_help(ctx, formatter)
