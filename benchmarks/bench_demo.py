"""`fedcore demo` from nothing cached: wall time, peak memory, aggregation's share; and the time of `import fedcore`."""

from __future__ import annotations

import json
import os
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


def resident(session: int) -> int:
    """Bytes of memory that the processes of a session hold together, what they share counted once for each."""
    pages = 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if os.getsid(int(folder.name)) == session:
                pages += int((folder / "statm").read_text().split()[1])
        except OSError:
            continue  # ended meanwhile
    return pages * os.sysconf("SC_PAGE_SIZE")


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
        start, peak = time.perf_counter(), 0
        demo = subprocess.Popen(
            [str(PYTHON), "-m", "fedcore.cli", "demo", "--output", str(run), "--json"],
            env={**os.environ, "FEDCORE_CACHE": f"{folder}/cache"},
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            while demo.poll() is None:
                peak = max(peak, resident(demo.pid))
                time.sleep(0.2)
            wall = time.perf_counter() - start
        finally:
            demo.kill()  # in a session of its own, which Ctrl+C does not reach
        if demo.returncode:
            raise SystemExit(f"the demo ended with exit code {demo.returncode}")
        lines = timed_lines(run)
    aggregation = sum(line["seconds"]["aggregation"] for line in lines)
    save(
        "demo",
        {
            "wall_seconds": wall,
            "peak_bytes": peak,
            "aggregation_seconds": aggregation,
            "aggregation_share": aggregation / wall,
            "import_seconds": statistics.median(imports),
            "rounds": lines,
        },
    )


if __name__ == "__main__":
    main()
