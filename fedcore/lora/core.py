"""The core between two fixed factors: R with B = B₀ R, found in an adapter (B, A₀) that was rounded to its dtype."""

from __future__ import annotations

import numpy as np

from fedcore.errors import LayoutError
from fedcore.lora.cohort import Part

#: how far, in units of its dtype's spacing at 1 and relative to its norm, a client's B may be from B₀ R: B is rounded,
#: B₀ may have been before, and a product in fp32 is off by more than one rounding
_ROUNDINGS, _LEAST = 4, 1e-4


#: dtype -> (distance from 1 to the next number, least number above 0)
SPACING = {"float32": (2.0**-23, 2.0**-149), "float16": (2.0**-10, 2.0**-24), "bfloat16": (2.0**-7, 2.0**-133)}


def core_of(part: Part, fixed: Part, who: str, dtype: str = "float32") -> np.ndarray:
    """R (r, r) with b = B₀ R up to rounding of b to `dtype`, by least squares.

    Raises LayoutError naming `who` where A or the span of B moved.
    """
    if part.a.shape != fixed.a.shape or not np.array_equal(part.a, fixed.a):
        raise LayoutError(f"{who}: A differs from the fixed one; train the core alone (fedsb)")
    core = np.linalg.lstsq(fixed.b, part.b, rcond=None)[0]
    spacing, smallest = SPACING[dtype]
    allowed = max(_LEAST, _ROUNDINGS * spacing) * np.linalg.norm(part.b) + smallest * np.sqrt(part.b.size)
    if np.linalg.norm(part.b - fixed.b @ core) > allowed:
        raise LayoutError(f"{who}: B is no product of the fixed B and a core; train the core alone (fedsb)")
    return core
