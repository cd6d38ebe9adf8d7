"""`fedcore report RUN`: the HTML report of a run folder, written anew."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from fedcore.cli.run import Json, privacy_of, reported
from fedcore.cli.terminal import inert, print_json, showing
from fedcore.errors import PrivacyError


def report(
    run: Annotated[Path, typer.Argument(help="A run folder, finished or not.", show_default=False)],
    destroy_keys: Annotated[
        bool,
        typer.Option(
            "--destroy-noise-keys",
            help="After an audit: delete a private run's noise keys, so that nothing of it is released again.",
        ),
    ] = False,
    json: Json = False,
) -> None:
    """Write report.html of a run again from what its folder holds, and show the table."""
    from fedcore.federation.folder import RunFolder
    from fedcore.federation.intact import check_intact
    from fedcore.federation.private_run import destroy_keys as destroy
    from fedcore.report.table import as_json, as_rich, rows

    folder = RunFolder.read(run)
    for said in check_intact(folder):
        print(f"fedcore: note: {said}", file=sys.stderr)
    if said := folder.changed():
        print(f"fedcore: {said}; the report shows what it began with", file=sys.stderr)
    if destroy_keys:
        config = folder.config
        settings = config.privacy
        if settings is None:
            raise PrivacyError(f"{run}: a run without [privacy] has no noise keys; leave out --destroy-noise-keys")
        with folder.hold():
            finished = folder.finished(config)
            number = destroy(folder, settings, finished=finished)
        what = "and the run's secret" if finished else "but not the run's secret, with which it can go on,"
        print(f"fedcore: {number} noise keys {what} were deleted", file=sys.stderr)
    path, fault = reported(folder)
    table, private = rows(folder.metrics.entries), privacy_of(folder)
    with showing(f"{path} is complete" if path else ""):
        if json:
            print_json({"run": str(run), "table": as_json(table), "report": path and str(path)} | private)
        else:
            from rich.console import Console

            console = Console(markup=False, emoji=False)
            console.print(as_rich(table, inert(str(run)), folder.facts["questions"]))
            for line in (line for part in private.values() for line in part):
                console.print(line, highlight=False, soft_wrap=True)
            if path:
                console.print(f"report   {inert(str(path))}", highlight=False, soft_wrap=True)
    if fault is not None:
        raise fault
