"""Factors: where the LoRA factors of one module lie, for all clients, without stacking them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedcore.dtypes import name_of, to_float64


class Factors:
    """n clients' factors of one module, checked by whoever makes this: contiguous arrays, read in place.

    b   n arrays (d_out, r_i), of fp32, fp16 or bf16 each; r_i may be 0
    a   n arrays (r_i, d_in)
    """

    def __init__(self, b: Sequence[np.ndarray], a: Sequence[np.ndarray]):
        self.b, self.a = list(b), list(a)
        self.d_out, self.d_in = b[0].shape[0], a[0].shape[1]
        self.ranks = np.array([len(factor) for factor in a], np.int64)
        #: addresses and dtypes of all factors, the form that the C kernels take
        self.pointers = [np.array([x.ctypes.data for x in side], np.uint64) for side in (self.b, self.a)]
        self.dtypes = [[name_of(x.dtype) for x in side] for side in (self.b, self.a)]

    @property
    def n(self) -> int:
        """Clients."""
        return len(self.b)

    def wide(self, client: int) -> tuple[np.ndarray, np.ndarray]:
        """(b, a) of one client as fp64, exactly."""
        return to_float64(self.b[client]), to_float64(self.a[client])
