"""`fedcore aggregate --rule`: PEFT directories in, one PEFT directory out, and who counted."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedcore.cli.options import check_counted
from fedcore.cli.shares import show_shares, tell_lacking
from fedcore.cli.terminal import LateProgress, cause_of, only_results_on_stdout, print_json, showing
from fedcore.errors import BudgetError, FedcoreError, NonFiniteError, RuleError

if TYPE_CHECKING:
    from fedcore.updates import Cohort, Update


def aggregate_by_rule(
    directories: Sequence[Path],
    output: Path,
    rule: Any,
    *,
    weights: Mapping[str, float] | None,
    counts: bool,
    beside: Mapping[str, Path | None],
    json: bool,
    **how: Any,
) -> None:
    """Write the aggregate to `output`, and show it.

    weights   of each directory; None is by their examples, which `counts` says that the user asked for
    beside    the directories of 'reference', 'server' and 'center'
    how       what else `fedcore.aggregate` takes

    Raises WeightError for counts that not all adapters have, BudgetError where memory runs out all the same, and as
    `fedcore.aggregate` and `Update.to_peft` do.
    """
    from fedcore.engine import aggregate
    from fedcore.updates import Cohort, Update

    start = time.perf_counter()
    with _within(how["memory"]), only_results_on_stdout(), LateProgress() as progress:
        cohort = Cohort([Update.open(path, client_id=str(path)) for path in directories])
        if counts and rule.uses_weights:
            check_counted(cohort)
        known: dict[str, Any] = {name: _beside(name, path, rule, cohort) for name, path in beside.items() if path}
        each = [weights[client] for client in cohort.client_ids] if weights else None
        result = aggregate(cohort, rule, weights=each, progress=progress, **known, **how)
        result.update.to_peft(output)
    tell_lacking(result.report, beside["reference"])
    seconds = time.perf_counter() - start
    with showing(f"{output} is complete"):
        if not json:
            show_shares(cohort.client_ids, result, output, seconds)
            return
        print_json(
            {
                "output": str(output),
                "rule": result.report["rule"],
                "space": how["space"],
                "coefficients": result.coefficients,
                "divisor": result.report["divisor"],
                "excluded": result.excluded,
                "digest": result.update.digest(),
                "seconds": seconds,
                "report": result.report,
            }
        )


@contextmanager
def _within(memory: str | None) -> Iterator[None]:
    """Raise BudgetError, by the budget that was given, where the machine has less."""
    try:
        yield
    except MemoryError as error:
        if isinstance(error, FedcoreError):
            raise
        given, do = ("without --memory", "give it") if memory is None else (f"with --memory {memory}", "give less")
        raise BudgetError(
            f"{cause_of(error)} {given}; free some, or {do}: too little is refused with the least that works"
        ) from error


def check_server(name: str, rule: Any, server: Path | None) -> None:
    """Raise RuleError for a rule that looks at the server's adapter where none is given."""
    if "server" in rule.uses and server is None:
        raise RuleError(
            f"--rule {name}: got no --server, expected the adapter that the server trained; pass --server DIR"
        )


def _beside(option: str, path: Path, rule: Any, cohort: Cohort) -> Update:
    """The adapter of --reference, --server or --center.

    Raises NonFiniteError naming it; tells on stderr if the rule does not look at it.
    """
    from fedcore.federation.receipt import nonfinite_place
    from fedcore.updates import Update

    update = Update.from_peft(path)
    if place := nonfinite_place(update):
        wanted = {"reference": "that the clients started from", "server": "that the server trained"}
        raise NonFiniteError(f"--{option} {path}: {place}; give the adapter {wanted.get(option, 'without them')}")
    # where there is no centre, an iteration starts at the reference, and a client that lacks a module stands there
    lacking = any(client.modules.keys() != update.modules.keys() for client in cohort)
    if option not in rule.uses and not (option == "reference" and ("center" in rule.uses or lacking)):
        print(f"fedcore: note: --{option} changes nothing: {rule} does not look at it", file=sys.stderr)
    return update
