"""What a run ran on: facts for its folder and for `fedcore doctor`."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedcore.errors import BackendError, StorageError
from fedcore.ops.rows import available_cores

if TYPE_CHECKING:
    from fedcore.federation.config import Config

PACKAGES = (
    "numpy", "cffi", "cryptography", "safetensors", "pydantic", "typer", "rich",
    "torch", "triton", "transformers", "peft", "bitsandbytes", "datasets", "dp-accounting", "matplotlib",
)  # fmt: skip


def machine() -> dict[str, Any]:
    """Platform, processor, cores of the calling thread, memory in GiB (None where the system does not say)."""
    try:
        memory = round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)
    except (ValueError, OSError):
        memory = None
    return {
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": available_cores(),
        "memory_gib": memory,
    }


def versions() -> dict[str, str | None]:
    """Version of Python, fedcore and each package it uses; None for one that is not installed."""
    from fedcore import __version__

    found: dict[str, str | None] = {"python": platform.python_version(), "fedcore": __version__}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


def check_streams(config: Config) -> None:
    """Raise BackendError, naming the key, unless the streams of a configuration's noise and masks run here."""
    from fedcore.ops import keystream

    named = [("secure.stream", config.secure_of(arm)) for arm in config.arms]
    for key, section in [("privacy.stream", config.privacy), *named]:
        if section is not None:
            try:
                keystream(1, bytes(32), bytes(12), 0, section.stream)
            except BackendError as error:
                raise BackendError(f"{key}: {error}") from None


def cache_folder() -> Path:
    """Where built-in base models are kept: FEDCORE_CACHE, or fedcore in XDG_CACHE_HOME, or ~/.cache/fedcore.

    Raises StorageError where that needs a home directory and there is none.
    """
    try:
        if chosen := os.environ.get("FEDCORE_CACHE"):
            return Path(chosen).expanduser().resolve()
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fedcore"
    except RuntimeError as error:
        raise StorageError(f"cache: there is no home directory ({error}); set FEDCORE_CACHE to a folder") from None


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
