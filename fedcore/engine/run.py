"""Run a rule over a cohort of updates: check, statistics, coefficients, combination.

`RowExecutor` makes the passes over parameters as they were sent, `DeltaExecutor` over true LoRA updates. A rule is the
same under both.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy.typing as npt

from fedcore.backends import requested
from fedcore.engine.combination import Clock, Space, combine, make_report, make_update
from fedcore.engine.exclusion import broken_clients
from fedcore.engine.taken import check_taken
from fedcore.errors import NonFiniteError, RuleError
from fedcore.lora.delta import Rank
from fedcore.lora.executor import DeltaExecutor
from fedcore.numbers import among, as_whole, flag, got, one_line
from fedcore.ops.rows import thread_count
from fedcore.rules.alike import check_same_parameters
from fedcore.rules.budget import parse_memory
from fedcore.rules.files import FileExecutor, Progress
from fedcore.rules.geometry import Geometry
from fedcore.rules.rows import RowExecutor
from fedcore.rules.rule import Rule, check_weights, chosen_references
from fedcore.rules.statistics import Gram, Statistics
from fedcore.updates import Cohort, Update
from fedcore.updates.bases import check_same_base
from fedcore.updates.opening import opened, opened_all
from fedcore.updates.weights import weights_by_id


@dataclass(frozen=True, repr=False)
class Aggregate:
    """What `aggregate` returns.

    update         the result; client_id "global", num_examples the sum over the clients that count, and `counted` if
                   each of them said its own and they are at most 2**40
    coefficients   client_id -> its coefficient as used (an fp32 value); the result divides by report["divisor"]. Empty
                   for an order rule, which gives no client a coefficient; mixtures that it is taken of are in
                   report["mix"]
    excluded       client_id -> why it was left out before the rule ran (NaN or Inf, or factors that cancel)
    report         JSON-able: rule, space, n, divisor, seconds by step, what the rule decided and why, truncation by
                   module; "reference_coefficients" of the rows beside the clients, by the name of their argument
                   ("reference", "server", "center"; empty for an order rule); "counted" lists the clients that count,
                   "not_counted" says why each other one does not; "lacking", where there are any: client_id -> modules
                   that others sent and it did not
    """

    update: Update
    coefficients: dict[str, float]
    excluded: dict[str, str]
    report: dict[str, Any]

    def __repr__(self) -> str:
        without = f", {len(self.excluded)} excluded" if self.excluded else ""
        of = f"{self.report.get('rule')}, n = {self.report.get('n')}{without}"
        return f"<Aggregate by {one_line(of)}: {self.update!r}>"


def aggregate(
    updates: Iterable[Update | str | os.PathLike[str]],
    rule: Rule,
    space: Space = "delta",
    reference: Update | str | os.PathLike[str] | None = None,
    *,
    memory: int | str | None = None,
    progress: Progress | None = None,
    server: Update | str | os.PathLike[str] | None = None,
    center: Update | str | os.PathLike[str] | None = None,
    weights: Mapping[str, float] | npt.ArrayLike | None = None,
    on_nonfinite: Literal["raise", "exclude"] = "raise",
    dense: bool = False,
    rank: Rank = None,
    backend: str | None = None,
    threads: int | None = None,
) -> Aggregate:
    """Aggregate the updates of one round into one.

    updates        of one base model; a `Cohort`, or updates with distinct client_ids in any order; paths are opened by
                   `Update.open`
    rule           from fedcore.rules
    space          "delta": distances, norms and sums are of s · B · A, and the result is truncated to the clients'
                   rank; ranks, scales and modules may differ (dtypes may not), and a client that lacks a module counts
                   with what `reference` has there, or with 0 (fedcore/lora/factor_rows.py says why). Order rules form
                   Δ in fp32, a few rows of a module at a time, and then the SVD of the dense result. "parameters": of
                   the tensors as they are; modules, ranks and scales must agree. Of adapters begun by PiSSA, OLoRA,
                   CorDA or LoftQ ranks and scales must agree in both, as PEFT takes their part out of the base by these
    reference      the global update that the clients moved from: norms and clips are of the change. None is zero. In
                   "delta" space clients can have no module that it lacks. It, server and center may be paths, too
    server         a trusted update of the server's own, for rules that use one (FLTrust, MoNNA)
    center         where an iteration starts, for rules that use one (CenteredClipping); None is the reference
    memory         "1GB", "512MiB" or bytes: what the process may take in all, if it does nothing else. Updates in
                   files, mapped or not, are then read in tiles of columns that fit, the next one while one is worked
                   on, and may be larger than memory; a file that is changed meanwhile is an error. None: mapped files
                   are read through their maps, and updates made by `Update.open` in "1GB", or the least that works
                   where that is more. The bits are the same.
    progress       called as progress(work, done, total) during passes over files, from this thread
    weights        client_id -> weight, or one number for each update in the order given; None takes their num_examples.
                   Rules that ignore weights (Krum) ignore these too.
    on_nonfinite   a client that sent NaN or Inf, or in "delta" space factors whose terms cancel, so that fp64 cannot
                   tell their product: "raise" names it; "exclude" leaves it out,
                   says so, and keeps the rule's f. All such clients are found in one more pass, and left out together
    dense          of an order rule in "delta" space: keep Δ whole, as one (d_out, d_in) fp32 tensor <module>.weight for
                   each module, in place of factors; nothing is truncated
    rank           of the result in "delta" space: None is the highest of the clients that count, "full" keeps a linear
                   rule's stacked factors without truncation, of rank Σ r_i or the smaller side of Δ
    backend        of every op that runs: 'reference', 'c', 'triton' or None for where rows lie. It does not reach what
                   LAPACK does of factors in "delta" space, norms, sums and distances that a selection forms again, nor
                   distances of mixtures formed again, which NumPy does; report["redone_on"] says where pairs were.
                   'triton' is refused where it would have nothing to do: a mean of factors alone.
    threads        of the C kernels. BLAS and LAPACK, which do the work on factors, use NumPy's own threads
                   (OMP_NUM_THREADS and the like), whatever this says. With OMP_NUM_THREADS=1 two modules are worked on
                   at a time, which is the quickest for a large cohort on two cores.

    In "parameters" space the result has the same bits on every backend, given the coefficients. In "delta" space
    factors come from `fedcore.ops.lora_truncate`: the closest of their rank within fp64 rounding, or where the clients'
    ranks add up to 512 and more nearly that, report["modules"] says how nearly. A client that alone counts is returned
    bit for bit where it has the `rank`, and in modules that it lacks what `reference` has there; without one they are
    left out, as is every module that no client which counts has.

    Stages before the last one of a composed rule are under report["before"], in their order.

    Raises LayoutError, NonFiniteError, RuleError, WeightError, DTypeError, ShapeError, RangeError, BackendError,
    BudgetError (with the least that works), and of files FormatError, MissingError and StorageError; each names the
    client, file, tensor or module.
    """
    if not among(space, ("delta", "parameters")):
        raise RuleError(f"{got('space', space)}, expected 'delta' or 'parameters'")
    if not among(on_nonfinite, ("raise", "exclude")):
        raise RuleError(f"{got('on_nonfinite', on_nonfinite)}, expected 'raise' or 'exclude'")
    dense = flag("dense", dense, error=RuleError)
    requested(backend)
    thread_count(threads)
    if memory is not None:
        parse_memory(memory)
    given = opened_all(updates)
    cohort, by_id = given if isinstance(given, Cohort) else Cohort(given), weights_by_id(weights, given)
    if not isinstance(rule, Rule):
        raise RuleError(f"{got('rule', rule)}, expected an instance of a rule such as fedcore.rules.Krum(f=1)")
    if dense and (space != "delta" or rule.linear):
        raise RuleError(f"dense: got True for {rule!r} in space={space!r}; only an order rule in space='delta' forms Δ")
    rank = check_rank(rank, rule, space, dense)
    reference, server, center = (
        None if update is None else opened(update, name)
        for name, update in (("reference", reference), ("server", server), ("center", center))
    )
    references = chosen_references(rule, reference=reference, server=server, center=center)
    excluded: dict[str, str] = {}
    passes: dict[str, Any] = {"backend": backend, "threads": threads}
    if memory is not None or not all(update.mapped for update in (*cohort, *filter(None, references.values()))):
        passes |= {"memory": memory, "progress": progress}
    while True:
        try:
            return run(cohort, rule, space, references, by_id, excluded, passes, None, dense, rank, reference)
        except NonFiniteError as error:
            if on_nonfinite == "raise" or not 0 <= error.row < len(cohort):
                raise
            broken = broken_clients(cohort, space, error, passes, reference)
            excluded |= {cohort[row].client_id: str(found) for row, found in broken.items()}
            if len(broken) == len(cohort):
                last = list(broken.values())[-1]
                message = f"every client sent NaN or Inf or factors that cancel, the last one: {last}"
                raise NonFiniteError(message) from None
            for row in sorted(broken, reverse=True):  # from the end, so that the others keep their numbers
                rule = rule.without(row)
            cohort = Cohort(update for i, update in enumerate(cohort) if i not in broken)


def run(
    cohort: Cohort,
    rule: Rule,
    space: Space,
    references: dict[str, Update | None],
    weights: dict[str, Any] | None,
    excluded: dict[str, str],
    passes: dict[str, Any],
    known: Gram | None = None,
    dense: bool = False,
    rank: Rank = None,
    start: Update | None = None,
) -> Aggregate:
    """One attempt, with the clients that are left.

    passes   what executors take beside the rows
    known    the Gram of the rows in files, where it has been made already
    dense    keep Δ of an order rule whole
    rank     of the result in delta space
    start    what the clients moved from, whether the rule looks at it or not
    """
    clock = Clock()
    with clock.step("check"):
        check_rule(rule, cohort, excluded)
        names = [f"client {client!r}" for client in cohort.client_ids]
        share = cohort.num_examples if weights is None else [weights[client] for client in cohort.client_ids]
        checked = check_weights(share, names) if rule.uses_weights else None
        named = [(f"client {update.client_id!r}", update) for update in cohort]
        given = [(name, update) for name, update in references.items() if update is not None]
        together = [*named, *given, *([] if start is None else [("reference", start)])]
        check_same_base(together)
        check_taken(together, references, rank, dense)
        executor: RowExecutor | DeltaExecutor
        if space == "delta":
            room = {"order": not rule.linear, "dense": dense, "matrices": room_for(rule, len(cohort))["matrices"]}
            executor = DeltaExecutor.from_cohort(cohort, references, names, start=start, rank=rank, **room, **passes)
        else:
            check_same_parameters(cohort, given, names)
            executor = _row_executor(rule, cohort, references, names, passes, known)
        statistics = Statistics(executor, rule.origin_row(len(cohort)))
    with clock.step("statistics"):
        statistics.gather(rule.needs)
    with clock.step("rule"):
        decided = rule.decide(Geometry(statistics), checked)
    with clock.step("combination"):
        found = combine(executor, decided, cohort[0].layout, dense)
        update = make_update(cohort, found)
    report = make_report(cohort, rule, space, decided, found, clock) | {"excluded": dict(excluded)}
    coefficients = {client: float(value) for client, value in zip(cohort.client_ids, found.coefficients, strict=False)}
    return Aggregate(update, coefficients, dict(excluded), report)


def _row_executor(
    rule: Rule,
    cohort: Cohort,
    references: dict[str, Update | None],
    names: Sequence[str],
    passes: dict[str, Any],
    known: Gram | None,
) -> RowExecutor:
    if "memory" not in passes:
        return RowExecutor.from_cohort(cohort, references, names, **passes)
    return FileExecutor.from_files(cohort, references, names, known=known, **room_for(rule, len(cohort)), **passes)


def room_for(rule: Rule, clients: int) -> dict[str, Any]:
    """What a memory budget is to have room for beside rows and the result."""
    return {"matrices": rule.matrices if "gram" in rule.needs else 0, "mixtures": rule.mixtures(clients)}


def check_rank(rank: Rank, rule: Rule, space: Space, dense: bool) -> Rank:
    """The rank, a whole one as an int. Raises RuleError for one that is none, or that nothing is truncated to."""
    if rank is None:
        return None
    kept: Rank = "full" if isinstance(rank, str) and rank == "full" else as_whole(rank)
    if kept is None or (isinstance(kept, int) and kept < 1):
        raise RuleError(f"{got('rank', rank)}, expected a whole number of at least 1, 'full' or None")
    if space != "delta":
        raise RuleError(f"{got('rank', rank)} in space={space!r}; only results in space='delta' are truncated")
    if dense or (kept == "full" and not rule.linear):
        raise RuleError(f"{got('rank', rank)} for {rule!r}; an order rule keeps Δ whole with dense=True and no rank")
    return kept


def check_rule(rule: Rule, cohort: Cohort, excluded: dict[str, str]) -> None:
    """Raise RuleError where a rule does not take so many clients, naming those that were left out before."""
    try:
        rule.check(len(cohort))
    except RuleError as error:
        if not excluded:
            raise
        raise RuleError(
            f"{error} (after excluding {', '.join(map(repr, sorted(excluded)))} for what they sent)"
        ) from None
