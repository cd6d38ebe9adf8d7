"""`fedcore aggregate --method`: PEFT directories in; the adapter of the next round, and what lies beside it, out."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fedcore.cli.options import as_option, check_counted, check_weighed
from fedcore.cli.shares import tell_lacking
from fedcore.cli.terminal import inert, only_results_on_stdout, print_json, showing
from fedcore.errors import ExistsError, LayoutError


def aggregate_by_method(
    directories: Sequence[Path],
    output: Path,
    method: str,
    parameters: dict[str, Any],
    *,
    weights: dict[str, float] | None,
    numbers: bool,
    reference: Path | None,
    side: Path | None,
    starts: Path | None,
    number: int,
    json: bool,
) -> None:
    """Write the new adapter to `output`, what it leaves beside to `<output>-side`, each client's start to `starts`.

    weights   of each directory; None is by their examples. `numbers` says that the user gave one for each

    Raises ExistsError before any work if one of these exists, LayoutError where two starts would have one name,
    WeightError for weights that the method ignores or counts that not all adapters have, and what the method raises.
    """
    from fedcore.federation.methods import named_method
    from fedcore.updates import Update
    from fedcore.updates.atomic import write_together

    made = named_method(method, parameters, as_option)
    check_weighed(numbers, made.traits.weighted, f"--method {method}")
    beside = output.with_name(output.name + "-side")
    _check_places([output, beside] if made.traits.side else [output], starts)
    names = _start_names(directories) if starts else {}
    begin = time.perf_counter()
    with only_results_on_stdout():
        updates = [Update.open(path, client_id=str(path)) for path in directories]
        if not made.traits.weighted:
            weights = None
        elif weights is None:
            check_counted(updates)
        known = {name: Update.open(path) if path else None for name, path in (("reference", reference), ("side", side))}
        result = made.aggregate(updates, weights, known["reference"], side=known["side"], number=number)
        writers: dict[Path, Callable[[Path], object]] = {}
        written = {"output": str(output)}
        if starts is not None:

            def write_starts(folder: Path) -> None:
                for name, path in names.items():
                    result.start_of(str(path)).to_peft(folder / name)

            writers[starts] = write_starts
            written["starts"] = str(starts)
        if result.side is not None:
            writers[beside] = result.side.to_peft
            written["side"] = str(beside)
        # last, so that a killed process leaves no adapter without what belongs to it
        writers[output] = result.update.to_peft
        write_together(writers)
    tell_lacking(result.report, reference)
    seconds = time.perf_counter() - begin
    report = {"digest": result.update.digest(), "coefficients": result.coefficients, "seconds": seconds}
    with showing(f"{', '.join(written.values())} {'is' if len(written) == 1 else 'are'} complete"):
        if json:
            print_json(written | report | {"report": result.report})
        else:
            _show(result, written, seconds, made.traits.weighted)


def _check_places(outputs: Sequence[Path], starts: Path | None) -> None:
    """Raise ExistsError where one of them exists, LayoutError where the starts would lie in or around an output."""
    for path in (*outputs, *([starts] if starts else [])):
        if os.path.lexists(path):
            raise ExistsError(
                f"{path}: already exists; choose another --output or --starts, or remove it", filename=path
            )
    for path in outputs if starts else ():
        one, other = os.path.realpath(path), os.path.realpath(str(starts))
        if os.path.commonpath((one, other)) in (one, other):
            raise LayoutError(
                f"--starts: got {starts}, expected a directory apart from {path}, which is written, too; choose "
                "another --starts"
            )


def _start_names(directories: Sequence[Path]) -> dict[str, Path]:
    """The name of each directory's own start. Raises LayoutError where two have the same."""
    found: dict[str, Path] = {}
    for path in directories:
        first = found.setdefault(name := path.resolve().name, path)
        if first is not path:
            raise LayoutError(
                f"--starts: {first} and {path} are both called {name!r}, and a start is written under the name of its "
                "directory; give them different names"
            )
    return found


def _show(result: Any, written: dict[str, str], seconds: float, weighed: bool) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    from fedcore.report.table import seconds as duration
    from fedcore.report.table import size

    # a method that ignores weights says nothing by shares
    share = ("share",) if weighed else ()
    table = Table("adapter", *share, "bytes up", "bytes down", box=SIMPLE_HEAD, pad_edge=False)
    for client, value in result.coefficients.items():
        traffic = result.report["bytes"][client]
        share = (f"{value / result.report['divisor']:.4f}",) if weighed else ()
        table.add_row(inert(client), *share, size(traffic["up"]), size(traffic["down"]))
    # paths are text, whatever they hold
    console = Console(markup=False, emoji=False)
    console.print(table)
    modules = result.report["modules"]
    worst = max(modules, key=lambda module: modules[module]["residual"])
    said = f"{result.report['method']}: clients hold all but {modules[worst]['residual']:.2g} of a module ({worst})"
    alone = max(report["without_side"] for report in modules.values())
    if "side" in written:
        said += f"; without the side adapter all but {alone:.2g}"
    console.print(said, highlight=False, soft_wrap=True)
    paths = inert("  ".join(written.values()))
    console.print(f"{paths}  {duration(seconds)}  SHA-256 {result.update.digest()}", highlight=False, soft_wrap=True)
