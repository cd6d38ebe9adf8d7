"""Rows of the README's measured table about order statistics, rules and cohorts in files."""

from __future__ import annotations

from collections.abc import Callable

Row = tuple[str, str, str, str]
Entries = Callable[[str], dict]
#: times np.median, and of the roof, by number of rows
MEDIAN_GOALS = {10: ("110×", "0.65"), 100: ("100×", "0.45"), 1000: ("30×", "–")}


def _slower(entry: dict, peer: str) -> str | None:
    found = [times for name, times in entry.items() if name.startswith(peer)]
    return f"{found[0]['times slower than fedcore']:.0f}×" if found else None


def order_rows(entries: Entries) -> list[Row]:
    """Each order statistic: of the roof at every n, against NumPy and ByzFL, and 16-bit rows against fp32."""
    rows: list[Row] = []
    for op in ("median", "trimmed_mean", "mean_around_median"):
        results = entries(op)
        for shape, entry in results.items():
            if not isinstance(entry, dict) or "float32" not in shape:
                continue
            n = int(shape.removeprefix("peers, ").split(" ")[0])
            times_goal, roof_goal = MEDIAN_GOALS.get(n, ("–", "–")) if op == "median" else ("12×", "–")
            if shape.startswith("peers"):
                numpy, theirs = _slower(entry, "numpy"), _slower(entry, "ByzFL")
                if numpy:
                    rows.append((f"{op}, {n} rows, 400 MB", f"{numpy} NumPy", times_goal, op))
                if theirs:
                    goal = "100×" if op == "mean_around_median" else "–"
                    rows.append((f"{op}, {n} rows, 400 MB", f"{theirs} ByzFL", goal, op))
            else:
                ours = entry["fedcore"]
                measured = f"{ours['of roof']:.2f} of the roof ({ours['GB/s']:.1f} GB/s)"
                rows.append((f"{op}, {shape}", measured, roof_goal, op))
        if "100 rows, bfloat16" in results:
            wide, half = results["100 rows, float32"]["fedcore"], results["100 rows, bfloat16"]["fedcore"]
            ratio = f"{half['rows/s'] / wide['rows/s']:.2f}× the rows/s of fp32"
            rows.append((f"{op}, 100 rows, bfloat16", ratio, "1.6×" if op == "median" else "–", op))
    return rows


def rule_rows(entries: Entries) -> list[Row]:
    """Rules against their parts and against ByzFL."""
    rows: list[Row] = []
    for shape, entry in entries("rules").items():
        if not isinstance(entry, dict):
            continue
        for name, times in entry.items():
            if not isinstance(times, dict):
                continue
            if "over its parts" in times:
                redone = f", {times['pairs redone']} pairs redone" if "pairs redone" in times else ""
                goal = "1.30×" if shape.startswith("mixing") else "1.25×"
                rows.append((f"{name}, {shape}", f"{times['over its parts']:.2f}× its parts{redone}", goal, "rules"))
            if "times ByzFL" in times:
                goal = "15×" if "Geometric" in name else "10×" if name == "fedcore Krum" else "–"
                what = f"{name.removeprefix('fedcore ')}, {shape.removeprefix('against ByzFL, ')}"
                measured = f"{times['times ByzFL']:.1f}× ByzFL"
                if "times ByzFL at the bound" in times:
                    at_most = f"{times['times ByzFL at the bound']:.1f}×"
                    measured += f"; {times['of the bound']:.2f} of the fp32 bound, which is at {at_most}"
                rows.append((what, measured, goal, "rules"))
    for shape, entry in entries("weighted_sums").items():
        if isinstance(entry, dict) and shape.startswith("mixing"):
            share = f"{entry['fedcore']['of the fp64 peak']:.2f} of the fp64 peak"
            rows.append((f"weighted_sums, {shape}", share, "0.70" if "100 x" in shape else "–", "weighted_sums"))
    return rows


def file_rows(entries: Entries) -> list[Row]:
    """Cohorts in files larger than the budget: of what `cat` reads, and the peak of resident memory."""
    rows: list[Row] = []
    for shape, entry in entries("outofcore").items():
        if isinstance(entry, dict):
            speed = f"{entry['of cat']:.2f} of cat ({entry['fedcore GB/s']:.1f} GB/s)"
            peak = f"{entry['peak resident MB'] / 1000:.2f} GB"
            rows.append((f"from files: {shape}", speed, "0.7", "outofcore"))
            rows.append((f"from files: {shape}: peak memory", peak, "the budget", "outofcore"))
    return rows
