"""How many neighbours, and what threshold: the least that keep both bounds, and what each costs.

Bell, Bonawitz, Gascón, Lepoint and Raykova 2020, "Secure Single-Server Aggregation with (Poly)Logarithmic Overhead",
CCS, ePrint 2020/704: §3 for a server that follows the protocol, §4 for one that does not.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from fedcore.privacy.secagg.tails import binomial, gap_in_circle, hypergeometric, least_closed, log2_sum

#: log2 of the chance that a round is not secure, and that one with the dropouts expected is void
SECURITY, FAILURE = -40.0, -20.0
#: x coordinates of GF(2^8), 0 being the secret's
MOST_SHARES = 255
#: clients up to which each shares with all others (Bonawitz et al. 2017): a sparse graph would save little
SMALL = 64


class Targets(NamedTuple):
    """log2 of the most that the chances of one sum may be: that it is not secure, and that it is void."""

    security: float = SECURITY
    failure: float = FAILURE

    @classmethod
    def of(cls, groups: int) -> Targets:
        """Of each of so many groups' sums. All of them together have half of SECURITY and FAILURE: the other half is
        for more corrupt members or dropouts in a group than it allows for (`group_parameters`)."""
        share = 1 + math.log2(groups) if groups > 1 else 0.0
        return cls(SECURITY - share, FAILURE - share)


ALONE = Targets()


@dataclass(frozen=True)
class Bounds:
    """log2 of the chances of what must not happen, for n clients with k neighbours and threshold t.

    exposed   some honest client has so many corrupt neighbours that they could unmask it
    apart     a sum over few clients could be learned
    void      some neighbourhood falls below the threshold, or honest draws make one larger than a client accepts
    honest    fewest honest clients in a sum that a malicious server can learn, whatever it does; with one that follows
              the protocol those of a round in which as many drop out as expected
    """

    exposed: float
    apart: float
    void: float
    honest: int

    @property
    def insecure(self) -> float:
        """log2 of the chance that the round is not secure."""
        return log2_sum([self.exposed, self.apart])

    def hold(self, targets: Targets = ALONE) -> bool:
        """Whether security and failure are as small as asked, with two honest clients in every sum."""
        return self.insecure <= targets.security and self.void <= targets.failure and self.honest >= 2


def bounds(
    adversary: str,
    n: int,
    corrupt: int,
    dropout: int,
    k: int,
    t: int,
    in_degree: int,
    away: int = 0,
    targets: Targets = ALONE,
) -> Bounds:
    """The chances, exactly summed; unions over clients by adding. away: dropouts, where they may be more than
    expected, after which a server that follows the protocol may still give a sum."""
    each, full = math.log2(n), k == n - 1
    void = each + hypergeometric(n - 1, dropout, k, k - t + 1)
    if adversary == "malicious":
        exposed = each + hypergeometric(n - 1, corrupt, k, 2 * t - k)
        if not full:
            void = log2_sum([void, each + binomial(n - 1, k / (n - 1), in_degree + 1)])
        apart = targets.security - 1
        honest = least_closed(n, corrupt, k, t, apart) if exposed <= apart else 0
    else:
        exposed = each + hypergeometric(n - 1, corrupt, k, t)
        apart = -math.inf if full else gap_in_circle(n, corrupt + max(dropout, away), k // 2)
        honest = n - corrupt - dropout
    return Bounds(min(0.0, exposed), apart, min(0.0, void), honest)


def most_in_degree(n: int, k: int, failure: float = FAILURE) -> int:
    """How many others may draw a client, but for a chance of 2**failure / 2 over all clients."""
    sizes = range(k, n)
    enough = bisect_left(
        sizes, True, key=lambda most: math.log2(n) + binomial(n - 1, k / (n - 1), most + 1) <= failure - 1
    )
    return sizes[enough]


def most_threshold(n: int, dropout: int, k: int, failure: float = FAILURE) -> int:
    """The highest threshold that dropouts allow, 0 where none does."""
    return next(
        (t for t in range(k, 0, -1) if math.log2(n) + hypergeometric(n - 1, dropout, k, k - t + 1) <= failure - 1), 0
    )


@lru_cache(maxsize=256)
def search(
    adversary: str, n: int, corrupt: int, dropout: int, away: int = 0, targets: Targets = ALONE
) -> tuple[int, int, int] | None:
    """(neighbours, threshold, most in-degree): all others in a small cohort, else the fewest, else all others.

    The threshold is the highest that the dropouts allow. None where nothing holds.
    """
    full = (n - 1, most_threshold(n, dropout, n - 1, targets.failure), n - 1) if n - 1 <= MOST_SHARES else None
    if full and not (full[1] and bounds(adversary, n, corrupt, dropout, *full, away, targets).hold(targets)):
        full = None
    return full if full and n <= SMALL else _sparse(adversary, n, corrupt, dropout, away, targets) or full


def _sparse(
    adversary: str, n: int, corrupt: int, dropout: int, away: int, targets: Targets
) -> tuple[int, int, int] | None:
    """The fewest neighbours of a sparse graph."""
    malicious = adversary == "malicious"
    # a client draws k and is drawn by about k: of more than half, masks with all others cost the same, if they can be
    most = (n - 2) // 2 if malicious and n - 1 <= MOST_SHARES else min(MOST_SHARES, n - 2)
    for k in range(2, most + 1, 1 if malicious else 2):
        t = most_threshold(n, dropout, k, targets.failure)
        if not t or (malicious and 2 * t <= k):
            continue
        in_degree = most_in_degree(n, k, targets.failure) if malicious else k
        if bounds(adversary, n, corrupt, dropout, k, t, in_degree, away, targets).hold(targets):
            return k, t, in_degree
    return None


def most_dropout(adversary: str, n: int, corrupt: int, most: int, honest: int) -> int:
    """The most dropouts at which parameters exist that keep sums of all but `most` clients whole, with so many honest
    ones certain against a malicious server."""

    def enough(dropout: int) -> bool:
        found = search(adversary, n, corrupt, dropout, most)
        return found is not None and (
            adversary != "malicious" or bounds(adversary, n, corrupt, dropout, *found).honest >= honest
        )

    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if enough(middle) else (low, middle - 1)
    return low
