"""What commands and their groups share: help is a result like any other, and an interruption ends with its line."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand, TyperGroup

from fedcore.cli.signals import Interrupted
from fedcore.cli.terminal import showing


class Command(TyperCommand):
    """A command whose help is printed within `showing`."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        with showing():
            super().format_help(ctx, formatter)


class Group(TyperGroup):
    """A group of such commands. Raises Interrupted, where typer would end without a word."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise Interrupted(error) from None

    def format_help(self, ctx: Any, formatter: Any) -> None:
        with showing():
            super().format_help(ctx, formatter)
