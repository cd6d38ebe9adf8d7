"""Fuzz a target: `python tests/fuzzing/run.py TARGET --seconds 60`, guided by coverage where atheris is installed.

FEDCORE_FUZZ_EXTENSION names a build of the C kernels to use instead of the installed one: one with sanitizers, under
LD_PRELOAD of their runtime. An input that breaks a target is written beside the message.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import random
import sys
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))


def use_extension(path: str) -> None:
    """Load the C kernels from a file before anything imports the installed ones."""
    spec = importlib.util.spec_from_file_location("fedcore.native._fedcore", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules["fedcore.native._fedcore"] = module


def with_mutations(name: str, seconds: float, seed: int) -> int:
    """Run hostile variations of the target's valid inputs until time is up; how many were tried."""
    from fuzzing.mutations import vary
    from fuzzing.targets import TARGETS

    target, valid = TARGETS[name]
    for data in valid:
        target(data)
    rng, tried, end = random.Random(seed), 0, time.monotonic() + seconds
    while time.monotonic() < end:
        data = vary(rng.choice(valid), rng)
        try:
            target(data)
        except Exception:  # whatever it is: its input is kept, it is shown, and the run ends with an error
            path = Path(f"broken-{name}-{hashlib.sha256(data).hexdigest()[:12]}")
            path.write_bytes(data)
            traceback.print_exc()
            sys.exit(f"{name}: something other than a FedcoreError left the decoder; the input is in {path.resolve()}")
        tried += 1
    return tried


def with_coverage(name: str, seconds: float, seed: int) -> None:
    """Let atheris look for inputs by coverage; it ends the process itself."""
    import atheris

    with atheris.instrument_imports(include=["fedcore"]):
        from fuzzing.targets import TARGETS

    target, valid = TARGETS[name]
    corpus = Path("build") / "fuzzing" / name
    corpus.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(valid):
        (corpus / f"valid-{number}").write_bytes(data)
    options = [f"-max_total_time={int(seconds)}", f"-seed={seed}", "-max_len=8192", "-rss_limit_mb=2048"]
    options += [f"-artifact_prefix={corpus.parent}/broken-{name}-", str(corpus)]
    atheris.Setup([sys.argv[0], *options], target)
    atheris.Fuzz()


def main() -> None:
    """Parse the command line and fuzz."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--mutations", action="store_true", help="do without atheris")
    chosen = parser.parse_args()
    if extension := os.environ.get("FEDCORE_FUZZ_EXTENSION"):
        use_extension(extension)
    if not chosen.mutations and importlib.util.find_spec("atheris"):
        with_coverage(chosen.target, chosen.seconds, chosen.seed)
    print(f"{chosen.target}: {with_mutations(chosen.target, chosen.seconds, chosen.seed)} inputs, no finding")


if __name__ == "__main__":
    main()
