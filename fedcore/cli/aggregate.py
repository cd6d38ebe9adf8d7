"""`fedcore aggregate DIR... -o OUT --rule krum --f 1`: PEFT adapter directories in, one PEFT directory out."""

from __future__ import annotations

import json as jsonlib
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from fedcore.cli.method import aggregate_by_method, refuse_beside_method
from fedcore.cli.options import as_option, as_stage_option, check_counted, check_weighed
from fedcore.cli.run import Json
from fedcore.cli.shares import show_shares, tell_lacking
from fedcore.cli.terminal import LateProgress, only_results_on_stdout, print_json, showing
from fedcore.errors import ExistsError, LayoutError, NonFiniteError, RuleError, WeightError

if TYPE_CHECKING:
    from fedcore.updates import Cohort, Update


def aggregate(
    directories: Annotated[
        list[Path], typer.Argument(metavar="DIR...", help="PEFT LoRA directories.", show_default=False)
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Directory to make; must not exist.", show_default=False)
    ],
    rule: Annotated[
        str, typer.Option(help="mean, norm_clipping, krum, multi_krum, ...: a rule of fedcore.rules.")
    ] = "mean",
    method: Annotated[
        str | None,
        typer.Option(
            help="fedit, flexlora, flora, ...: a method of fedcore.lora in place of a rule.", show_default=False
        ),
    ] = None,
    f: Annotated[int | None, typer.Option("--f", help="How many clients may be Byzantine.", show_default=False)] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A parameter of the rule or method, such as m=3; repeatable."),
    ] = None,
    before: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RULE:NAME=VALUE,...",
            help="A pre-aggregation, such as norm_clipping:max_norm=1; repeatable, in the order that rows pass them.",
        ),
    ] = None,
    weights: Annotated[
        str,
        typer.Option(
            help="'counts' (examples, where adapters carry them), 'equal', or one number each: 1,2,3; for what weighs."
        ),
    ] = "counts",
    space: Annotated[str, typer.Option(help="'delta' (on B·A) or 'parameters' (on A and B).")] = "delta",
    reference: Annotated[
        Path | None, typer.Option(help="The adapter that the clients started from.", show_default=False)
    ] = None,
    server: Annotated[
        Path | None, typer.Option(help="A trusted adapter, which fltrust and monna compare with.", show_default=False)
    ] = None,
    center: Annotated[
        Path | None, typer.Option(help="Where centered_clipping starts; --reference if absent.", show_default=False)
    ] = None,
    side: Annotated[
        Path | None, typer.Option(help="The side adapter of the last round (--method).", show_default=False)
    ] = None,
    starts: Annotated[
        Path | None, typer.Option(help="Directory for each client's own start (--method).", show_default=False)
    ] = None,
    number: Annotated[int, typer.Option("--round", help="The round, from 1 (--method).", min=1)] = 1,
    on_nonfinite: Annotated[str, typer.Option(help="'raise' or 'exclude' a client with NaN or Inf.")] = "raise",
    backend: Annotated[str | None, typer.Option(help="'c', 'triton' or 'reference'.", show_default=False)] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of the kernels.", min=1, show_default=False)] = None,
    memory: Annotated[
        str | None, typer.Option(help="What the command may take, such as 1GB or 512MiB.", show_default=False)
    ] = None,
    json: Json = False,
) -> None:
    """Aggregate any PEFT LoRA directories into one; say who counted with what coefficient.

    In delta space ranks, scales and modules may differ, the dtype of a factor may not: convert fp16, bf16 and fp32 to
    one first. Files are read in tiles and never mapped, so any number of them, larger than memory, can be given.
    """
    from fedcore.backends import BACKENDS
    from fedcore.engine import aggregate as combine
    from fedcore.federation.rule_names import make_chain
    from fedcore.updates import Cohort, Update

    _each_once(directories)
    numbers = weights not in ("counts", "equal")
    if os.path.lexists(output):
        raise ExistsError(f"{output}: already exists; choose another --output or remove it")
    if method is not None:
        other = {"before": before, "f": f, "server": server, "center": center, "memory": memory, "backend": backend}
        other["threads"] = threads
        chosen_rule = {"rule": None if rule == "mean" else rule, "space": None if space == "delta" else space}
        refuse_beside_method(chosen_rule | other | {"on-nonfinite": None if on_nonfinite == "raise" else on_nonfinite})
        aggregate_by_method(
            directories,
            output,
            method,
            _settings("--set", settings or []),
            weights=_weights(weights, directories),
            numbers=numbers,
            reference=reference,
            side=side,
            starts=starts,
            number=number,
            json=json,
        )
        return
    _only_for_methods({"side": side, "starts": starts})
    given = ({} if f is None else {"f": f}) | _settings("--set", settings or [])
    chosen = make_chain(rule, given, [_stage(text) for text in before or []], as_option, as_stage_option)
    if "server" in chosen.uses and server is None:
        raise RuleError(
            f"--rule {rule}: got no --server, expected the adapter that the server trained; pass --server DIR"
        )
    _one_of("--space", space, ("delta", "parameters"))
    _one_of("--on-nonfinite", on_nonfinite, ("raise", "exclude"))
    if backend is not None:
        _one_of("--backend", backend, BACKENDS)
    by_directory = _weights(weights, directories)
    check_weighed(numbers, chosen.uses_weights, f"--rule {rule}")
    start = time.perf_counter()
    with only_results_on_stdout(), LateProgress() as progress:
        cohort = Cohort([Update.open(path, client_id=str(path)) for path in directories])
        if weights == "counts" and chosen.uses_weights:
            check_counted(cohort)
        beside = {"reference": reference, "server": server, "center": center}
        known = {name: _beside(name, path, chosen, cohort) for name, path in beside.items() if path}
        result = combine(
            cohort,
            chosen,
            space=cast(Literal["delta", "parameters"], space),
            reference=known.get("reference"),
            server=known.get("server"),
            center=known.get("center"),
            weights=[by_directory[client] for client in cohort.client_ids] if by_directory else None,
            on_nonfinite=cast(Literal["raise", "exclude"], on_nonfinite),
            memory=memory,
            progress=progress,
            backend=backend,
            threads=threads,
        )
        result.update.to_peft(output)
    tell_lacking(result.report, reference)
    seconds = time.perf_counter() - start
    with showing(f"{output} is complete"):
        if not json:
            show_shares(cohort.client_ids, result, output, seconds)
            return
        print_json(
            {
                "output": str(output),
                "rule": result.report["rule"],
                "space": space,
                "coefficients": result.coefficients,
                "divisor": result.report["divisor"],
                "excluded": result.excluded,
                "digest": result.update.digest(),
                "seconds": seconds,
                "report": result.report,
            }
        )


def _only_for_methods(given: dict[str, Path | None]) -> None:
    for option, value in given.items():
        if value is not None:
            raise RuleError(f"--{option}: got {value} without --method; a rule leaves nothing beside the adapter")


def _weights(text: str, directories: list[Path]) -> dict[str, float] | None:
    """Weight of each directory, or None to weigh by the example counts that the adapters carry."""
    if text == "counts":
        return None
    if text == "equal":
        return {str(path): 1.0 for path in directories}
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        raise WeightError(f"--weights: got {text!r}, expected 'counts', 'equal' or numbers such as 1,2,3") from None
    if len(values) != len(directories):
        raise WeightError(f"--weights: got {len(values)} numbers for {len(directories)} directories; give one for each")
    return {str(path): value for path, value in zip(directories, values, strict=True)}


#: how a command line spells a bool, in any case
_TRUTHS = {"true": True, "yes": True, "false": False, "no": False}


def _settings(option: str, texts: list[str]) -> dict[str, Any]:
    """NAME=VALUE as a rule takes it: an integer, a number, true or false (yes, no), else text. Raises RuleError."""
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise RuleError(f"{option}: got {text!r}, expected NAME=VALUE such as m=3")
        if (word := value.lower()) in _TRUTHS:
            found[name] = _TRUTHS[word]
            continue
        try:
            # a number as JSON writes it; null, lists and quotes are no settings of a rule
            plain = jsonlib.loads(value)
            found[name] = plain if isinstance(plain, (int, float)) else value
        except ValueError:
            found[name] = value
    return found


def _stage(text: str) -> dict[str, Any]:
    """RULE:NAME=VALUE,... of --before as the table of a configuration."""
    rule, _, rest = text.partition(":")
    return _settings(f"--before {rule}", rest.split(",") if rest else []) | {"rule": rule}


def _each_once(directories: list[Path]) -> None:
    """Raise LayoutError where two of the paths lead to one directory."""
    found: dict[str, Path] = {}
    for path in directories:
        first = found.setdefault(os.path.realpath(path), path)
        if first is not path:
            also = "" if str(first) == str(path) else f" ({first} and {path} are one directory)"
            raise LayoutError(f"{first} is given twice{also}; give each adapter once")


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


def _one_of(option: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise typer.BadParameter(f"got {value!r}, expected one of {', '.join(choices)}", param_hint=option)
