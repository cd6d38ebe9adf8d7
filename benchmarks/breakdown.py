"""How far attackers move each rule, against its published bound, over f of n; writes results/breakdown.json and .svg.

For each rule of tests/oracles/robustness.py, each attack and each f that its bound is for, the largest error over three
kinds of honest rows and some draws, as a fraction of the bound: 1 is the bound. The plain mean is beside them.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec

import numpy as np
from measure import RESULTS, ROOT, save

sys.path.insert(0, str(ROOT / "tests"))

from oracles.robustness import Bound, bounds, krum
from test_breakdown import ATTACKERS, D, alike, apart, can_attack, cohort, heavy

import fedcore as fc

N, DRAWS = 21, 5
MEAN = Bound("Mean", lambda f: fc.rules.Mean(), "variance", krum, "none: Krum's bound, for scale")


def worst(bound: Bound, f: int) -> dict[str, float]:
    """Attack -> the largest error / bound."""
    rule = bound.make(f)
    found = {}
    for attack in (attack for attack in ATTACKERS if can_attack(attack, f)):
        cases = [(made(seed, N - f), seed) for made in (alike, apart, heavy) for seed in range(DRAWS)]
        found[repr(attack)] = max(
            bound.excess(rule(cohort(honest, attack, f, seed), server=honest[0]), honest, N) for honest, seed in cases
        )
    return found


def measured() -> dict[str, dict]:
    """Rule -> its bound and, for each f, the worst fraction of it by attack."""
    results: dict[str, dict] = {}
    for bound in [*bounds(), MEAN]:
        by_f = {f: worst(bound, f) for f in range(1, bound.largest(N) + 1)}
        results[bound.name] = {
            "measure": bound.measure,
            "source": bound.source,
            # a distance follows from the honest rows of each draw
            "bound": None if bound.measure == "distance" else {f: bound.limit(N, f, D) for f in by_f},
            "error over bound": by_f,
        }
    return results


def plot(results: dict[str, dict]) -> None:
    """One panel a rule: f against the fraction of the bound, a line an attack, the bound at 1."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "fedcore"
    from matplotlib import pyplot

    columns = 4
    lines = -(-len(results) // columns)
    figure, axes = pyplot.subplots(lines, columns, figsize=(14, 3 * lines), sharex=True, sharey=True, squeeze=False)
    for axis in axes.flat[len(results) :]:
        axis.set_visible(False)
    for axis, (name, entry) in zip(axes.flat, results.items(), strict=False):
        by_f = entry["error over bound"]
        for k, attack in enumerate(map(repr, ATTACKERS)):
            style = ("-", "--", ":")[k // 10]
            at = [f for f in by_f if attack in by_f[f]]
            axis.plot(at, [max(by_f[f][attack], 1e-6) for f in at], style, color=f"C{k % 10}", label=attack)
        axis.axhline(1.0, color="black", linewidth=1)
        axis.set_yscale("log")
        axis.set_ylim(3e-7, 1e3)  # the mean leaves the picture
        axis.set_title(name, fontsize=9)
        axis.grid(alpha=0.3)
    for axis in axes[:, 0]:
        axis.set_ylabel("error / bound")
    for axis in axes[-1]:
        axis.set_xlabel(f"attackers among {N} clients")
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=4, fontsize=8)
    figure.suptitle("Error of each rule under attack, as a fraction of its published bound (black line)")
    figure.tight_layout(rect=(0, 0.14 if lines < 4 else 0.1, 1, 0.98))
    figure.savefig(RESULTS / "breakdown.svg", metadata={"Date": None})


def main() -> None:
    if find_spec("matplotlib") is None:
        sys.exit("breakdown: matplotlib is not installed; install fedcore[bench] or fedcore[train]")
    results = measured()
    largest = {
        name: max(max(found.values()) for found in entry["error over bound"].values())
        for name, entry in results.items()
    }
    broken = [name for name, value in largest.items() if value > 1 + 1e-6 and name != "Mean"]
    if broken:
        sys.exit(f"breakdown: {', '.join(broken)} passed the bound; nothing is written")
    assert np.isfinite(list(largest.values())).all()
    save("breakdown", {"clients": N, "largest error over bound": largest, "rules": results}, timed=False)
    plot(results)


if __name__ == "__main__":
    main()
