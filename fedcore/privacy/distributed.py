"""Distributed differential privacy: clients add the noise, and a server that adds masked messages sees the sum.

Kairouz, Liu and Steinke 2021, "The Distributed Discrete Gaussian Mechanism for Federated Learning with Secure
Aggregation", ICML, arXiv 2102.06387: Algorithms 1 and 2, and Theorem 1 for what it costs.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection
from dataclasses import astuple, dataclass, replace
from typing import Any

import numpy as np

from fedcore.errors import PrivacyError, ShapeError
from fedcore.privacy.accountant import Charge, check_delta, check_relation, spent
from fedcore.privacy.budget import Noise
from fedcore.privacy.charged import check_charged
from fedcore.privacy.discrete_sums import charge_of_sum
from fedcore.privacy.rotation import Rotation
from fedcore.privacy.seal import KEY_BYTES, derived


@dataclass(frozen=True)
class Distributed(Rotation):
    """Encode an update as noisy integers modulo `modulus`; decode their sum.

    clip              bound C on the norm of an update
    noise_multiplier  z: the honest noise in a sum has standard deviation at least z C on each number of it
    clients           the most clients in one sum, which the modulus is chosen for
    fewest            the fewest whose sum may be decoded
    corrupt           clients in a sum that may be with the server, or look themselves, whose noise does not count
    dimension         d, numbers of an update
    seed              32 public bytes, the same for all clients of a round: the signs of the rotation
    beta              chance that a rounding is thrown away, at most; a larger one gives a smaller norm bound
    grid              what one integer is worth, a power of two; None: at most 0.02 C/√D, or what keeps noise within
                      10⁹ steps and the modulus within 2³². Coarser saves bits of the modulus and costs norm (`bound`)
    stream            of the noise, as in `ops.discrete_gaussian`: "aes256ctr" is faster where processors have it

    Each client: scale the update to norm C, pad it to D numbers in blocks, give them random signs, rotate each block
    (`ops.hadamard`), so that no number is large; round each at random without bias to the grid, again until the norm of
    the integers, which is taken exactly, is at most `bound`; add discrete Gaussian noise of standard deviation
    z C/√(fewest − corrupt), from `ops.discrete_gaussian`. Privacy rests on the bound and the noise alone: nothing in
    floating point comes after the integers are checked. Rounding anew takes time that depends on the update, which a
    client should not let others measure. Raises PrivacyError naming a parameter.
    """

    def epsilon(
        self, delta: float, rounds: int = 1, neighbours: str = "add_remove", population: int | None = None
    ) -> float:
        """ε at δ of `rounds` decoded sums for a client in each, against a server and `corrupt` clients.

        inf where δ is less than what samplers and masks take.

        A client of the sum knows its own noise: towards one, which reads what is decoded, ε holds with `corrupt` at
        least 1. Of δ each round takes 2^-40, the chance that masks fail (`fc.secagg.Parameters`). No sampling counts:
        whoever runs the sum sees who takes part. It is `distributed_epsilon`, with the term of another stream. Raises
        PrivacyError naming the parameter, DependencyError.
        """
        check_delta(delta, population)
        check_relation("none", neighbours)
        return spent([replace(self.charge(neighbours), rounds=rounds)], delta, "none", neighbours)

    def charge(self, neighbours: str = "add_remove") -> Charge:
        """What one decoded sum costs, for a `Budget`: `epsilon` is what `spent` makes of such charges."""
        honest, norm = self.fewest - self.corrupt, math.sqrt(self.bound)
        return charge_of_sum(self.sigma, honest, norm, self.padded, neighbours=neighbours, stream=self.stream)

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
            check_charged(noise, digest, self.charge(noise.neighbours), "another update", whole_rate=True)
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

    def inputs_digest(self, update: Any) -> str:
        """SHA-256 (hex) of what a message depends on, for the `Budget.reserve` of a client's own budget.

        update  (dimension,) of any row dtype, in main memory

        Raises ShapeError for another size or memory, DTypeError for another dtype.
        """
        from fedcore.ops.rows import as_rows

        rows = as_rows([update])
        if rows.d != self.dimension or rows.table is None:
            raise ShapeError(f"update: got {rows.d} numbers, expected {self.dimension} in main memory")
        settings = [value.hex() if isinstance(value, bytes) else value for value in astuple(self)]
        text = json.dumps([*settings, rows.dtype], default=float)
        values = np.ascontiguousarray(rows.table.columns(0, 0, rows.d))
        return hashlib.sha256(text.encode() + values.tobytes()).hexdigest()
