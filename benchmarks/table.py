"""Writes the README's measured table from the result files; nothing in it is typed by hand."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import table_lora_methods
from table_lora import kernel_rows, truncate_rows
from table_privacy import privacy_rows
from table_rules import file_rows, order_rows, rule_rows

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
BEGIN, END = "<!-- measured: written by benchmarks/table.py -->", "<!-- end of measured -->"
FAILURES_BEGIN, FAILURES_END = "<!-- failures: written by benchmarks/table.py -->", "<!-- end of failures -->"
Row = tuple[str, str, str, str]
Entries = Callable[[str], dict]


#: machines beside the one that the table is of: the folder of results/ that they have, and what the column is called
OTHERS = {"avx2": "without AVX-512"}


def load(name: str, folder: str = "") -> dict:
    """A result file, {} if there is none."""
    path = HERE / "results" / folder / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def weighted_sum_rows(entries: Entries) -> list[Row]:
    results, rows = entries("weighted_sum"), []
    for shape, entry in results.items():
        if not isinstance(entry, dict):
            continue
        if shape.startswith("peers"):
            seconds = {name: times["median"] for name, times in entry.items()}
            flower = (
                seconds["Flower aggregate_arrayrecords, from message bytes"] / seconds["fedcore, from message bytes"]
            )
            nvflare = seconds["NVFlare WeightedAggregationHelper"] / seconds["fedcore, from arrays"]
            rows.append(
                (
                    "weighted mean, 10 × 40M fp32, from Flower's message bytes",
                    f"{flower:.1f}× Flower",
                    "10×",
                    "weighted_sum",
                )
            )
            rows.append(
                (
                    "weighted mean, 10 × 40M fp32, one buffer a client",
                    f"{nvflare:.1f}× NVFlare's helper",
                    "2.5×",
                    "weighted_sum",
                )
            )
            continue
        goal = "0.75" if "bfloat16" in shape else "0.80"
        ours = entry["fedcore"]
        rows.append(
            (
                f"weighted_sum, {shape}",
                f"{ours['of roof']:.2f} of the roof ({ours['GB/s']:.1f} GB/s)",
                goal,
                "weighted_sum",
            )
        )
        if "numpy.matmul, ready matrix" in entry:
            ratio = entry["numpy.matmul, ready matrix"]["median"] / ours["median"]
            rows.append(
                (f"the same, against np.matmul on a ready matrix, {shape}", f"{ratio:.2f}×", "1.0×", "weighted_sum")
            )
    return rows


def squared_norms_rows(entries: Entries) -> list[Row]:
    results = entries("squared_norms")
    return [
        (
            f"squared_norms, {shape}",
            f"{e['fedcore']['of roof']:.2f} of the roof ({e['fedcore']['GB/s']:.1f} GB/s)",
            "–",
            "squared_norms",
        )
        for shape, e in results.items()
        if isinstance(e, dict)
    ]


def gram_rows(entries: Entries) -> list[Row]:
    results = entries("gram")
    rows = [
        (
            f"gram, {shape.removeprefix('speed, ')}",
            f"{e['fedcore']['times torch']:.2f}× torch X @ X.T; {e['fedcore']['of the bound']:.2f} of the bound by "
            f"fp32 multiply-adds and a read, which is at {e['times torch at the bound']:.2f}×",
            "2.0×" if "100 x" in shape else "–",
            "gram",
        )
        for shape, e in results.items()
        if shape.startswith("speed")
    ]
    for shape, e in results.items():
        if shape.startswith("relative error"):
            for name, value in e.items():
                goal = "1e-6" if name == "fedcore, honest centre" else "1" if "bound" in name else "–"
                rows.append((f"{shape}: {name}", f"{value:.1e}", goal, "gram"))
    return rows


def lora_rows(entries: Entries) -> list[Row]:
    if not (results := entries("lora_cohort")):
        return []
    mean = results["mean, bf16 rows"]["fedcore"]
    size = f"{results['tensors']} tensors, {results['parameters'] / 1e6:.0f}M parameters"
    name = f"mean of {results['clients']} LoRA adapters, {size}, bf16, from files"
    table = results["microseconds of Python per tensor and client, pointer table"]
    return [
        (name, f"{mean['of roof']:.2f} of the roof ({mean['GB/s']:.1f} GB/s)", "0.70", "lora_cohort"),
        ("Python per tensor and client, once headers are read", f"{table:.3f} µs", "0.5 µs", "lora_cohort"),
    ]


def demo_rows(entries: Entries) -> list[Row]:
    if not (results := entries("demo")):
        return []
    # a private arm's time is in the wall time; a file from before its journal was read has nothing of its aggregation
    silent = {line["arm"] for line in results["rounds"] if "aggregation" not in line["seconds"]}
    left_out = f" ({', '.join(sorted(silent))}'s aggregation left out)" if silent else ""
    return [
        ("`fedcore demo`, wall time, nothing cached", f"{results['wall_seconds']:.0f} s", "180 s", "demo"),
        ("`fedcore demo`, peak memory", f"{results['peak_bytes'] / 1e9:.2f} GB", "4 GB", "demo"),
        (
            "aggregation's share of the demo's wall time",
            f"{100 * results['aggregation_share']:.2f} %{left_out}",
            "5 %",
            "demo",
        ),
        ("`import fedcore`", f"{results['import_seconds']:.3f} s", "0.3 s", "demo"),
    ]


def rows_of(folder: str) -> list[Row]:
    """All rows from the result files of one folder."""

    def entries(name: str) -> dict:
        return load(name, folder).get("results", {})

    rows = [*weighted_sum_rows(entries), *squared_norms_rows(entries), *gram_rows(entries), *order_rows(entries)]
    rows += [*rule_rows(entries), *file_rows(entries), *lora_rows(entries), *kernel_rows(entries)]
    return [*rows, *truncate_rows(entries), *privacy_rows(entries), *demo_rows(entries)]


def numbered(rows: list[Row]) -> dict[tuple[str, int], Row]:
    """Rows by what they are about, and which one of those about the same it is."""
    seen: Counter[str] = Counter()
    found = {}
    for row in rows:
        found[row[0], seen[row[0]]] = row
        seen[row[0]] += 1
    return found


def table() -> str:
    rows, others = numbered(rows_of("")), [numbered(rows_of(folder)) for folder in OTHERS]
    heads = ["what", "measured", "goal", *OTHERS.values(), "file in benchmarks/results"]
    lines = [BEGIN, f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for key, (what, measured, goal, source) in rows.items():
        beside = [other[key][1] if key in other else "" for other in others]
        lines.append(f"| {' | '.join([what, measured, goal, *beside, f'{source}.json'])} |")
    for other in others:
        if strange := other.keys() - rows.keys():
            sys.exit(f"results: got {sorted(strange)[0][0]!r} on another machine alone, expected it in results/ too")
    sources = list(dict.fromkeys(source for *_, source in rows.values()))
    lines += ["", *taken_on(["", *OTHERS], sources), ""]
    lines += [
        "Medians: of 11 alternations where a figure is of the roof, a plain multi-stream read of the same rows by the "
        "same threads in the same run; else of as many as the file in benchmarks/ says, 5 to 7 for most, down to one "
        "where a run takes a minute. The command and the versions are in each file; `make bench` takes them all again, "
        "and with BENCHMARKS=--slow also the proofs about noise, shares and masks, which take minutes. Figures without "
        "AVX-512 are in a folder of the instruction set, avx2.",
        END,
    ]
    return "\n".join(lines)


def taken_on(folders: list[str], sources: list[str]) -> list[str]:
    """Where and when the figures are from: a line for each machine and day, with its files."""
    found: dict[str, list[str]] = {}
    for folder in folders:
        for source in sources:
            if not (record := load(source, folder)):
                continue
            machine = record["machine"]
            cores = "1 core" if machine["cores"] == 1 else f"{machine['cores']} cores"
            where = (
                f"{record['date']}: {machine['cpu']} (family-model-stepping {machine['family_model_stepping']}), "
                f"{cores}, {machine['isa']}, {machine['system']}"
            )
            found.setdefault(where, []).append(source)
    if len(found) == 1:
        return [f"Taken on {where}." for where in found]
    return [f"- Taken on {where}: {', '.join(names)}." for where, names in found.items()]


def failures_table() -> str:
    """What fails elsewhere and does not here, from results/peer_failures.json."""
    record = load("peer_failures")
    lines = [FAILURES_BEGIN, "| peer | what | there | fedcore |", "|---|---|---|---|"]
    for case in record["results"]["cases"]:
        there = case["there"] if case["fails there"] else f"not in this version: {case['there']}"
        cells = (case["peer"], case["what"], there, case["here"])
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join([*lines, "", f"Reproduced on {record['date']} by `{record['command']}`.", FAILURES_END])


def replaced(text: str, begin: str, end: str, table: str) -> str:
    """`text` with what stands between two marks replaced. Exits where they are missing."""
    if begin not in text or end not in text:
        sys.exit(f"README.md: got no lines {begin!r} and {end!r}, expected both; put them where the table belongs")
    return text[: text.index(begin)] + table + text[text.index(end) + len(end) :]


def main() -> None:
    text = replaced(README.read_text(), BEGIN, END, table())
    if (HERE / "results" / "peer_failures.json").exists():
        text = replaced(text, FAILURES_BEGIN, FAILURES_END, failures_table())
    if table_lora_methods.FILE.exists():
        text = replaced(text, table_lora_methods.BEGIN, table_lora_methods.END, table_lora_methods.section())
    README.write_text(text)


if __name__ == "__main__":
    main()
