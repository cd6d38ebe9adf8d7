"""Rows of the README's measured table about the kernels of LoRA in delta space."""

from __future__ import annotations

from collections.abc import Callable

Row = tuple[str, str, str, str]
Entries = Callable[[str], dict]
TORCH = "of torch's rate"


def kernel_rows(entries: Entries) -> list[Row]:
    """lora_delta_sum against torch and the published servers, lora_gram against the peak, the median against torch."""
    rows: list[Row] = []
    for shape, entry in entries("lora_delta_sum").items():
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
    for shape, entry in entries("lora_gram").items():
        if isinstance(entry, dict):
            found = f"{entry['seconds']:.1f} s, {entry['times the arithmetic bound']:.2f}× the arithmetic bound"
            rows.append((f"lora_gram, {shape}", found, "1.5×", "lora_gram"))
    results = entries("lora_delta_order")
    for shape, entry in results.items():
        if isinstance(entry, dict):
            for op in ("median", "trimmed mean"):
                found = f"{entry[f'fedcore, {op}']['times torch']:.0f}× torch.bmm and torch.median"
                rows.append((f"LoRA delta {op}, {shape}", found, "–", "lora_delta_order"))
    return rows


def truncate_rows(entries: Entries) -> list[Row]:
    """lora_truncate against dense SVD and QR, its errors, and a whole cohort in delta space."""
    rows: list[Row] = []
    for shape, entry in entries("lora_truncate").items():
        if shape.startswith("accuracy"):
            name = shape.removeprefix("accuracy, ")
            rows.append((f"lora_truncate, error, {name}", f"{entry['error']:.0e}", "1e-6", "lora_truncate"))
        elif shape.startswith("speed"):
            name = shape.removeprefix("speed, ")
            svd, qr = f"{entry['times dense SVD']:.0f}×", f"{entry['times QR core']:.1f}×"
            rows.append((f"lora_truncate, {name}, against SVD of the summed delta", svd, "500×", "lora_truncate"))
            rows.append((f"the same, against a QR core in fp64 NumPy, {name}", qr, "1.8×", "lora_truncate"))
    if found := entries("lora_delta_cohort"):
        what = f"mean in delta space of {found['clients']} adapters, {found['modules']} modules, bf16, from files"
        memory = f"{found['peak resident MB'] / 1000:.2f} GB"
        rows.append((f"{what}, truncated to rank 16", f"{found['seconds']:.0f} s", "60 s", "lora_delta_cohort"))
        rows.append((f"{what}: peak memory", memory, "2 GB", "lora_delta_cohort"))
        near = f"{100 * (found['residual / least possible, at most'] - 1):.0f} %"
        rows.append((f"{what}: residual above the optimum, at most", near, "–", "lora_delta_cohort"))
    return rows
