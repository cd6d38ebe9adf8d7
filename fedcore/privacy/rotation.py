"""An update as whole numbers of a bounded norm, rotated and rounded at random: what clients add their noise to.

Kairouz, Liu and Steinke 2021, "The Distributed Discrete Gaussian Mechanism for Federated Learning with Secure
Aggregation", ICML, arXiv 2102.06387: Algorithm 1 without its noise, and the modulus of its sum.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from fedcore.dtypes import to_float64
from fedcore.errors import PrivacyError
from fedcore.gaussian_table import MOST
from fedcore.numbers import as_real, got, keep
from fedcore.privacy.limits import check_clip, check_multiplier, check_whole
from fedcore.privacy.seal import KEY_BYTES

#: the longest block of the rotation, and the chance of a wrap that the modulus is chosen for
LONGEST_BLOCK, MOST_WRAP = 1 << 16, 2.0**-40
#: messages are of 32 bits a number
MOST_MODULUS = 1 << 32
#: what fp32 may add to a norm between clip and rounding is less: (16 + 4) roundings of 2**-24 (`ops.hadamard`)
MARGIN = 2.0**-19


@dataclass(frozen=True)
class Rotation:
    """The integers of `fedcore.privacy.Distributed`, whose parameters these are. Raises PrivacyError naming one."""

    clip: float
    noise_multiplier: float
    clients: int
    fewest: int
    corrupt: int
    dimension: int
    seed: bytes
    beta: float = math.exp(-0.5)
    grid: float | None = None
    stream: str = "chacha20"

    def __post_init__(self) -> None:
        keep(self, clip=check_clip(self.clip), noise_multiplier=check_multiplier(self.noise_multiplier))
        for name in ("clients", "fewest", "corrupt", "dimension"):
            keep(self, **{name: check_whole(name, getattr(self, name), int(name != "corrupt"))})
        if not self.corrupt < self.fewest <= self.clients:
            raise PrivacyError(
                f"fewest: got {self.fewest} of {self.clients} clients with {self.corrupt} corrupt, expected more than "
                "the corrupt and at most all: only honest clients' noise counts"
            )
        if not isinstance(self.seed, bytes) or len(self.seed) != KEY_BYTES:
            raise PrivacyError(f"seed: expected {KEY_BYTES} public bytes, the same for all clients of a round")
        beta, grid = as_real(self.beta), as_real(self.grid)
        if beta is None or not 0 < beta < 1:
            raise PrivacyError(f"{got('beta', self.beta)}, expected a number in (0, 1)")
        if self.grid is not None and (grid is None or math.frexp(grid)[0] != 0.5):
            raise PrivacyError(f"{got('grid', self.grid)}, expected a power of two, or None to have it chosen")
        keep(self, beta=beta, grid=grid)
        if not 0.5 <= self.sigma <= MOST:
            raise PrivacyError(
                f"grid: {self.step:g} makes a client's noise {self.sigma:g} steps, expected 0.5 to {float(MOST):g}; "
                f"take a {'finer' if self.sigma < 0.5 else 'coarser'} grid"
            )
        # what a rounding may have before it is looked at; int64 adds its squares up
        if (squares := (self.clip / self.step + math.sqrt(self.padded)) ** 2) >= 2.0**63:
            raise PrivacyError(
                f"grid: {self.step:g} makes integers whose squares may add up to {squares:.3g}, expected less than "
                "2**63; take a coarser grid"
            )
        if self.modulus > MOST_MODULUS:
            raise PrivacyError(
                f"grid: {self.step:g} needs a modulus of {self.modulus}, above 2**32; take a coarser grid"
            )

    @property
    def block(self) -> int:
        """Numbers that are rotated together: a power of two."""
        return min(LONGEST_BLOCK, 1 << (self.dimension - 1).bit_length())

    @property
    def padded(self) -> int:
        """D: numbers of a message, a multiple of the block."""
        return -(-self.dimension // self.block) * self.block

    @cached_property
    def step(self) -> float:
        """The grid."""
        from fedcore.ops.clip_round import clip_grid

        if self.grid is not None:
            return float(self.grid)
        step = clip_grid(self.clip, self.padded)
        # noise of so many steps is there to spare: a step more costs next to nothing of the bound
        while self._sigma(step) >= 1 and (self._sigma(step) > MOST or self._modulus(step) > MOST_MODULUS):
            step *= 2
        return step

    @property
    def sigma(self) -> float:
        """Standard deviation of one client's noise, in grid steps."""
        return self._sigma(self.step)

    def _sigma(self, step: float) -> float:
        return self.noise_multiplier * self.clip / step / math.sqrt(self.fewest - self.corrupt)

    @property
    def bound(self) -> int:
        """The most that the squares of a client's integers, before noise, may add up to.

        min((c + √D)², c² + D/4 + √(2 ln 1/β) (c + √D/2)) with c = C/grid: a rounding exceeds it with probability at
        most β (the paper's Theorem 1), and none that exceeds it is sent.
        """
        c, root = self.clip / self.step, math.sqrt(self.padded)
        often = c**2 + root**2 / 4 + math.sqrt(2 * math.log(1 / self.beta)) * (c + root / 2)
        return math.floor(min((c + root) ** 2, often))

    @cached_property
    def modulus(self) -> int:
        """The least power of two at which a wrap is less likely than 2**-40 (`wrap_chance`)."""
        return self._modulus(self.step)

    def _modulus(self, step: float) -> int:
        return next(1 << bits for bits in range(1, 200) if self._wrap(1 << bits, step) <= MOST_WRAP)

    @property
    def wrap_chance(self) -> float:
        """Bound on the chance that some number of the sum of all clients leaves (−modulus/2, modulus/2).

        For updates that do not depend on the seed: a rotated number of the sum is sub-Gaussian with variance proxy
        (n C)²/block, as a sum of its numbers under random signs is; the noises with n σ² (Canonne, Kamath and Steinke
        2020, "The Discrete Gaussian for Differential Privacy"); and rounding moves each client by less than 1. Clients
        that choose updates to the seed can make the sum wrap, which spoils it and tells nothing more.
        """
        return self._wrap(self.modulus, self.step)

    def _wrap(self, modulus: int, step: float) -> float:
        n, c = self.clients, self.clip / step
        left = modulus / 2 - n * (1 + 2 * MARGIN * c)
        proxy = (n * c) ** 2 / self.block + n * self._sigma(step) ** 2
        return 1.0 if left <= 0 else min(1.0, 2 * self.padded * math.exp(-(left**2) / (2 * proxy)))

    @cached_property
    def _signs(self) -> np.ndarray:
        """(D,) fp32 of 1 and −1, bit by bit from ChaCha20 under the public seed."""
        from fedcore.ops import keystream

        stream = keystream(-(-self.padded // 8), self.seed, bytes(12), 0)
        return np.float32(1) - 2 * np.unpackbits(stream, count=self.padded, bitorder="little").astype(np.float32)

    def _rotated(self, update: Any) -> np.ndarray:
        """The update in grid steps, scaled to at most C, padded, signed and rotated: (D,) fp32, of norm at most C."""
        from fedcore.ops import hadamard
        from fedcore.ops.rows import as_rows

        table = as_rows([update]).table
        assert table is not None
        values = to_float64(table.columns(0, 0, self.dimension))
        padded = np.zeros(self.padded, np.float32)
        if np.isfinite(values).all() and (norm := float(np.linalg.norm(values))) > 0:
            scale = min(1.0, self.clip / norm) * (1 - MARGIN) / self.step
            padded[: self.dimension] = values * scale
        return hadamard(padded * self._signs, self.block)

    def _rounded(self, update: Any, key: bytes) -> np.ndarray:
        """(D,) int64: rounded at random without bias (to 2**-32), anew until the squares are within the bound."""
        from fedcore.ops import keystream

        rotated = self._rotated(update).astype(np.float64)
        down = np.floor(rotated)
        threshold = np.ceil((rotated - down) * 2.0**32)
        # each is thrown away with a chance of at most β: all of these with one of 2**-40
        for attempt in range(math.ceil(40 / -math.log2(self.beta))):
            words = keystream(4 * self.padded, key, attempt.to_bytes(12, "little"), 0).view("<u4")
            integers = down.astype(np.int64) + (words < threshold)
            if int((integers * integers).sum()) <= self.bound:
                return integers
        raise PrivacyError(
            f"update: no rounding had a norm within {math.sqrt(self.bound):g} steps; report this as a bug"
        )
