"""Cohorts in files that tests share, and tiles as narrow as a small budget would make them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

import fedcore as fc
from fedcore.dtypes import round_from_float64
from fedcore.rules.budget import GRAIN, Budget

#: tensors whose borders fall inside tiles and on them, an empty one, and three dtypes
SHAPES = {
    "a.weight": ((3, GRAIN), "float32"),
    "b.bias": ((5,), "float32"),
    "c.empty": ((0, 4), "float32"),
    "d.weight": ((5 * GRAIN - 5,), "float32"),
    "e.weight": ((101, 97), "float16"),
    "f.weight": ((GRAIN + 1,), "bfloat16"),
    "g.weight": ((77,), "float32"),
}


def update(i: int, shapes=SHAPES) -> fc.Update:
    rng = np.random.default_rng(i)
    tensors = {name: round_from_float64(rng.standard_normal(shape), dtype) for name, (shape, dtype) in shapes.items()}
    return fc.Update.from_tensors(tensors, client_id=f"client-{i}", num_examples=i + 1)


def written(folder: Path, updates: list[fc.Update]) -> list[Path]:
    folder.mkdir(exist_ok=True)
    paths = []
    for each in updates:
        paths.append(folder / f"{each.client_id}.safetensors")
        paths[-1].write_bytes(each.to_bytes())
    return paths


def six_clients(folder: Path) -> tuple[list[fc.Update], list[Path], fc.Update]:
    """Six updates, their files, and a reference."""
    updates = [update(i) for i in range(6)]
    return updates, written(folder, updates), update(99)


def narrowed(monkeypatch) -> Callable[[int], None]:
    """Tiles of so many grains, as a budget that is small against the cohort would make them."""

    def set_grains(grains: int) -> None:
        monkeypatch.setattr(Budget, "width", lambda self, rows, itemsize, d: min(grains * GRAIN, d))

    return set_grains
