"""Results that take hours: a run is kept when it is done, and not made again while the texts are split as they were."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

from measure import recorded

from fedcore.federation.config_file import parse_config
from fedcore.federation.data import load_texts
from fedcore.federation.learner import text_digest


def split() -> str:
    """Digest of which of the demo's texts are trained on and which are held out."""
    text = resources.files("fedcore.cli").joinpath("demo.toml").read_text(encoding="utf-8")
    texts = load_texts(parse_config(text, "demo.toml", Path()))
    return text_digest([*(text for client in texts.clients for text in client.texts), "", *texts.held_out])


def load(file: Path, now: str) -> dict[str, Any]:
    """The runs of `file` that were made on the split of now; none where it was another."""
    if not file.exists():
        return {}
    record = json.loads(file.read_text())
    return record["results"] if record.get("split") == now else {}


def keep(file: Path, runs: dict[str, Any], now: str, packages: tuple[str, ...]) -> None:
    """Write what is done, whole or not at all."""
    part = file.with_suffix(".part")
    part.write_text(json.dumps(recorded(file.stem, runs, packages) | {"split": now}, indent=1) + "\n")
    part.replace(file)
