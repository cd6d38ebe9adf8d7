"""`fedcore run CONFIG.toml`: a federation from a file."""

from __future__ import annotations

import errno
import shlex
import sys
import time
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedcore.cli.signals import Interrupted
from fedcore.cli.terminal import Failed, LiveProgress, cause_of, only_results_on_stdout, print_json, showing
from fedcore.errors import ConfigError, ExistsError, FedcoreError, LayoutError, MissingError

if TYPE_CHECKING:
    from fedcore.federation.config import Config
    from fedcore.federation.folder import RunFolder

#: what a disk says that is full, or that has no more for this user
_FULL = (errno.ENOSPC, errno.EDQUOT)
Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="Run folder; must not exist yet.", show_default="runs/NAME-TIME"),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")]


def _show_keys(asked: bool) -> None:
    """The reference of the configuration file, made from what checks it."""
    if not asked:
        return
    from fedcore.federation.keys import keys

    with showing():
        for key in keys():
            print(f"{key.name} ({key.type}{', default ' + key.default if key.default else ''})\n    {key.description}")
    raise typer.Exit


def run(
    config: Annotated[Path, typer.Argument(help="The TOML file of the federation.", show_default=False)],
    output: Output = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the interrupted run in the output folder.")
    ] = False,
    json: Json = False,
    keys: Annotated[
        bool, typer.Option("--keys", callback=_show_keys, is_eager=True, help="List every key of CONFIG, and stop.")
    ] = False,
) -> None:
    """Run a federation on your own model and data, as CONFIG says; leave a run folder."""
    from fedcore.federation.config_file import load_config

    settings = load_config(config)
    # a configuration inside a run folder belongs to that run
    own = config.parent if resume and (config.parent / "run.json").exists() else None
    carry_out(settings, output or own or default_output(settings, config.stem), resume, json)


def default_output(config: Config, stem: str) -> Path:
    """run.output of the configuration, else runs/<name>-<time>."""
    return Path(config.run.output) if config.run.output else Path("runs") / f"{stem}-{time.strftime('%Y%m%d-%H%M%S')}"


def carry_out(config: Config, output: Path, resume: bool, json: bool) -> None:
    """Simulate, write the report, show the table. Raises Interrupted where it was asked to end, saying what was kept.

    The table of a run whose report could not be made is shown all the same, before the one line that says so.
    """
    from fedcore.federation.simulation import simulate
    from fedcore.report.html import population
    from fedcore.report.table import as_json, as_rich, rows
    from fedcore.updates.atomic import REMEDY

    start = time.perf_counter()
    try:
        with only_results_on_stdout(), LiveProgress() as progress:
            folder = simulate(config, output, resume=resume, progress=progress)
        report, fault = reported(folder)
    except KeyboardInterrupt as error:
        raise Interrupted(error, _kept(output)) from None
    except (ConfigError, ExistsError, LayoutError, MissingError):
        # refused before any work: nothing to go on with that was not there before
        raise
    except FedcoreError as error:
        if not (output / "run.json").is_file():
            raise
        if isinstance(error.__cause__, OSError) and (said := str(error)).endswith(REMEDY):
            # a run goes on in its own place alone
            first = "free space" if error.__cause__.errno in _FULL else "put that right"
            raise error.with_message(said.removesuffix(REMEDY) + _kept(output, f"{first}, then ")) from error
        raise Failed(error, f"stopped{_kept(output)}") from error
    except (OSError, MemoryError) as error:
        if not (output / "run.json").is_file():
            raise
        first = "free some, then " if isinstance(error, MemoryError) else ""
        raise Failed(FedcoreError(cause_of(error)), f"stopped{_kept(output, first)}") from error
    seconds = time.perf_counter() - start
    table, facts = rows(folder.metrics.entries), folder.facts
    # the time of a private run tells how many trained
    private, hidden = privacy_of(folder), folder.private.folder.is_dir()
    with showing(f"{output} is complete, and shown by: {shlex.join(['fedcore', 'report', str(output)])}"):
        if json:
            took = {} if hidden else {"seconds": seconds}
            result: dict[str, Any] = {"run": str(output), **took, "table": as_json(table)} | private
            print_json(result | {"adapter": str(output / "adapter"), "report": report and str(report)})
        else:
            from rich.console import Console

            console = Console(markup=False, emoji=False)
            title = f"{population(facts)} clients, {config.run.rounds} rounds"
            title += "" if hidden else f", {seconds:.0f} s in all"
            console.print(as_rich(table, title, facts["questions"]))
            for line in (line for part in private.values() for line in part):
                console.print(line, highlight=False, soft_wrap=True)
            made = f"report   {report}\n" if report else ""
            console.print(
                f"adapter  {output / 'adapter'}\n{made}ledger   {output / 'ledger.jsonl'}",
                highlight=False,
                soft_wrap=True,
            )
    if fault is not None:
        raise _unreported(fault, output) from fault


def reported(folder: RunFolder) -> tuple[Path | None, Exception | None]:
    """Write a run's report: its path, or what kept it from being made, to be raised once the table is shown."""
    from fedcore.report.html import write_report

    try:
        with only_results_on_stdout():
            return write_report(folder), None
    except Exception as fault:
        return None, fault


def _unreported(fault: Exception, output: Path) -> FedcoreError:
    """The one line for a finished run without its report; of a fault of ours, the command in it shows all."""
    from fedcore.updates.atomic import REMEDY

    command = shlex.join(["fedcore", "report", str(output)])
    if isinstance(fault, (FedcoreError, OSError, MemoryError)):
        said = str(fault).removesuffix(REMEDY) if isinstance(fault, FedcoreError) else cause_of(fault)
        return FedcoreError(
            f"{said}; the run is complete but for its report: put that right, then make it with: {command}"
        )
    said = shorten(f"{type(fault).__name__}: {fault}", 200, placeholder=" …")
    return FedcoreError(
        f"{output / 'report.html'}: cannot be made ({said}); the run is complete but for it: report this as a bug, "
        f"with what is shown by: {command}"
    )


def privacy_of(folder: RunFolder) -> dict[str, list[str]]:
    """{"privacy": what was spent and what it cost, "secure": what hid messages}, in sentences. Says what expired."""
    from fedcore.federation.private_run import read_plan
    from fedcore.report import secure
    from fedcore.report.privacy import lines
    from fedcore.report.table import rows

    if folder.expired:
        # how many there were tells who took part
        print(f"fedcore: {folder.path}: files of its private journal expired; deleted", file=sys.stderr)
    plan, masks = read_plan(folder.path), secure.lines(folder.ledger)
    said = {} if plan is None else {"privacy": lines(plan, rows(folder.metrics.entries), folder.ledger)}
    return said | ({"secure": masks} if masks else {})


def _kept(output: Path, first: str = "") -> str:
    """The rest of the one line after an interruption or an error; `first` is what to do before the run can go on."""
    from fedcore.federation.folder import RunFolder

    if not (output / "config.toml").is_file():
        return " before the first round; nothing was kept but the cached base model, if it was done"
    command = shlex.join(["fedcore", "run", str(output / "config.toml"), "--output", str(output), "--resume"])
    try:
        kept = f"; {output} keeps {RunFolder.read(output).kept()}"
    except KeyboardInterrupt:  # again, while the journal is read: the command is known without it
        kept = ""
    return f"{kept}; {first}go on with: {command}"
