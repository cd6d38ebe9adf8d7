"""Rows of the README's measured table about keystreams and noise."""

from __future__ import annotations

import json
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
Row = tuple[str, str, str, str]


def _entries(name: str) -> dict:
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text())["results"] if path.exists() else {}


def keystream_rows() -> list[Row]:
    """Streams added to a vector, one core, and both streams written out against OpenSSL's."""
    results, rows = _entries("keystream"), []
    for stream, goal in (("AES-256-CTR", "14 GB/s"), ("ChaCha20", "5 GB/s")):
        if f"{stream}, 16 keys added" not in results:
            continue
        size = f"{results['bytes'] / 2**20:.0f} MiB of uint32, one core"
        for keys, aim in (("16 keys", goal), ("1 key", "–")):
            rate = results[f"{stream}, {keys} added"]["GB/s"]
            rows.append((f"keystream_add, {stream}, {keys}, {size}", f"{rate:.1f} GB/s", aim, "keystream"))
        ours, peer = (results[f"{stream}, {way}"]["GB/s"] for way in ("into fresh memory", "cryptography"))
        found = f"{ours:.1f} GB/s (OpenSSL through cryptography, into a ready buffer: {peer:.1f})"
        rows.append((f"keystream, {stream}, into fresh memory, one core", found, "–", "keystream"))
    return rows
