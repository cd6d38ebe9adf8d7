"""The scales of an update's modules, which nobody changes."""

from __future__ import annotations

from typing import Any, NoReturn


class Scales(dict[str, float]):
    """module -> scale, read-only: what an update says in memory is what it sends. `dict` of it is free to change."""

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError(
            "scaling: an update's scales are read-only; make another, Update.from_tensors(update.tensors, scaling=...)"
        )

    __setitem__ = __delitem__ = __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles and copies are made whole, not item by item."""
        return Scales, (dict(self),)
