"""Failures of other frameworks, reproduced in those that are installed, and fedcore on the same inputs.

The inputs, and the formulas of frameworks that cannot be installed beside these, are in tests/failures; each of
fedcore's findings is asserted in tests/test_peer_failures.py. Writes results/peer_failures.json; table.py makes the
README's table of it.
"""

from __future__ import annotations

import sys
import types
import warnings
from collections.abc import Callable
from importlib import metadata

import numpy as np
from measure import ROOT, save
from peers import flower_messages

sys.path.insert(0, str(ROOT / "tests"))

from failures import CASES, central, clipping, distances, precision
from failures.finding import Finding, guarded


def flower_distances(rows: np.ndarray) -> np.ndarray:
    from flwr.serverapp.strategy.multikrum import compute_distances

    return compute_distances([record["arrays"] for record in flower_messages(rows, [1] * len(rows))])


def flower_krum(rows: np.ndarray, f: int) -> int:
    from flwr.serverapp.strategy.multikrum import select_multikrum

    records = flower_messages(rows, [1] * len(rows))
    chosen = select_multikrum(records, num_malicious_nodes=f, num_nodes_to_select=1)[0]
    return next(i for i, record in enumerate(records) if record is chosen)


def flower_mean(rows: np.ndarray, counts: list[int]) -> np.ndarray:
    from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords

    return aggregate_arrayrecords(flower_messages(rows, counts), "num-examples")["w"].numpy()


def flower_bf16() -> Finding:
    import torch
    from flwr.app import ArrayRecord

    try:
        ArrayRecord(torch_state_dict={"w": torch.ones(3, dtype=torch.bfloat16)})
    except TypeError as error:
        return f"TypeError: {error}", True
    return "taken", False


def flower_clip(rows: list[np.ndarray], norm: float) -> None:
    from flwr.supercore.differential_privacy import clip_inputs_inplace

    clip_inputs_inplace(rows, norm)


def nvflare_mean(rows: np.ndarray, counts: list[int]) -> np.ndarray:
    """WeightedAggregationHelper over torch tensors of the rows' dtype."""
    import torch
    from nvflare.app_common.aggregators.weighted_aggregation_helper import WeightedAggregationHelper

    bits = rows if rows.dtype == np.float16 else rows.view(np.uint16).view(np.int16)
    helper = WeightedAggregationHelper()
    for i, (row, count) in enumerate(zip(bits, counts, strict=True)):
        tensor = torch.from_numpy(np.array(row))
        helper.add({"w": tensor if rows.dtype == np.float16 else tensor.view(torch.bfloat16)}, count, f"{i}", 0)
    return helper.get_result()["w"].double().numpy()


def byzfl() -> types.ModuleType:
    """byzfl's aggregators. Its benchmark, and scipy where it is missing, are stood in for: torch rows need neither."""
    sys.modules.setdefault("byzfl.benchmark", types.ModuleType("byzfl.benchmark"))
    try:
        import scipy.spatial  # noqa: F401
    except ImportError:
        spatial = types.ModuleType("scipy.spatial")
        spatial.distance = types.ModuleType("scipy.spatial.distance")  # type: ignore[attr-defined]
        sys.modules |= {"scipy": types.ModuleType("scipy"), "scipy.spatial": spatial}
    import byzfl

    return byzfl


def byzfl_nan() -> Finding:
    import torch

    rules = {"Median": byzfl().Median(), "Krum": byzfl().Krum(f=2), "GeometricMedian": byzfl().GeometricMedian()}
    return clipping.nan_rules_there(
        {name: lambda x, rule=rule: rule(torch.from_numpy(x)).numpy() for name, rule in rules.items()}
    )


def byzfl_distances(rows: np.ndarray) -> np.ndarray:
    """What Krum squares: the distances of byzfl's torch tools."""
    import torch

    byzfl()
    from byzfl.utils import torch_tools

    tensor = torch.from_numpy(rows)
    return (torch_tools.cdist(tensor, tensor) ** 2).numpy()


def byzfl_median() -> Finding:
    import torch

    found = byzfl().GeometricMedian(nu=0.1, T=3)(torch.from_numpy(central.short_rows()))
    return central.away_from_honest(found.numpy())


def byzfl_clipping(rows: np.ndarray) -> None:
    import torch

    byzfl().Clipping(c=1.0)(torch.from_numpy(rows))


#: case -> the framework itself on its inputs
INSTALLED: dict[str, tuple[str, Callable[[], Finding]]] = {
    "krum distances": ("flwr", lambda: distances.distances_there(flower_distances)),
    "krum selections": ("flwr", lambda: distances.selections(flower_krum)),
    "krum malicious": ("flwr", lambda: distances.malicious(flower_krum)),
    "krum self": ("flwr", lambda: distances.not_first(flower_distances)),
    "bf16 tensors": ("flwr", flower_bf16),
    "fp16 mean": ("flwr", lambda: precision.fp16_there(flower_mean)),
    "zero clipping": ("flwr", lambda: clipping.zero_there(flower_clip)),
    "nan clipping": ("flwr", lambda: clipping.nan_clip_there(flower_clip)),
    "fp16 counts": ("nvflare", lambda: precision.overflow_there(nvflare_mean)),
    "bf16 mean": ("nvflare", lambda: precision.bf16_there(nvflare_mean)),
    "nan rules": ("byzfl", byzfl_nan),
    "distances above 25": ("byzfl", lambda: distances.many_there(byzfl_distances)),
    "mutation": ("byzfl", lambda: clipping.mutation(byzfl_clipping)),
    "short rows": ("byzfl", byzfl_median),
}


def version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def main() -> None:
    warnings.simplefilter("ignore")
    results = []
    for case in CASES:
        package, reproduce = INSTALLED.get(case.name, (None, case.there))
        found = None if package is None else version(package)
        said, wrong = (reproduce if found else case.there)()
        here, failed = guarded(case.here)
        shown = f"{package} {found}" if found else f"{case.peer}'s formula, restated"
        results.append(
            {"peer": shown, "what": case.what, "there": said, "fails there": wrong, "here": here, "fails here": failed}
        )
    if failing := [entry["what"] for entry in results if entry["fails here"]]:
        sys.exit(f"peer_failures: fedcore fails too: {'; '.join(failing)}; nothing is written")
    packages = tuple(name for name in ("torch", "flwr", "nvflare", "byzfl") if version(name))
    save("peer_failures", {"cases": results}, packages, timed=False)


if __name__ == "__main__":
    main()
