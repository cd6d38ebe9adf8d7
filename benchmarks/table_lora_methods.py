"""The table of how well LoRA methods learn, from results/lora_methods.json: mean and standard deviation over seeds."""

from __future__ import annotations

import dataclasses
import json
import statistics
from pathlib import Path
from typing import Any

from fedcore import lora

FILE = Path(__file__).parent / "results" / "lora_methods.json"
BEGIN, END = "<!-- lora methods: written by benchmarks/table.py -->", "<!-- end of lora methods -->"

#: name of its runs -> the method; sketches of 24 columns for adapters of rank 8
METHODS: dict[str, lora.Method] = {
    name: kind() for name, kind in lora.METHODS.items() if name != "randomized_sketch"
} | {
    "flexlora, error feedback": lora.FlexLoRA(error_feedback=True),
    "randomized_sketch, one pass": lora.RandomizedSketch(size=24),
    "randomized_sketch, two passes": lora.RandomizedSketch(size=24, passes=2),
}


def load() -> dict[str, Any]:
    """The record of the runs that are done, by "seed/method/rounds"."""
    return json.loads(FILE.read_text())


def _label(name: str) -> str:
    """A method with the settings that are not its defaults."""
    method = METHODS[name]
    fields = dataclasses.fields(method)  # type: ignore[arg-type]
    given = [f"{f.name}={getattr(method, f.name)}" for f in fields if getattr(method, f.name) != f.default]
    return ", ".join([method.traits.name, *given])


def _spread(values: list[float], digits: str) -> str:
    deviation = f" ± {format(statistics.stdev(values), digits)}" if len(values) > 1 else ""
    return format(statistics.mean(values), digits) + deviation


def lines(runs: dict[str, Any], rounds: int) -> list[str]:
    """A Markdown table of the runs of so many rounds, methods in the order in which they were first run.

    Loss, accuracy and residual are those after the last round; bytes are sums over rounds and clients. Seeds differ far
    more than methods, so each loss is also taken less that of FedIT at the same seed.
    """
    found: dict[str, list[list[dict[str, Any]]]] = {}
    beside = {key.split("/")[0]: run["rounds"] for key, run in runs.items() if key.endswith(f"/fedit/{rounds}")}
    less: dict[str, list[float]] = {}
    for key, run in runs.items():
        seed, name, count = key.split("/")
        if int(count) == rounds:
            found.setdefault(name, []).append(run["rounds"])
            if seed in beside:
                less.setdefault(name, []).append(run["rounds"][-1]["loss"] - beside[seed][-1]["loss"])
    head = "| method | seeds | held-out loss | less FedIT's | ranking accuracy | bytes up | bytes down | residual |"
    rows = [head, "|---" * 8 + "|"]
    for name, each in found.items():
        last = [run[-1] for run in each]
        total = {way: statistics.mean(sum(entry[way] for entry in run) for run in each) for way in TRAFFIC}
        cells = [
            _label(name),
            str(len(each)),
            _spread([entry["loss"] for entry in last], ".3f"),
            _spread(less[name], "+.3f").replace("± +", "± ") if name in less and name != "fedit" else "–",
            _spread([entry["accuracy"] for entry in last], ".3f"),
            *(f"{value / 1e6:.2f} MB" for value in total.values()),
            f"{statistics.mean(entry['residual'] for entry in last):.2g}",
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return rows


#: the fields of a round that are added up over rounds
TRAFFIC = ("bytes_up", "bytes_down")


def section(rounds: int = 4) -> str:
    """What stands between the two marks of the README."""
    own = " and ".join(name for name, method in METHODS.items() if not method.traits.weighted)
    said = (
        f"The demo's eight clients, rank 8, {rounds} rounds, one base in NF4; mean ± standard deviation over seeds, "
        "which draw the partition, the adapter and the batches; differences from FedIT are taken seed by seed. "
        f"Settings are the defaults where none stand. The residual of {own}, which takes no weights, is against the "
        "plain mean of the clients' updates, that of the others against the mean by examples. "
        "`python benchmarks/lora_methods.py` makes it. A difference within its spread is none."
    )
    record = load()
    if "split" not in record:
        said += " Taken when texts were held out by another draw than now: to be taken again."
    return "\n".join([BEGIN, *lines(record["results"], rounds), "", said, END])
