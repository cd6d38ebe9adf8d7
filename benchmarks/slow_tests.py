"""Run the tests that are too long for every run (`pytest -m slow`) and keep their outcome in results/slow_tests.json.

They need the training extra, which the benchmarks' own environment lacks: `make proofs` runs .venv/bin/python.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

from measure import ROOT, save


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-m", "slow", "--timeout=3600", f"--junitxml={report}", "tests"]
        status = subprocess.run(command, cwd=ROOT, check=False).returncode
        cases = list(ElementTree.parse(report).iter("testcase"))
    outcomes = {}
    for case in cases:
        failed = [child.tag for child in case if child.tag in ("failure", "error", "skipped")]
        name = f"{case.get('classname')}.{case.get('name')}"
        outcomes[name] = {"outcome": failed[0] if failed else "passed", "seconds": float(case.get("time", 0))}
    save("slow_tests", {"tests": outcomes}, ("triton", "torch"), timed=False)
    sys.exit(status)


if __name__ == "__main__":
    main()
