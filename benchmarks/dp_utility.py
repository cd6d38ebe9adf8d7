"""What privacy costs in utility, on the demo's federation: held-out loss at ε = ∞, 50, 8, 2, 1, over seeds.

    python benchmarks/dp_utility.py [--seeds 5] [--rounds 4] [--steps 24] [--clients 8] [--arms "ffa_lora/central;..."]

Central and local noise, B alone (FFA-LoRA) against both factors (FedIT, a joint clip). One base model for all seeds,
whose texts go to no client; a seed draws the partition, the adapter and the batches. An ε of 50 ends near 45: what
samplers differ from ideal noise, 2^-99 (1 + e^ε) a sample, takes up δ there. Each run is kept in
results/dp_utility.json when it is done, under all that makes it, and not made again on the same split of the texts;
the plot is made of what is there.
Needs the training extra: run it with .venv/bin/python. A run whose loss is no better than the base's is said to have
collapsed (`fedcore.report.collapse`), as a run's own table says.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from importlib import resources
from pathlib import Path
from typing import Any

from kept_runs import keep, load, split
from measure import RESULTS

from fedcore.federation.config import Config
from fedcore.federation.config_file import parse_config
from fedcore.federation.data import load_texts
from fedcore.federation.learner import QLoRALearner, built_in_base
from fedcore.federation.private_run import read_plan
from fedcore.federation.simulation import run_arms
from fedcore.report.collapse import collapsed
from fedcore.report.table import rows

FILE = RESULTS / "dp_utility.json"
EPSILONS = (None, 50.0, 8.0, 2.0, 1.0)
DELTA = 1e-5
#: what is compared: method / mode
ARMS = ("ffa_lora/central", "fedit/central", "ffa_lora/local", "fedit/local")


def configured(given: argparse.Namespace, seed: int, base: Path | None, arm: str, epsilon: float | None) -> Config:
    """The demo's configuration with one arm, private or not."""
    demo = resources.files("fedcore.cli").joinpath("demo.toml").read_text(encoding="utf-8")
    data = parse_config(demo, "demo.toml", Path()).model_dump(exclude_none=True)
    method, mode = arm.split("/")
    data["run"] |= {"seed": seed, "rounds": given.rounds}
    data["training"] |= {"steps": given.steps}
    data["partition"] |= {"clients": given.clients, "min_examples": min(64, 512 // given.clients)}
    data["data"] |= {"held_out_limit": given.held_out, "questions": 0}
    data["aggregation"] = {"method": method, "weights": "equal"}
    data["arms"] = [{"name": "one"}]
    data["model"]["pretrain"] |= {"rounds": 12}
    data.pop("privacy", None)
    if base is not None:
        data["model"] = {"source": str(base), "quantization": data["model"]["quantization"]}
    if epsilon is not None:
        data["privacy"] = {"epsilon": epsilon, "delta": DELTA, "mode": mode, "clip": given.clip}
        data["privacy"] |= {"both_factors": method == "fedit"}
    return Config.model_validate(data)


def key(given: argparse.Namespace, seed: int, arm: str, epsilon: float | None) -> str:
    """All that makes a run. Without noise it is the same in every mode."""
    method, mode = arm.split("/")
    named = f"{method}/none" if epsilon is None else f"{method}/{mode}"
    size = (
        f"{given.clients} clients/{given.rounds} rounds/{given.steps} steps/clip {given.clip:g}/{given.held_out} texts"
    )
    return f"{seed}/{named}/{'inf' if epsilon is None else f'{epsilon:g}'}/{size}"


def measured(config: Config, learner: Any, texts: Any) -> dict[str, Any]:
    """One run in a folder that does not stay."""
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        run = run_arms(config, texts, learner, Path(folder) / "run", resume=False)
        lines = [line for line in run.metrics.entries if line["arm"] == "one"]
        table, plan = {row.name: row for row in rows(run.metrics.entries)}, read_plan(run.path)
        found: dict[str, Any] = {"base": table["base"].loss, "loss": [line["loss"] for line in lines]}
        if plan is not None:
            kept = [run.private.kept("one", number) or {} for number in range(1, config.run.rounds + 1)]
            norms = [norm for one in kept for norm in one.get("norms", {}).get("", [])]
            found |= {"epsilon": lines[-1]["epsilon"], "noise_multiplier": plan.charged, "numbers": plan.numbers}
            found |= {"noise_over_clip": plan.noise_of_mean}
            found |= {"median_norm": statistics.median(norms)} if norms else {}
    return found | {"seconds": time.perf_counter() - begin}


def grouped(runs: dict[str, Any], given: argparse.Namespace) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """arm -> ε as text -> the runs of all seeds at this size."""
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for arm in given.arms.split(";"):
        for epsilon in EPSILONS:
            each = [runs.get(key(given, seed, arm, epsilon)) for seed in range(given.seeds)]
            if known := [run for run in each if run]:
                found.setdefault(arm, {})["∞" if epsilon is None else f"{epsilon:g}"] = known
    return found


def report(runs: dict[str, Any], given: argparse.Namespace) -> list[str]:
    """A Markdown table: mean ± deviation of the last held-out loss; how many of the seeds collapsed.

    Gain kept: how far the loss is below the base's, as a share of what it is without clip and noise.
    """
    head = ("arm", "ε asked", "ε spent", "seeds", "noise / clip", "base's loss", "loss", "gain kept", "collapsed")
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for arm, by_epsilon in grouped(runs, given).items():
        for epsilon, each in by_epsilon.items():
            last = [run["loss"][-1] for run in each]
            spread = f" ± {statistics.stdev(last):.3f}" if len(last) > 1 else ""
            base, free = statistics.mean(run["base"] for run in each), by_epsilon.get("∞")
            gain = [base - statistics.mean(run["loss"][-1] for run in known) for known in (each, free) if known]
            cells = [
                arm,
                epsilon,
                f"{each[0]['epsilon']:.3g}" if "epsilon" in each[0] else "∞",
                str(len(each)),
                f"{each[0].get('noise_over_clip', 0.0):.3g}",
                f"{base:.3f}",
                f"{statistics.mean(last):.3f}{spread}",
                "–" if not free else f"{100 * gain[0] / gain[1]:.0f} %" if gain[0] > 0 else "none",
                f"{sum(map(gone, each))} of {len(each)}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def gone(run: dict[str, Any]) -> bool:
    """Whether a run is no better than the base."""
    return collapsed(run["base"], run["loss"][-1])


def plot(runs: dict[str, Any], given: argparse.Namespace) -> None:
    """Loss over ε, a line an arm; hollow where most seeds have collapsed; the base's as a dashed level."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "fedcore"
    from matplotlib import pyplot

    names = ["∞" if epsilon is None else f"{epsilon:g}" for epsilon in EPSILONS]
    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    bases = []
    for arm, by_epsilon in grouped(runs, given).items():
        places = [names.index(epsilon) for epsilon in by_epsilon]
        lasts = [[run["loss"][-1] for run in each] for each in by_epsilon.values()]
        bases += [run["base"] for each in by_epsilon.values() for run in each]
        spread = [statistics.stdev(last) if len(last) > 1 else 0.0 for last in lasts]
        line, *_ = axes.errorbar(places, [statistics.mean(last) for last in lasts], spread, capsize=3, label=arm)
        for place, last, each in zip(places, lasts, by_epsilon.values(), strict=True):
            ink, most = line.get_color(), 2 * sum(map(gone, each)) > len(each)
            axes.plot(place, statistics.mean(last), "o", mec=ink, mfc="white" if most else ink)
    axes.axhline(statistics.mean(bases), color="#666666", ls="--", lw=1.2, label="the base model")
    axes.set(xticks=range(len(names)), xticklabels=names, xlabel="ε of the run", ylabel="held-out loss, nats per token")
    axes.set_title(f"Utility under client-level privacy, {given.clients} clients (hollow: collapsed)", loc="left")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.legend(fontsize=9)
    figure.savefig(RESULTS / "dp_utility.svg", metadata={"Date": None})


def quiet(*_: object, **__: object) -> None:
    """Show nothing."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--clip", type=float, default=1.0)
    parser.add_argument("--held-out", type=int, default=200, help="held-out texts that are scored")
    parser.add_argument("--arms", default=";".join(ARMS), help="method/mode, separated by ;")
    given = parser.parse_args()
    now, base = split(), None
    runs = load(FILE, now)
    for seed in range(given.seeds):
        wanted = [(arm, epsilon) for epsilon in EPSILONS for arm in given.arms.split(";")]
        if all(key(given, seed, arm, epsilon) in runs for arm, epsilon in wanted):
            continue
        if base is None:
            first = configured(given, 0, None, ARMS[0], None)
            base = built_in_base(first, load_texts(first), quiet)
        first = configured(given, seed, base, ARMS[0], None)
        texts = load_texts(first)
        learner = QLoRALearner(first, texts, quiet)
        for arm, epsilon in wanted:
            name = key(given, seed, arm, epsilon)
            if name in runs:
                continue
            runs[name] = run = measured(configured(given, seed, base, arm, epsilon), learner, texts)
            keep(FILE, runs, now, ("torch", "peft", "dp-accounting"))
            losses = " ".join("not finite" if loss is None else f"{loss:.4f}" for loss in run["loss"])
            print(f"{name:80} base {run['base']:.4f}  {losses}  {run['seconds']:.0f} s", flush=True)
    print("\n".join(report(runs, given)))
    plot(runs, given)


if __name__ == "__main__":
    main()
