"""A budget of one file, and inputs to charge for."""

from __future__ import annotations

import hashlib

import fedcore as fc

KEY = bytes(range(32))
A, B, C = (hashlib.sha256(name).hexdigest() for name in (b"a", b"b", b"c"))


def budget(folder, epsilon=8.0, **changed):
    settings = {"sealing_key": KEY, "noise_multiplier": 2.0, "dimension": 10} | changed
    return fc.privacy.Budget(folder / "people.budget", epsilon, 1e-5, **settings)
