"""Distributed differential privacy: clients add the noise, and a server that adds masked messages sees the sum.

Kairouz, Liu and Steinke 2021, "The Distributed Discrete Gaussian Mechanism for Federated Learning with Secure
Aggregation", ICML, arXiv 2102.06387: Algorithms 1 and 2, and Theorem 1 for what it costs.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import math
from collections.abc import Collection
from dataclasses import astuple, dataclass, replace
from functools import cached_property
from numbers import Integral, Real
from typing import Any

import numpy as np

from fedcore.dtypes import to_float64
from fedcore.errors import PrivacyError, ShapeError
from fedcore.privacy.accountant import Charge, check_delta, check_relation, spent
from fedcore.privacy.budget import Noise
from fedcore.privacy.discrete_sums import concentrated
from fedcore.privacy.seal import KEY_BYTES, derived

#: the longest block of the rotation, and the chance of a wrap that the modulus is chosen for
LONGEST_BLOCK, MOST_WRAP = 1 << 16, 2.0**-40
#: what fp32 may add to a norm between clip and rounding is less: (16 + 4) roundings of 2**-24 (`ops.hadamard`)
MARGIN = 2.0**-19


@dataclass(frozen=True)
class Distributed:
    """Encode an update as noisy integers modulo `modulus`; decode their sum.

    clip              bound C on the norm of an update
    noise_multiplier  z: the honest noise in a sum has standard deviation at least z C on each number of it
    clients           the most clients in one sum, which the modulus is chosen for
    fewest            the fewest whose sum may be decoded
    corrupt           clients in a sum that may be with the server and leave their noise out
    dimension         d, numbers of an update
    seed              32 public bytes, the same for all clients of a round: the signs of the rotation
    beta              chance that a rounding is thrown away, at most; a larger one gives a smaller norm bound
    grid              what one integer is worth, a power of two; None: at most 0.02 C/√D. Coarser saves bits of the
                      modulus and costs norm (`bound`)
    stream            of the noise, as in `ops.discrete_gaussian`: "aes256ctr" is faster where processors have it

    Each client: scale the update to norm C, pad it to D numbers in blocks, give them random signs, rotate each block
    (`ops.hadamard`), so that no number is large; round each at random without bias to the grid, again until the norm of
    the integers, which is taken exactly, is at most `bound`; add discrete Gaussian noise of standard deviation
    z C/√(fewest − corrupt), from `ops.discrete_gaussian`. Privacy rests on the bound and the noise alone: nothing in
    floating point comes after the integers are checked. Rounding anew takes time that depends on the update, which a
    client should not let others measure. Raises PrivacyError naming a parameter.
    """

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
        for name, value in (("clip", self.clip), ("noise_multiplier", self.noise_multiplier)):
            if not isinstance(value, Real) or isinstance(value, bool) or not 0 < value < math.inf:
                raise PrivacyError(f"{name}: got {value!r}, expected a finite number above 0")
        for name in ("clients", "fewest", "corrupt", "dimension"):
            value = getattr(self, name)
            if not isinstance(value, Integral) or isinstance(value, bool) or value < (name != "corrupt"):
                raise PrivacyError(
                    f"{name}: got {value!r}, expected a whole number of at least {int(name != 'corrupt')}"
                )
        if not self.corrupt < self.fewest <= self.clients:
            raise PrivacyError(
                f"fewest: got {self.fewest} of {self.clients} clients with {self.corrupt} corrupt, expected more than "
                "the corrupt and at most all: only honest clients' noise counts"
            )
        if not isinstance(self.seed, bytes) or len(self.seed) != KEY_BYTES:
            raise PrivacyError(f"seed: expected {KEY_BYTES} public bytes, the same for all clients of a round")
        if not isinstance(self.beta, Real) or not 0 < self.beta < 1:
            raise PrivacyError(f"beta: got {self.beta!r}, expected a number in (0, 1)")
        if self.grid is not None and (not isinstance(self.grid, Real) or math.frexp(self.grid)[0] != 0.5):
            raise PrivacyError(f"grid: got {self.grid!r}, expected a power of two, or None to have it chosen")
        if not 0.5 <= self.sigma <= 1e6:
            raise PrivacyError(
                f"grid: {self.step:g} makes a client's noise {self.sigma:g} steps, expected 0.5 to 1e6; "
                f"take a {'finer' if self.sigma < 0.5 else 'coarser'} grid"
            )
        if self.modulus > 1 << 32:
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

    @property
    def step(self) -> float:
        """The grid."""
        from fedcore.ops.clip_round import clip_grid

        return clip_grid(self.clip, self.padded) if self.grid is None else float(self.grid)

    @property
    def sigma(self) -> float:
        """Standard deviation of one client's noise, in grid steps."""
        return self.noise_multiplier * self.clip / self.step / math.sqrt(self.fewest - self.corrupt)

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
        return next(1 << bits for bits in range(1, 200) if self._wrap(1 << bits) <= MOST_WRAP)

    @property
    def wrap_chance(self) -> float:
        """Bound on the chance that some number of the sum of all clients leaves (−modulus/2, modulus/2).

        For updates that do not depend on the seed: a rotated number of the sum is sub-Gaussian with variance proxy
        (n C)²/block, as a sum of its numbers under random signs is; the noises with n σ² (Canonne, Kamath and Steinke
        2020, "The Discrete Gaussian for Differential Privacy"); and rounding moves each client by less than 1. Clients
        that choose updates to the seed can make the sum wrap, which spoils it and tells nothing more.
        """
        return self._wrap(self.modulus)

    def _wrap(self, modulus: int) -> float:
        n, c = self.clients, self.clip / self.step
        left = modulus / 2 - n * (1 + 2 * MARGIN * c)
        proxy = (n * c) ** 2 / self.block + n * self.sigma**2
        return 1.0 if left <= 0 else min(1.0, 2 * self.padded * math.exp(-(left**2) / (2 * proxy)))

    def epsilon(
        self, delta: float, rounds: int = 1, neighbours: str = "add_remove", population: int | None = None
    ) -> float:
        """ε at δ of `rounds` decoded sums for a client in each, against a server and `corrupt` clients.

        No sampling counts: whoever runs the sum sees who takes part. It is `distributed_epsilon`, with the term of
        another stream. Raises PrivacyError naming the parameter, DependencyError.
        """
        check_delta(delta, population)
        check_relation("none", neighbours)
        return spent([replace(self.charge(neighbours), rounds=rounds)], delta, "none", neighbours)

    def charge(self, neighbours: str = "add_remove") -> Charge:
        """What one decoded sum costs, for a `Budget`: `epsilon` is what `spent` makes of such charges."""
        honest, norm = int(self.fewest - self.corrupt), math.sqrt(self.bound)
        change = 2.0 if neighbours == "replace_one" else 1.0
        rho = concentrated(self.sigma, honest, change * norm, self.padded)
        z, samples = change / math.sqrt(2 * rho), self.padded * honest
        return Charge(z, dimension=samples, concentrated=True, stream=self.stream)

    def encode(self, update: Any, noise: Noise | bytes) -> np.ndarray:
        """A client's message: (D,) uint32 below the modulus, to be masked and added modulo `modulus`.

        update  (dimension,) of fp32, fp16 or bf16: a change from the round's model. One that is not finite counts as
                zeros, so that its presence does not show
        noise   32 secret bytes of this client, as os.urandom gives them, where the sum is charged elsewhere; or the
                `Noise` of a `Budget` of its own, `budget.reserve(self.inputs_digest(update))`, opened by `charge`. The
                streams are keyed by it, these settings and the update together: another update draws other noise, the
                same one after a crash the same, so that a round needs a `seed` of its own

        The same message on every backend. Raises ShapeError, DTypeError, PrivacyError for the key or the charge.
        """
        from fedcore.ops import discrete_gaussian

        key, digest = noise.key if isinstance(noise, Noise) else noise, self.inputs_digest(update)
        if isinstance(noise, Noise):
            self._check_noise(noise, digest)
        if not isinstance(key, bytes) or len(key) != KEY_BYTES:
            got = f"{len(key)} bytes" if isinstance(key, bytes) else type(key).__name__
            raise PrivacyError(f"noise: got {got}, expected {KEY_BYTES} secret random bytes; make them with os.urandom")
        drawn = discrete_gaussian(
            self.padded, self.sigma, derived(key, f"distributed noise {digest}"), stream=self.stream
        )
        rounded = self._rounded(update, derived(key, f"distributed rounding {digest}"))
        return ((rounded + drawn) & (self.modulus - 1)).astype(np.uint32)

    def decode(self, sum: Any, included: Collection[Any]) -> np.ndarray:
        """The noisy sum of clipped updates: (dimension,) fp32. Divide it by a number fixed before, not by the count.

        sum       (D,) integers, the sum of messages modulo `modulus`
        included  the ids of the clients in it

        Raises PrivacyError where fewer are included than the noise was made for, which voids the round, or more than
        the modulus holds; ShapeError.
        """
        from fedcore.ops import hadamard

        count = len(set(included))
        if count != len(included):
            raise PrivacyError("included: a client is named twice; give the ids of the clients in the sum, each once")
        if count < self.fewest:
            raise PrivacyError(
                f"included: got {count} clients, expected at least {self.fewest}, for which the noise was made; the "
                "round is void"
            )
        if count > self.clients:
            raise PrivacyError(
                f"included: got {count} clients, expected at most {self.clients}, for which the modulus was made"
            )
        total = np.asarray(sum)
        if total.shape != (self.padded,) or total.dtype.kind not in "iu":
            raise ShapeError(f"sum: got {total.dtype} of shape {total.shape}, expected ({self.padded},) integers")
        residues = (total.astype(np.uint64) & np.uint64(self.modulus - 1)).astype(np.int64)
        lifted = np.where(residues >= self.modulus // 2, residues - self.modulus, residues)
        turned = hadamard((lifted * self.step).astype(np.float32), self.block) * self._signs
        return turned[: self.dimension]

    @cached_property
    def _signs(self) -> np.ndarray:
        """(D,) fp32 of 1 and −1, bit by bit from ChaCha20 under the public seed."""
        from fedcore.ops import keystream

        stream = keystream(-(-self.padded // 8), self.seed, bytes(12), 0)
        return np.float32(1) - 2 * np.unpackbits(stream, count=self.padded, bitorder="little").astype(np.float32)

    def inputs_digest(self, update: Any) -> str:
        """SHA-256 (hex) of what a message depends on, for the `Budget.reserve` of a client's own budget."""
        from fedcore.ops.rows import as_rows

        rows = as_rows([update])
        if rows.d != self.dimension or rows.table is None:
            raise ShapeError(f"update: got {rows.d} numbers, expected {self.dimension} in main memory")
        settings = [value.hex() if isinstance(value, bytes) else value for value in astuple(self)]
        text = json.dumps([*settings, rows.dtype], default=float)
        values = np.ascontiguousarray(rows.table.columns(0, 0, rows.d))
        return hashlib.sha256(text.encode() + values.tobytes()).hexdigest()

    def _check_noise(self, noise: Noise, digest: str) -> None:
        if not hmac.compare_digest(noise.inputs_digest, digest):
            raise PrivacyError(
                "noise: was reserved for another update or other settings; reserve for inputs_digest of this one, "
                "which is another charge"
            )
        needed = self.charge(noise.neighbours)
        if noise.noise_multiplier > needed.noise_multiplier or noise.sampling_rate != 1 or not noise.concentrated:
            raise PrivacyError(
                f"noise: charged at noise multiplier {noise.noise_multiplier:g} and sampling rate "
                f"{noise.sampling_rate:g}, expected at most {needed.noise_multiplier:g}, 1 and a concentrated charge; "
                "open the budget with what `charge` says"
            )
        if noise.stream != self.stream:
            raise PrivacyError(
                f"noise: charged for stream {noise.stream!r}, and this message draws from {self.stream!r}; open the "
                "budget with the same"
            )
        if noise.dimension < needed.dimension:
            raise PrivacyError(
                f"noise: charged for {noise.dimension} samples, and a sum has {needed.dimension}; open the budget "
                f"with dimension={needed.dimension}"
            )

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
