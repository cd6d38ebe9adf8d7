"""Run every benchmark, one after the other and alone, then write the README's table from their result files.

Without names all but the slow ones; `--slow` runs those after them, which takes minutes more.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
NAMES = (
    "weighted_sum",
    "squared_norms",
    "gram",
    "squared_distances",
    "weighted_sums",
    "sign_counts",
    "clip_noise",
    "hadamard",
    "exact_sum",
    "median",
    "trimmed_mean",
    "mean_around_median",
    "dequantising",
    "rules",
    "growth",
    "outofcore",
    "lora_cohort",
    "lora_delta_sum",
    "lora_gram",
    "lora_delta_order",
    "lora_truncate",
    "lora_delta_cohort",
    "keystream",
    "discrete_gaussian",
    "mask_add",
    "shamir",
    "secagg",
    "central",
    "demo",
)
#: what is measured beside speed: scripts under their own names
CHECKS = ("peer_failures", "breakdown", "correlated_noise", "privacy_audit", "crowding")
#: proofs that take minutes each and whose answer changes with the sampler alone
SLOW = ("sampler_proof", "constant_time", "constant_time_shares")

if __name__ == "__main__":
    slow = SLOW if "--slow" in sys.argv else ()
    names = [name for name in sys.argv[1:] if name != "--slow"] or [*NAMES, *CHECKS]
    for name in [*names, *slow]:
        script = f"{name}.py" if name in CHECKS + SLOW else f"bench_{name}.py"
        subprocess.run([sys.executable, str(HERE / script)], check=True)
    subprocess.run([sys.executable, str(HERE / "table.py")], check=True)
