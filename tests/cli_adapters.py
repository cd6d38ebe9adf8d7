"""Adapters in folders for tests of `fedcore aggregate`: how they are made, damaged, aggregated and refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fedcore.cli import main
from fedcore.updates import Update

MODULE = "base_model.model.layer"
A, B = f"{MODULE}.lora_A.weight", f"{MODULE}.lora_B.weight"


def adapter(
    folder: Path, name: str, shift: float = 0.0, rank: int = 2, base: str = "the-base", examples: int = 1
) -> Path:
    """A PEFT directory whose B is that of all others plus a shift."""
    generator = np.random.default_rng(0)
    tensors = {A: generator.normal(size=(rank, 8)), B: generator.normal(size=(6, rank)) + shift}
    update = Update.from_tensors(
        {key: value.astype(np.float32) for key, value in tensors.items()},
        scaling={MODULE: 2.0},
        base=base,
        num_examples=examples,
        client_id=name,
        adapter_config={
            "peft_type": "LORA",
            "r": rank,
            "lora_alpha": 2 * rank,
            "target_modules": ["layer"],
            "base_model_name_or_path": base,
        },
    )
    update.to_peft(folder / name)
    return folder / name


def five_adapters(folder: Path) -> list[str]:
    """Four that agree, with 1 to 4 examples, and one far away."""
    shifts = [0.0, 0.01, 0.02, 0.03, 50.0]
    return [str(adapter(folder, f"a{i}", shift, examples=i + 1)) for i, shift in enumerate(shifts)]


def run(*arguments: object) -> int:
    return main(["aggregate", *map(str, arguments)])


def shift_of(directory: Path) -> float:
    """How far the result's Δ is from the first adapter's, in units of B's shift."""
    update = Update.from_peft(directory)
    delta = update.tensors[B].astype(float) @ update.tensors[A]
    generator = np.random.default_rng(0)
    a, b = generator.normal(size=(2, 8)), generator.normal(size=(6, 2))
    return float(np.linalg.norm(delta - b @ a) / np.linalg.norm(np.ones((6, 2)) @ a))


def refused(capsys, folder: Path, *arguments: object) -> str:
    """The one line of a refusal; nothing was written."""
    before = sorted(folder.rglob("*"))
    code = run(*arguments)
    shown = capsys.readouterr()
    assert code != 0
    assert shown.out == ""
    lines = shown.err.splitlines()
    assert len(lines) == 1, shown.err
    assert lines[0].startswith("fedcore: error: ")
    assert sorted(folder.rglob("*")) == before
    return lines[0]


def poison(path: str) -> None:
    """NaN in the last value of the file."""
    file = Path(path) / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-4] + np.float32(np.nan).tobytes())
