"""Adapters that were taken out of their base (PiSSA, OLoRA, CorDA, LoftQ): what they stand on.

Such an adapter starts as a part s · B₀ · A₀ of the weights, and the layer keeps the rest. PEFT saves the adapter alone
and takes the part out of the base again when it loads it, by the adapter's own rank, and in OLoRA its scale. So
adapters stand on one rest, and a result on theirs, only where ranks and scales are the same. `pissa_niter_N` draws at
random there: two loads of one adapter differ in PEFT itself, by what N iterations leave of the error.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from fedcore.errors import LayoutError
from fedcore.numbers import shown

if TYPE_CHECKING:
    from fedcore.updates.pairs import LoraPair
    from fedcore.updates.update import Update

#: initialisations, as `init_lora_weights` begins in small letters
FROM_BASE = ("corda", "loftq", "olora", "pissa")
#: the one whose part follows from gradients of a client's own data: each stands on another rest, so none is taken
FROM_GRADIENTS = "lora_ga"
#: initialisation -> the table of adapter_config that the rest depends on too, and its keys with PEFT's defaults
_TABLES: dict[str, tuple[str, dict[str, Any]]] = {
    "corda": ("corda_config", {"corda_method": "ipm"}),
    "loftq": ("loftq_config", {"loftq_bits": 4, "loftq_iter": 1}),
}
#: what to do about adapters of several ranks or scales
_REMEDY = "train all at one rank and alpha, or save them as plain LoRA (path_initial_model_for_weight_conversion)"


def taken_from_base(config: Mapping[str, Any]) -> str | None:
    """The initialisation that took an adapter out of its base, such as 'pissa'; None for one that starts at Δ = 0."""
    begun = config.get("init_lora_weights")
    return begun.lower() if isinstance(begun, str) and begun.lower().startswith(FROM_BASE) else None


def refuse_gradients(config: Mapping[str, Any]) -> None:
    """Raise LayoutError for an adapter whose base has lost a part that only the client knows."""
    begun = config.get("init_lora_weights")
    if isinstance(begun, str) and begun.lower().startswith(FROM_GRADIENTS):
        raise LayoutError(
            f"adapter_config: init_lora_weights {shown(begun)} is not supported: gradients of this client's data say "
            "what it took out of the base; save it as plain LoRA (path_initial_model_for_weight_conversion)"
        )


def begun_by(updates: Iterable[Update]) -> str | None:
    """`taken_from_base` of the first of these that has one."""
    return next(filter(None, (taken_from_base(update.adapter_config) for update in updates)), None)


def settings_of_rest(config: Mapping[str, Any]) -> dict[str, Any]:
    """What of adapter_config, ranks and alphas aside, tells the rest of the base, by key."""
    begun = taken_from_base(config)
    found: dict[str, Any] = {"init_lora_weights": begun}
    for name, (key, defaults) in _TABLES.items():
        table = config.get(key) or {}
        if begun is None or not begun.startswith(name):
            found[key] = None
        else:
            found[key] = defaults | {k: table[k] for k in defaults if k in table} if isinstance(table, dict) else table
    return found


def check_same_rest(updates: Iterable[tuple[str, Update]]) -> None:
    """Raise LayoutError naming two of (who, update) whose ranks or scales took two parts out of their base.

    Updates without a config are as the first one that has one says.
    """
    given = [(who, update) for who, update in updates if update.modules]
    begun = begun_by(update for _, update in given)
    seen: dict[str, tuple[str, LoraPair]] = {}
    for who, update in given if begun else ():
        for module, pair in update.modules.items():
            first, like = seen.setdefault(module, (who, pair))
            for what in ("rank", "scale"):
                got, expected = getattr(pair, what), getattr(like, what)
                if got != expected:
                    raise LayoutError(
                        f"{who}: module {shown(module)} has {what} {got:g}, expected {expected:g} (begun by {begun!r}, "
                        f"which takes a part of that {what} out of the base) like {first}; {_REMEDY}"
                    )


def refuse_taken(what: str, update: Update, why: str) -> None:
    """Raise LayoutError for an adapter that was taken out of its base, where one that starts at 0 is needed."""
    if begun := taken_from_base(update.adapter_config):
        raise LayoutError(f"{what}: is begun by {begun!r}, {why}; set init_lora_weights=True")
