"""Whether updates can be added up as parameters: the same modules, ranks and scales, and the same tensors."""

from __future__ import annotations

from collections.abc import Sequence

from fedcore.errors import LayoutError
from fedcore.updates import Cohort, Update


def check_same_parameters(cohort: Cohort, references: Sequence[tuple[str, Update]], names: Sequence[str]) -> None:
    """Refuse what only delta space can take: ranks that differ, and factors of different scales."""
    first = cohort[0].modules
    for who, update in [*zip(names, cohort, strict=True), *references]:
        if update.layout == cohort[0].layout and update.scaling == cohort[0].scaling:
            continue
        found = update.modules
        for module in sorted(first.keys() ^ found.keys()):
            state = "missing, expected as in" if module in first else "extra, compared with"
            raise LayoutError(
                f"{who}: module {module!r} is {state} {names[0]}; use space='delta', in which clients may lack modules"
            )
        for module in sorted(first):
            for what in ("rank", "scale"):
                expected, got = getattr(first[module], what), getattr(found[module], what)
                if expected != got:
                    raise LayoutError(
                        f"{who}: module {module!r} has {what} {got:g}, expected {expected:g} like {names[0]}; "
                        f"parameters of another {what} cannot be added up: use space='delta', which takes any {what}"
                    )
    cohort.check_same_layout()
