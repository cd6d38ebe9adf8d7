"""Rows of the README's measured table about the kernels of LoRA in delta space."""

from __future__ import annotations

import json
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
Row = tuple[str, str, str, str]
TORCH = "of torch's rate"


def _entries(name: str) -> dict:
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text())["results"] if path.exists() else {}


def kernel_rows() -> list[Row]:
    """lora_delta_sum against torch and the published servers, lora_gram against the peak, the median against torch."""
    rows: list[Row] = []
    for shape, entry in _entries("lora_delta_sum").items():
        if not isinstance(entry, dict):
            continue
        ours, weighted = entry["fedcore"], entry["fedcore, with the weight"]
        what = f"lora_delta_sum, {shape}"
        rate = f"{ours[TORCH]:.2f} of torch.matmul's rate ({ours['GFLOP/s']:.0f} GFLOP/s)"
        rows.append((what, rate, "0.8", "lora_delta_sum"))
        for peer, times in entry.items():
            if "server" in peer:
                own = weighted if "with the weight" in peer else ours
                rows.append((what, f"{times['median'] / own['median']:.1f}× {peer}", "–", "lora_delta_sum"))
        extra = entry["bytes that a call adds to the peak beside its output"]
        rows.append((f"{what}: memory beside the output", f"{extra / 1e6:.1f} MB", "–", "lora_delta_sum"))
    for shape, entry in _entries("lora_gram").items():
        if isinstance(entry, dict):
            found = f"{entry['seconds']:.1f} s, {entry['times the arithmetic bound']:.2f}× the arithmetic bound"
            rows.append((f"lora_gram, {shape}", found, "1.5×", "lora_gram"))
    results = _entries("lora_delta_order")
    for shape, entry in results.items():
        if isinstance(entry, dict):
            for op in ("median", "trimmed mean"):
                found = f"{entry[f'fedcore, {op}']['times torch']:.0f}× torch.bmm and torch.median"
                rows.append((f"LoRA delta {op}, {shape}", found, "–", "lora_delta_order"))
    return rows
