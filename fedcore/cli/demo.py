"""`fedcore demo`: `fedcore run` on the configuration that is shipped beside this file."""

from __future__ import annotations

import sys
from importlib import resources
from pathlib import Path
from typing import Annotated

import typer

from fedcore.cli.run import Json, Output, carry_out, default_output
from fedcore.cli.terminal import showing


def demo(
    output: Output = None,
    seed: Annotated[
        int,
        typer.Option(
            help="Another seed gives another federation; the same one repeats it, but for the noise of secure-dp.",
            min=0,
        ),
    ] = 0,
    methods: Annotated[
        bool,
        typer.Option("--methods", help="Also run every LoRA method on the same clients: some ten minutes more."),
    ] = False,
    json: Json = False,
) -> None:
    """Run a whole federation here, without a network: eight clients, honest, poisoned, and defended by Krum.

    It prints the configuration that it runs.
    """
    from fedcore.federation.config_file import parse_config
    from fedcore.lora import METHODS

    text = resources.files("fedcore.cli").joinpath("demo.toml").read_text(encoding="utf-8")
    if methods:
        text += "\n# The honest federation once more under each LoRA method.\n"
        text += "".join(f'[[arms]]\nname = "{name}"\nmethod = "{name}"\n\n' for name in METHODS)
    text = text.replace("seed = 0\n", f"seed = {seed}\n", 1)
    config = parse_config(text, "demo.toml", Path())
    assert config.run.seed == seed, "demo.toml has no line of its seed"
    if not json:
        with showing():
            _print(text)
    carry_out(config, output or default_output(config, "demo"), False, json)


def _print(text: str) -> None:
    """The configuration, in colour on a terminal."""
    if not sys.stdout.isatty():
        print(text)
        return
    from rich.console import Console
    from rich.syntax import Syntax

    Console().print(Syntax(text, "toml", background_color="default", word_wrap=True))
