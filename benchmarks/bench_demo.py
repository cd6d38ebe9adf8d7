"""`fedcore demo` from nothing cached: wall time, peak memory, aggregation's share; and the time of `import fedcore`."""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from measure import ROOT, save

IMPORT = "import time; start = time.perf_counter(); import fedcore; print(time.perf_counter() - start)"
#: the demo needs torch and what trains with it, which the benchmarks' own environment lacks
PYTHON = ROOT / ".venv" / "bin" / "python"


def timed_lines(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl of a run, with the time of each phase; of a private arm that is in its private journal alone."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        hidden = run / "private" / "rounds" / f"{line['arm']}-{line['round']:03d}.json"
        if hidden.is_file():
            line["seconds"] = json.loads(hidden.read_text())["seconds"] | line["seconds"]
    return lines


def main() -> None:
    imports = [
        float(subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True).stdout)
        for _ in range(11)
    ]
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        start = time.perf_counter()
        subprocess.run(
            [str(PYTHON), "-m", "fedcore.cli", "demo", "--output", str(run), "--json"],
            env={**os.environ, "FEDCORE_CACHE": f"{folder}/cache"},
            capture_output=True,
            text=True,
            check=True,
        )
        wall = time.perf_counter() - start
        lines = timed_lines(run)
    aggregation = sum(line["seconds"]["aggregation"] for line in lines)
    save(
        "demo",
        {
            "wall_seconds": wall,
            "peak_bytes": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024,
            "aggregation_seconds": aggregation,
            "aggregation_share": aggregation / wall,
            "import_seconds": statistics.median(imports),
            "rounds": lines,
        },
    )


if __name__ == "__main__":
    main()
