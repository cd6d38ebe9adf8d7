"""PEFT's adapter_config.json: the scale and rank of each module read from it, and a config written that says them.

A module's rank is the entry of rank_pattern that matches it, else r; its alpha that of alpha_pattern, else lora_alpha;
its scale alpha / rank, or alpha / sqrt(rank) with use_rslora (Hu et al. 2021, "LoRA", section 4.1; Kalajdzievski 2023,
"A rank stabilization scaling factor for fine-tuning with LoRA", theorem 3.2).
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from fedcore.errors import LayoutError
from fedcore.numbers import shown
from fedcore.updates.pairs import LoraPair

#: PEFT's wrappers, which its patterns and target_modules do not see
PREFIX = "base_model.model."

#: settings under which an update is not scale · B · A for each module
_REFUSED = {
    "use_dora": "DoRA's magnitudes make the update non-linear in B·A",
    "lora_bias": "a bias on lora_B belongs to no factor of the update",
    "target_parameters": "its factors hold the experts of one layer side by side",
    "use_qalora": "QA-LoRA pools the input of A",
    "use_bdlora": "block-diagonal factors are stored without their zeros",
    "kasa_config": "KaSA's diagonal stands between B and A",
    "arrow_config": "Arrow routes between adapters",
    "monteclora_config": "MonteCLoRA samples its factors",
}
#: patterns are regular expressions that a client chose and that we run: a bound on the steps of their backtracking
_MOST_STEPS = 2.0**28
_REPEATED_GROUP, _OPEN_REPEAT, _CHOICE = re.compile(r"\)[*+{]"), re.compile(r"[*+]|\{\d*,\d*\}"), re.compile(r"[?|]")
#: a config is a few levels deep
_DEEPEST = 32


def canonical_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config as plain JSON values in one order: keys sorted, PEFT's sets (target_modules) as sorted lists.

    The order inside rank_pattern and alpha_pattern stays, since the first match counts. Raises LayoutError for what
    JSON cannot hold.
    """
    try:
        plain = json.loads(json.dumps(dict(config), default=_set_as_list, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise LayoutError(f"adapter_config: not JSON ({shown(str(error))}); pass PeftConfig.to_dict()") from None
    level = [plain]
    for _ in range(_DEEPEST):
        level = [inner for value in level for inner in (value.values() if isinstance(value, dict) else value)
                 if isinstance(inner, (dict, list))]  # fmt: skip
    if level:
        raise LayoutError(f"adapter_config: is nested more than {_DEEPEST} levels deep; correct it")
    for key in ("target_modules", "exclude_modules"):
        if isinstance(plain.get(key), list):
            plain[key] = sorted(plain[key], key=str)
    return {key: plain[key] for key in sorted(plain)}


def _set_as_list(value: object) -> list:
    if isinstance(value, (set, frozenset)):
        return sorted(value, key=str)
    raise TypeError(f"a value of type {type(value).__name__}")


def refuse_variants(config: Mapping[str, Any]) -> None:
    """Raise LayoutError naming the first setting under which LoRA factors would not mean scale · B · A."""
    if config.get("peft_type", "LORA") != "LORA":
        raise LayoutError(f"adapter_config: got peft_type {shown(config['peft_type'])}, expected LORA for LoRA factors")
    for key, why in _REFUSED.items():
        if config.get(key):
            raise LayoutError(f"adapter_config: {key} is not supported: {why}; train a plain LoRA adapter")


def config_scales(config: Mapping[str, Any], pairs: Mapping[str, LoraPair]) -> dict[str, float]:
    """The scale of each module as PEFT computes it.

    Raises LayoutError naming what is missing or not usable, or the tensor whose rank differs from the config's.
    """
    r, alpha = _rank(config, "r", config.get("r")), _alpha(config, "lora_alpha", config.get("lora_alpha"))
    ranks = {key: _rank(config, f"rank_pattern {shown(key)}", v) for key, v in _patterns(config, "rank_pattern")}
    alphas = {key: _alpha(config, f"alpha_pattern {shown(key)}", v) for key, v in _patterns(config, "alpha_pattern")}
    paths = {module: module.removeprefix(PREFIX) for module in pairs}
    compiled = _compile([*ranks, *alphas], paths)
    scales = {}
    for module, pair in pairs.items():
        rank = _matched(paths[module], ranks, compiled, r)
        if rank != pair.rank:
            raise LayoutError(
                f"tensor {shown(pair.a)}: has rank {pair.rank}, adapter_config says {rank} (r or rank_pattern); "
                "the config belongs to another adapter"
            )
        scales[module] = _matched(paths[module], alphas, compiled, alpha) / _divisor(config, rank)
    return scales


def _matched(path: str, values: Mapping[str, Any], compiled: Mapping[str, re.Pattern[str]], default: Any) -> Any:
    """The value of the first pattern that matches the end of the path from a dot on, as PEFT chooses it."""
    return next((value for key, value in values.items() if compiled[key].match(path)), default)


def _divisor(config: Mapping[str, Any], rank: int) -> float:
    return math.sqrt(rank) if config.get("use_rslora") else float(rank)


def _patterns(config: Mapping[str, Any], key: str) -> list[tuple[str, Any]]:
    value = config.get(key) or {}
    if not isinstance(value, dict):
        raise LayoutError(f"adapter_config: got {key} {shown(value)}, expected an object of module pattern to number")
    return list(value.items())


def _compile(patterns: list[str], paths: Mapping[str, str]) -> dict[str, re.Pattern[str]]:
    longest = max(map(len, paths.values()), default=1)
    steps = 0.0
    compiled = {}
    for pattern in patterns:
        # each open repeat may stop anywhere in the path, PEFT's own in front included; each choice doubles the ways
        repeats, choices = len(_OPEN_REPEAT.findall(pattern)), len(_CHOICE.findall(pattern))
        steps += len(paths) * 2.0 ** min((1 + repeats) * math.log2(longest + 1) + choices, 1000)
        if _REPEATED_GROUP.search(pattern) or steps > _MOST_STEPS:
            raise LayoutError(
                f"adapter_config: pattern {shown(pattern)} could take very long to match; name the modules"
            )
        try:
            compiled[pattern] = re.compile(rf"(.*\.)?({pattern})$")
        except (re.error, RecursionError, OverflowError) as error:
            why = shown(str(error))
            raise LayoutError(f"adapter_config: pattern {shown(pattern)} is not valid ({why}); correct it") from None
    return compiled


def _rank(config: Mapping[str, Any], key: str, value: object) -> int:
    if type(value) is not int or not 1 <= value < 1 << 31:
        raise LayoutError(f"adapter_config: got {key} {shown(value)}, expected a whole number of at least 1")
    return value


def _alpha(config: Mapping[str, Any], key: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < abs(value) < 1e30:
        raise LayoutError(f"adapter_config: got {key} {shown(value)}, expected a number that is finite and not zero")
    return float(value)


def given_scales(scaling: Mapping[str, Any], pairs: Mapping[str, LoraPair]) -> dict[str, float]:
    """The scales of a caller or message, one for each module. Raises LayoutError naming what has none."""
    for module in sorted(scaling.keys() ^ pairs.keys(), key=str):
        if module in pairs:
            raise LayoutError(f"tensor {shown(pairs[module].a)}: its module has no scale; add scaling[{shown(module)}]")
        raise LayoutError(
            f"scaling: module {shown(module)} has no LoRA factors among the tensors; remove it or add them"
        )
    scales = {}
    for module in pairs:
        value = scaling[module]
        number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
        if not number or not 0 < abs(value) < 1e30 or not math.isfinite(value):
            raise LayoutError(
                f"scaling: got {shown(value)} for module {shown(module)}, expected a finite number, not zero"
            )
        scales[module] = float(value)
    return scales


def fitted_config(config: Mapping[str, Any], pairs: Mapping[str, LoraPair]) -> dict[str, Any]:
    """The config with its ranks and alphas brought in line with the pairs; unchanged if it says the same already."""
    try:
        if config_scales(config, pairs) == {module: pair.scale for module, pair in pairs.items()}:
            return dict(config)
    except LayoutError:
        pass  # it says something else about these pairs, so it is brought in line below
    alphas = {m: _alpha_of(pair.scale, _divisor(config, pair.rank)) for m, pair in pairs.items()}
    ranks = {m: pair.rank for m, pair in pairs.items()}
    r, alpha = _most_common(ranks.values()), _most_common(alphas.values())
    fitted = dict(config) | {"peft_type": "LORA", "r": r, "lora_alpha": alpha}
    fitted["rank_pattern"] = {_exactly(m): rank for m, rank in ranks.items() if rank != r}
    fitted["alpha_pattern"] = {_exactly(m): value for m, value in alphas.items() if value != alpha}
    return canonical_config(fitted)


def _exactly(module: str) -> str:
    """The pattern that matches this module and no other."""
    return "^" + re.escape(module.removeprefix(PREFIX))


def _most_common(values: Any) -> Any:
    """The most frequent value; of equally frequent ones the smallest."""
    return min(Counter(values).items(), key=lambda item: (-item[1], item[0]))[0]


def _alpha_of(scale: float, divisor: float) -> float | int:
    """An alpha with alpha / divisor == scale, whole if one is; the nearest where rounding allows none."""
    near = scale * divisor  # rounded once: no other alpha is closer, so none gives the scale where this does not
    alpha = whole if (whole := float(round(near))) / divisor == scale else near
    return int(alpha) if alpha.is_integer() else alpha


def minimal_config(pairs: Mapping[str, LoraPair], dense: tuple[str, ...], base: str | None) -> dict[str, Any]:
    """The least that PEFT needs to load these tensors.

    Targets are given by full path, and the modules of the dense tensors as modules_to_save.
    """
    targets = [module.removeprefix(PREFIX) for module in pairs]
    saved = {name.removeprefix(PREFIX).rpartition(".")[0] for name in dense}
    # a bias beside an adapter is in the wrapped layer, which PEFT fills by name without being told
    saved = {module for module in saved if module and module.removesuffix(".base_layer") not in targets}
    plain = {
        "base_model_name_or_path": base,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "lora_dropout": 0.0,
        "modules_to_save": sorted(saved) or None,
        "peft_type": "LORA",
        "target_modules": targets,
        "task_type": None,
        "use_rslora": False,
    }
    return fitted_config(canonical_config(plain), pairs)
