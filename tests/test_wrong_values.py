"""Whatever is given for a public parameter, arguments that are swapped above all, an error is one line that is read."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest

import fedcore as fc
from fedcore.errors import FedcoreError

#: characters of a message, four lines of a terminal
MOST = 320
#: what fedcore makes of parts that it has checked, what is only to be subclassed, and errors
NOT_CALLED = {"Aggregate", "Layout", "Quantized", "Update", "Composed", "PreAggregation", "Rule", "FedcoreError"}
NOT_CALLED |= {"Progress", "Space"}
#: a path is said whole, for whoever has to find it
PATHS = {"reference", "server", "center", "side", "path", "directory"}


@cache
def update(client: str = "a") -> fc.Update:
    """One whose parts print on some hundred lines: 120 tensors of 60 modules."""
    modules = [f"model.layers.{i}.q_proj" for i in range(60)]
    tensors = {f"{m}.lora_{side}.weight": np.ones((1, 2) if side == "A" else (2, 1)) for m in modules for side in "AB"}
    tensors = {name: values.astype(np.float32) for name, values in tensors.items()}
    return fc.Update.from_tensors(tensors, client_id=client, scaling=dict.fromkeys(modules, 2.0))


@cache
def cohort() -> fc.Cohort:
    return fc.Cohort(map(update, "abcde"))


ROWS = np.arange(40, dtype=np.float32).reshape(5, 8)
#: what fits, by parameter
FITS: dict[str, Callable[[], Any]] = {
    "updates": lambda: list(cohort()),
    "rule": fc.rules.Mean,
    "following": fc.rules.Mean,
    "rows": lambda: ROWS,
    "weights": lambda: np.ones(5),
    "f": lambda: 1,
    "buckets": lambda: 2,
    "size": lambda: 2,
    "max_norm": lambda: 1.0,
    "step": lambda: 1.0,
    "rank": lambda: 1,
    "radius": lambda: 1.0,
    "array": lambda: ROWS,
    "bits": lambda: np.zeros(3, np.uint16),
    "update": update,
    "s": lambda: 2,
    "seed": lambda: 0,
    "d": lambda: 8,
    "format": lambda: "int8",
    "tensors": lambda: {"w": ROWS},
    "changed": lambda: dict(update().tensors),
    "data": update("a").to_bytes,
    "name": lambda: "c",
    "sigma": lambda: 3.0,
    "key": lambda: bytes(32),
    "nonce": lambda: bytes(12),
    "counter": lambda: 0,
    "noise_multiplier": lambda: 1.0,
    "epsilon": lambda: 4.0,
    "delta": lambda: 1e-5,
    "sampling_rate": lambda: 1.0,
    "rounds": lambda: 2,
}


def use_backend(name: Any) -> None:
    with fc.use_backend(name):
        pass


def accumulated(update: Any, weight: Any = None) -> None:
    fc.Accumulator(fc.rules.Mean()).add(update, weight)


def calls() -> dict[str, Callable[..., Any]]:
    """What takes parameters, by name: all that is public here, of other parts what takes names, numbers or rules."""
    found: dict[str, Callable[..., Any]] = {
        **{name: getattr(fc, name) for name in fc.__all__ if callable(getattr(fc, name))},
        **{name: rule for name in fc.rules.__all__ if hasattr(rule := getattr(fc.rules, name), "check")},
        **fc.lora.METHODS,
        **{name: getattr(fc.ops, name) for name in ("weighted_sum", "squared_norms", "gram", "median", "sign_counts")},
        **{name: getattr(fc.ops, name) for name in ("trimmed_mean", "mean_around_median", "discrete_gaussian")},
        **{name: getattr(fc.ops, name) for name in ("keystream", "gram_epsilon", "ExactSum")},
        "epsilon": fc.privacy.epsilon,
        "noise_multiplier": fc.privacy.noise_multiplier,
        "use_backend": use_backend,
        "Accumulator.add": accumulated,
        "TrimmedMean": lambda f, fraction=None: fc.rules.TrimmedMean(f, fraction),
        "Krum.then": fc.rules.Krum(1).then,
        "Krum.__call__": fc.rules.Krum(1),
        "NearestNeighborMixing.then": fc.rules.NearestNeighborMixing(1).then,
        "FedIT.aggregate": fc.lora.FedIT().aggregate,
        "Update.from_tensors": fc.Update.from_tensors,
        "Update.from_bytes": fc.Update.from_bytes,
        "Update.open": fc.Update.open,
        "Update.from_peft": fc.Update.from_peft,
        "Update.quantize": update().quantize,
        "Update.with_tensors": lambda changed: update().with_tensors(changed),
        "Update.to_peft": update().to_peft,
        "Quantized.from_array": fc.Quantized.from_array,
    }
    return {name: call for name, call in found.items() if name not in NOT_CALLED}


def parameters() -> list[tuple[str, str]]:
    found = []
    for name, call in calls().items():
        for parameter in inspect.signature(call).parameters.values():
            if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
                found.append((name, parameter.name))
    return found


WRONG = {
    "an update": update,
    "updates": lambda: list(cohort()),
    "tensors": lambda: dict(update().tensors),
    "an array": lambda: np.ones((40, 40)),
    "a text": lambda: "no such thing\n" * 3000,
}


@pytest.mark.parametrize(("name", "parameter"), parameters())
def test_an_error_about_any_public_parameter_is_one_short_line(name, parameter, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    call = calls()[name]
    needed = [p.name for p in inspect.signature(call).parameters.values() if p.default is p.empty]
    given = {p: FITS[p]() for p in needed if p != parameter and p in FITS}
    said = {}
    for what, wrong in WRONG.items():
        if what == "a text" and parameter in PATHS:
            continue
        try:
            call(**given | {parameter: wrong()})
        except (FedcoreError, TypeError) as error:  # Python's own TypeError: no path, or nothing to iterate over
            said[what] = str(error)
    assert {what: text for what, text in said.items() if "\n" in text or len(text) > MOST} == {}


@pytest.mark.parametrize("name", sorted(calls().keys() - {"Krum.then"}))  # which refuses every rule
def test_what_fits_is_taken(name, tmp_path):
    """Else the errors above would be of what was not replaced."""
    call = calls()[name]
    needed = [p.name for p in inspect.signature(call).parameters.values() if p.default is p.empty]
    paths = {p: tmp_path / "out" for p in needed if p in PATHS}
    if name in ("Update.open", "Update.from_peft"):
        update().to_peft(tmp_path / "out")
    said = None
    try:
        call(**{p: FITS[p]() for p in needed if p not in paths} | paths)
    except (FedcoreError, TypeError) as error:
        said = str(error)
    assert said is None


def test_what_holds_tensors_prints_on_one_short_line(tmp_path):
    mean, state = fc.aggregate(cohort(), fc.rules.Krum(1)), fc.FedAdam().start(update())
    name = update().layout.names[0]
    broken = update().with_tensors({name: np.full_like(update().tensors[name], np.nan)}, client_id="f")
    rest = fc.aggregate([*cohort(), broken], fc.rules.Mean(), "parameters", on_nonfinite="exclude")
    with fc.Accumulator(fc.rules.Krum(1), tmp_path / "kept") as adding:
        adding.add(update())
        shown = [repr(adding)]
    shown += map(repr, (update(), fc.Update.from_bytes(update("").to_bytes()), update().layout, update().tensors))
    shown += map(repr, (cohort(), fc.Cohort([update()]), mean, rest, state))
    shown.append(repr(fc.Quantized.from_array(ROWS, "nf4")))
    of = "120 tensors, 960 bytes>"
    assert shown == [
        "<Accumulator by Krum(f=1, neighbors='paper'), n = 1: 0 bytes of memory>",
        f"<Update client 'a': {of}",
        f"<Update: {of}",
        f"<Layout: {of}",
        f"<TensorView of <Update client 'a': {of}>",
        "<Cohort of 5: client 'a' to 'e'>",
        "<Cohort of 1: client 'a'>",
        f"<Aggregate by Krum(f=1, neighbors='paper'), n = 5: <Update client 'global': {of}>",
        f"<Aggregate by Mean(), n = 5, 1 excluded: <Update client 'global': {of}>",
        "<ServerState of FedAdam, round 0: m, v of 120 tensors>",
        "<Quantized nf4 of float32 (5, 8): 29 bytes>",
    ]
