"""What members that crowd others reach: honest members left out, and how likely a void round becomes.

Attack: all corrupt members draw as many of the same victims each, these equally often, and the rest of their holders by
chance. For every attack of a grid the pairs are cut as a server does it (`secagg.crowding`). The chance of a void round
is added up over members as `secagg.search` does it for a round that nobody attacks, but for the holders that each has
lost: as many drop out as may, or as are left out if those are more, whoever they are.
"""

from __future__ import annotations

import sys
from collections import Counter

import numpy as np
from measure import ROOT, require_green, save

sys.path.insert(0, str(ROOT / "tests"))

from secagg.crowds import draws

from fedcore.privacy.secagg.neighbourhoods import Neighbourhoods
from fedcore.privacy.secagg.parameters import Parameters
from fedcore.privacy.secagg.search import FAILURE
from fedcore.privacy.secagg.tails import hypergeometric, log2_sum

#: clients, corrupt, dropout: where no more are corrupt than may drop out, and where more are
COHORTS = (
    (150, 0.1, 0.1), (400, 0.1, 0.1), (400, 0.2, 0.2), (1000, 0.1, 0.1), (1000, 0.05, 0.2), (2000, 0.1, 0.1),
    (400, 0.2, 0.1), (1000, 0.1, 0.05), (1000, 0.3, 0.05),
)  # fmt: skip
VICTIMS = (1, 2, 5, 10, 20, 50, 100, 200)
SEEDS = 3


def outcome(p: Parameters, drawn: dict[int, list[int]]) -> dict[str, float]:
    """What a server makes of these draws."""
    around = Neighbourhoods(p)
    for i, holders in drawn.items():
        around.add(i, holders)
    going = around.going(set(drawn))
    left_out, honest = set(drawn) - around.holders.keys(), [i for i in going if i >= p.corrupt]
    cut = {i: len(set(drawn[i]) - set(around.holders[i]) - left_out) for i in going}
    drop = max(p.dropout, p.clients - len(going))
    chances = [
        np.log2(count) + hypergeometric(p.clients - 1, drop, p.neighbours - lost, p.neighbours - lost - p.threshold + 1)
        for lost, count in Counter(cut.values()).items()
    ]
    return {
        "over-drawn": sum(count > p.in_degree for count in Counter(h for of in drawn.values() for h in of).values()),
        "honest left out": p.clients - p.corrupt - len(honest),
        "honest that lost holders": sum(cut[i] > 0 for i in honest),
        "corrupt left out": p.corrupt - (len(going) - len(honest)),
        "void": log2_sum(chances),
    }


def attacks(p: Parameters) -> list[tuple[int, int]]:
    """(victims, how many of them each draws), by doubling up to all that one can draw."""
    found = []
    for victims in VICTIMS:
        most = min(p.neighbours, victims)
        each = sorted({most, *(1 << i for i in range(most.bit_length()) if 1 << i <= most)})
        found += [(victims, count) for count in each if victims < p.clients - p.corrupt - p.neighbours]
    return found


def cohort(n: int, corrupt: float, dropout: float) -> dict[str, object]:
    """The worst of all attacks on one cohort, and which it was."""
    p = Parameters.choose(n, length=1, bound=1, corrupt=corrupt, dropout=dropout, adversary="malicious")
    plain = np.log2(n) + hypergeometric(n - 1, p.dropout, p.neighbours, p.neighbours - p.threshold + 1)
    worst: dict[str, tuple[float, str]] = {}
    tried = 0
    for victims, each in attacks(p):
        for seed in range(SEEDS):
            drawn = draws(n, p.neighbours, p.corrupt, victims, [seed, victims, each], each)
            found = outcome(p, drawn)
            if not found.pop("over-drawn"):
                continue
            tried += 1
            for name, value in found.items():
                if name not in worst or value > worst[name][0]:
                    worst[name] = value, f"{victims} victims, {each} drawn by each"
    return {
        "clients": n,
        "corrupt": p.corrupt,
        "dropout": p.dropout,
        "neighbours": p.neighbours,
        "threshold": p.threshold,
        "in_degree": p.in_degree,
        "attacks that over-drew": tried,
        "log2 of the chance of a void round, not attacked": plain,
        "worst": {name: {"value": value, "attack": attack} for name, (value, attack) in worst.items()},
    }


def main() -> None:
    require_green("crowding", "secagg/test_crowding.py")
    results: dict[str, object] = {"asked: log2 of the chance of a void round": FAILURE, "seeds": SEEDS}
    results["cohorts"] = [cohort(*each) for each in COHORTS]
    save("crowding", results, timed=False)


if __name__ == "__main__":
    main()
