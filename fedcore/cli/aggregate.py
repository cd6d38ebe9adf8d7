"""`fedcore aggregate DIR... -o OUT --rule krum --f 1`: PEFT adapter directories in, one PEFT directory out."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal, cast

import typer

from fedcore.cli.arguments import check_each_once, check_one_of, settings_of, stage_of, weights_of
from fedcore.cli.method import aggregate_by_method
from fedcore.cli.options import as_option, as_stage_option, check_weighed, refuse_beside
from fedcore.cli.rule import aggregate_by_rule, check_server
from fedcore.cli.run import Json
from fedcore.errors import ExistsError, RuleError


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
    from fedcore.federation.rule_names import make_chain

    check_each_once(directories)
    if os.path.lexists(output):
        raise ExistsError(f"{output}: already exists; choose another --output or remove it", filename=output)
    given, by_directory = settings_of("--set", settings or []), weights_of(weights, directories)
    numbers = weights not in ("counts", "equal")
    if method is not None:
        other = {"before": before, "f": f, "server": server, "center": center, "memory": memory, "backend": backend}
        other["threads"] = threads
        chosen_rule = {"rule": None if rule == "mean" else rule, "space": None if space == "delta" else space}
        nonfinite: dict[str, object] = {"on-nonfinite": None if on_nonfinite == "raise" else on_nonfinite}
        refuse_beside(
            "with --method, which has no use for it; leave out one of the two", nonfinite | chosen_rule | other
        )
        aggregate_by_method(
            directories,
            output,
            method,
            given,
            weights=by_directory,
            numbers=numbers,
            reference=reference,
            side=side,
            starts=starts,
            number=number,
            json=json,
        )
        return
    refuse_beside(
        "without --method, which alone has a use for it; leave it out, or give --method",
        {"side": side, "starts": starts, "round": None if number == 1 else number},
    )
    own = {} if f is None else {"f": f}
    if own and "f" in given:
        raise RuleError("--set f: --f gives it too, expected one value; leave out the other")
    chosen = make_chain(rule, own | given, [stage_of(text) for text in before or []], as_option, as_stage_option)
    check_server(rule, chosen, server)
    check_one_of("--space", space, ("delta", "parameters"))
    check_one_of("--on-nonfinite", on_nonfinite, ("raise", "exclude"))
    if backend is not None:
        check_one_of("--backend", backend, BACKENDS)
    check_weighed(numbers, chosen.uses_weights, f"--rule {rule}")
    aggregate_by_rule(
        directories,
        output,
        chosen,
        weights=by_directory,
        counts=weights == "counts",
        beside={"reference": reference, "server": server, "center": center},
        json=json,
        space=cast(Literal["delta", "parameters"], space),
        on_nonfinite=cast(Literal["raise", "exclude"], on_nonfinite),
        memory=memory,
        backend=backend,
        threads=threads,
    )
