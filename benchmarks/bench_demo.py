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

from measure import ROOT, save

IMPORT = "import time; start = time.perf_counter(); import fedcore; print(time.perf_counter() - start)"
#: the demo needs torch and what trains with it, which the benchmarks' own environment lacks
PYTHON = ROOT / ".venv" / "bin" / "python"


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
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    aggregation = sum(line["seconds"].get("aggregation", 0.0) for line in lines)  # a private arm does not tell
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
