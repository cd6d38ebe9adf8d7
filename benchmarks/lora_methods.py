"""How well each LoRA method learns, on the demo's clients: held-out loss after each round, five seeds, mean and spread.

    python benchmarks/lora_methods.py [--seeds 5] [--methods "fedit;flexlora"] [--rounds 4]

One base model for all seeds (its texts go to no client); a seed draws the partition, the adapter and the batches. Each
run of a seed and method is kept in results/lora_methods.json when it is done, and not made again on the same split of
the texts. It needs the training
extra, which the benchmarks' own environment lacks: run it with .venv/bin/python.
"""

from __future__ import annotations

import argparse
import statistics
import time
from importlib import resources
from pathlib import Path
from typing import Any

from kept_runs import keep, load, split
from table_lora_methods import FILE, METHODS, lines

from fedcore import lora
from fedcore.clients.core import train_core
from fedcore.clients.settings import TrainingSettings
from fedcore.federation.config import Config
from fedcore.federation.config_file import parse_config
from fedcore.federation.data import load_texts
from fedcore.federation.learner import QLoRALearner, built_in_base
from fedcore.federation.messages import client_seed
from fedcore.federation.method_round import fixing
from fedcore.lora import Aggregated, Method
from fedcore.updates import Update


class Seed:
    """The texts, the base and the first adapter of one seed."""

    def __init__(self, config: Config):
        self.config, self.texts = config, load_texts(config)
        self.learner = QLoRALearner(config, self.texts, quiet)
        self.initial = self.learner.initial()

    def train(self, start: Update, number: int, client: Any, **options: Any) -> Update:
        """One client's adapter after its local steps."""
        seed = client_seed(self.config, number, client.seeded_by)
        return self.learner.train(start, client, self.config.training.steps, seed, **options)

    def run(self, method: Method) -> dict[str, Any]:
        """All rounds of a method: scores, bytes and residuals by round."""
        start, reference, side, number = self.initial, self.initial, None, 0
        if isinstance(method, lora.FRLoRA):
            start, side = method.restart(self.initial, dict(self.learner.weights()))
            reference = start
        result: Aggregated | None = None
        rounds, begin = [], time.perf_counter()
        while number < self.config.run.rounds:
            number += 1
            first = isinstance(method, lora.FedSB) and number == 1
            step = lora.FlexLoRA() if first else method
            updates = []
            for client in self.texts.clients:
                own = start if result is None else result.start_of(client.id)
                if "core" in step.trains(number):
                    updates.append(self.train_core(own, reference, number, client))
                else:
                    updates.append(self.train(own, number, client, trains=step.trains(number), side=side))
            result = step.aggregate(updates, reference=reference, side=side, number=number)
            if first:
                # Fed-SB's first round is an ordinary one: its mean estimates where training goes, and fixes the factors
                assert isinstance(method, lora.FedSB)
                fixed, report = fixing(method, result.update), result.report
                assert fixed.fixed is not None
                reference = fixed.fixed
                result = method.aggregate([fixed.adapter], reference=reference)
                result.report["bytes"] = report["bytes"]
            elif not isinstance(method, lora.FedSB):
                reference = result.update
            side = result.side
            rounds.append(self.scores(method, result, updates))
        return {"rounds": rounds, "seconds": time.perf_counter() - begin}

    def train_core(self, start: Update, fixed: Update, number: int, client: Any) -> Update:
        """One client's adapter after training its core."""
        training = self.config.training
        settings = TrainingSettings(**training.model_dump())
        seed = client_seed(self.config, number, client.seeded_by)
        return train_core(self.learner._base, client.texts, settings, seed, start, fixed, client_id=client.id)

    def scores(self, method: Method, result: Aggregated, updates: list[Update]) -> dict[str, Any]:
        """What clients hold, scored; where each holds another model, the mean over clients."""
        held = [result.update]
        if method.traits.exact == "personal":
            held = [result.start_of(update.client_id) for update in updates]
        metrics = [self.learner.evaluate(adapter, result.side) for adapter in held]
        modules, traffic = result.report["modules"].values(), result.report["bytes"].values()
        return {
            "loss": statistics.mean(m.loss for m in metrics),
            "accuracy": statistics.mean(m.accuracy or 0.0 for m in metrics),
            "bytes_up": sum(client["up"] for client in traffic),
            "bytes_down": sum(client["down"] for client in traffic),
            "residual": statistics.mean(report["residual"] for report in modules),
            "without_side": statistics.mean(report["without_side"] for report in modules),
        }


def quiet(*_: object, **__: object) -> None:
    """Show nothing."""


def demo(seed: int, rounds: int, base: Path | None) -> Config:
    """The demo's clients at a seed, on one base for all seeds."""
    text = resources.files("fedcore.cli").joinpath("demo.toml").read_text(encoding="utf-8")
    config = parse_config(text, "demo.toml", Path())
    # longer than the demo's own, which has minutes
    data = config.model_dump(exclude_none=True)
    data["run"] |= {"seed": seed, "rounds": rounds}
    data["training"] |= {"steps": 24}
    data["data"] |= {"questions": 200}
    data["model"]["pretrain"] |= {"rounds": 12}
    if base is not None:
        data["model"] = {"source": str(base), "quantization": data["model"]["quantization"]}
    # arms of its own: the demo's, with masks and noise, are not run here
    return Config.model_validate({key: value for key, value in data.items() if key not in ("arms", "privacy")})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--methods", default=";".join(METHODS), help="names of the table, separated by ;")
    given = parser.parse_args()
    now, base = split(), None
    runs = load(FILE, now)
    for seed in range(given.seeds):
        wanted = [name for name in given.methods.split(";") if f"{seed}/{name}/{given.rounds}" not in runs]
        if not wanted:
            continue
        if base is None:
            first = demo(0, given.rounds, None)
            base = built_in_base(first, load_texts(first), quiet)
        made = Seed(demo(seed, given.rounds, base))
        for name in wanted:
            runs[f"{seed}/{name}/{given.rounds}"] = run = made.run(METHODS[name])
            keep(FILE, runs, now, ("torch", "peft", "bitsandbytes"))
            losses = " ".join(f"{entry['loss']:.4f}" for entry in run["rounds"])
            print(f"seed {seed}  {name:32}  {losses}  {run['seconds']:.0f} s", flush=True)
    print("\n".join(lines(runs, given.rounds)))


if __name__ == "__main__":
    main()
