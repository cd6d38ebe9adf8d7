"""FLTrust: clients count as far as they point where the server's own update points."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedcore.errors import RuleError
from fedcore.rules.geometry import Geometry
from fedcore.rules.rule import Coefficients, Rule

#: a change shorter than this share of the server's is not brought to its length: coefficients are fp32 numbers, and the
#: reference's would round by more than it is trusted to
SHORTEST = 2.0**-12


@dataclass(frozen=True)
class FLTrust(Rule):
    """r + Σ_i t_i (‖g_0‖ / ‖g_i‖) g_i / Σ_i t_i with g_i = x_i − r and t_i = max(0, cos(g_i, g_0)).

    r is the row that the clients moved from, and g_0 the server's own change, trained on a small clean data set and
    passed as `server=`. A client that points away from it does not count, and every other is brought to its length.
    Who moved by less than 2⁻¹² ‖g_0‖ does not count either: fp32 coefficients cannot bring that to length. Where no
    client counts the result is r. A cosine that the Gram does not tell from 0 is formed again from the data in fp64,
    and is 0 where it lies within what that rounds. Weights are ignored.

    Breakdown point: n of n, as far as the server's data are clean: all clients together move the result by no more than
    ‖g_0‖ and 2⁻¹⁰ of it for rounding, however far they lie. Needs n ≥ 1. Cost: the Gram matrix of n + 2 rows and one
    sum. Cao, Fang, Liu and Gong 2021, "FLTrust: Byzantine-robust Federated Learning via Trust Bootstrapping", NDSS,
    section IV, Algorithm 2.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"gram"})
    uses: ClassVar[tuple[str, ...]] = ("reference", "server")
    origin: ClassVar[str | None] = "reference"

    def decide(self, geometry: Geometry, weights: np.ndarray | None) -> Coefficients:
        """Trust and rescaling as coefficients; the rest is on the reference. `weights` do not count."""
        n = geometry.clients
        reference, server = n, n + 1
        squares = geometry.squared_distances()
        length = np.sqrt(squares[reference])
        if length[server] == 0:
            raise RuleError("FLTrust: the server's update equals the reference, expected a change; train it first")
        before = geometry.redone
        moved = length[:n] > SHORTEST * length[server]
        cosine = np.where(moved, geometry.cosines(server, reference), 0.0)
        trust = np.clip(cosine, 0.0, 1.0)
        values = np.zeros(n + geometry.references)
        values[reference] = 1.0
        if trust.any():
            scale = np.divide(length[server], length[:n], out=np.zeros(n), where=moved)
            values[:n] = trust / np.cumsum(trust)[-1] * scale
            values[reference] -= np.cumsum(values[:n])[-1]
        reasons = {
            int(i): f"not trusted: its change has cosine {cosine[i]:.3g} with the server's"
            if moved[i]
            else f"not trusted: its change is {length[i] / length[server]:.3g} times as long as the server's, too "
            "short to be brought to that length"
            for i in np.flatnonzero(trust == 0)
        }
        return Coefficients(values, reasons, geometry.redo_report(geometry.redone - before), {"trust": trust})
