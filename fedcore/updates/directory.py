"""PEFT directories: adapter_config.json and adapter_model.safetensors, opened without reading and written whole."""

from __future__ import annotations

import errno
import json
import mmap
import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from fedcore.errors import ExistsError, FormatError, MissingError, StorageError
from fedcore.updates.atomic import new_directory
from fedcore.updates.file import File
from fedcore.updates.header import parse_json

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
#: what older PEFT wrote in place of WEIGHTS
PICKLE = "adapter_model.bin"
#: where a trainer keeps earlier states of the training that the directory is of
_CHECKPOINT = re.compile(r"checkpoint-\d+")
#: where Python allows it a map keeps no file descriptor, so that a cohort may have more files than `ulimit -n`
_NO_DESCRIPTOR: dict[str, Any] = {"trackfd": False} if sys.version_info >= (3, 13) else {}
#: a config is a few kilobytes; the bound keeps a hostile one from being read into memory
_LONGEST_CONFIG = 10_000_000


def name_of(directory: str | os.PathLike[str]) -> str:
    """The last part of a directory's full path."""
    return Path(os.path.abspath(directory)).name


def open_adapter(directory: str | os.PathLike[str]) -> tuple[dict[str, Any], Path]:
    """(content of adapter_config.json, the path of the weights).

    Raises MissingError for what is not there, FormatError for what is not one adapter in safetensors, and StorageError
    for what the operating system does not let read.
    """
    path = Path(directory)
    try:
        found = sorted(os.listdir(path))
    except FileNotFoundError:
        raise MissingError(
            f"{path}: no such directory, expected a PEFT adapter directory; check the path", filename=path
        ) from None
    except NotADirectoryError:
        raise FormatError(
            f"{path}: is a file, expected a PEFT adapter directory; pass the directory that holds it"
        ) from None
    except OSError as error:
        raise StorageError(
            f"{path}: cannot be read ({error.strerror}); check its permissions", errno=error.errno, filename=path
        ) from error
    if CONFIG not in found:
        raise MissingError(
            f"{path / CONFIG}: no such file, expected beside {WEIGHTS}; save the adapter with PEFT again",
            filename=path / CONFIG,
        )
    weights = [name for name in found if name.endswith(".safetensors")]
    if weights != [WEIGHTS]:
        raise _not_one(path, weights, [name for name in found if name.endswith(".bin")])
    if PICKLE in found:
        raise FormatError(f"{path}: holds {PICKLE} beside {WEIGHTS}, two adapters; keep one adapter to a directory")
    _refuse_nested(path)
    config = File.at(path / CONFIG)
    if config.size > _LONGEST_CONFIG:
        raise FormatError(
            f"{config.path}: has {config.size} bytes, expected at most {_LONGEST_CONFIG}; write the file again"
        )
    return parse_json(config.read(0, config.size).tobytes(), str(path / CONFIG)), path / WEIGHTS


def _refuse_nested(path: Path) -> None:
    """Raise FormatError where a directory below holds an adapter too, as PEFT saves a model that has several."""
    with os.scandir(path) as entries:
        below = sorted(entry.name for entry in entries if entry.is_dir() and not _CHECKPOINT.fullmatch(entry.name))
    for name in below:
        if (path / name / CONFIG).is_file():
            raise FormatError(
                f"{path}: holds a second adapter in {name}; keep one adapter to a directory, and its others beside it"
            )


def _not_one(path: Path, weights: list[str], pickles: list[str]) -> MissingError | FormatError:
    if weights:
        return FormatError(
            f"{path}: holds {', '.join(weights)}, expected {WEIGHTS} alone; keep one adapter to a directory"
        )
    if pickles:
        return FormatError(f"{path / pickles[0]}: is a pickle, expected {WEIGHTS}; save with safe_serialization=True")
    return MissingError(
        f"{path / WEIGHTS}: no such file, expected beside {CONFIG}; save the adapter with PEFT again",
        filename=path / WEIGHTS,
    )


def map_file(path: Path) -> np.ndarray:
    """A file's bytes as a read-only 1-D uint8 array, memory-mapped; of an empty file, an empty one.

    Raises as `File.at` and `File.open` do, and StorageError for a file that cannot be mapped.
    """
    file = File.at(path)
    with file.opened() as descriptor:
        if file.size == 0:
            return np.empty(0, np.uint8)
        try:
            return np.frombuffer(mmap.mmap(descriptor, file.size, access=mmap.ACCESS_READ, **_NO_DESCRIPTOR), np.uint8)
        except OSError as error:
            remedy = "raise `ulimit -n`" if error.errno == errno.EMFILE else "open fewer files at a time"
            raise StorageError(
                f"{path}: cannot be mapped ({error.strerror}); {remedy}", errno=error.errno, filename=path
            ) from error


def write_adapter(
    directory: str | os.PathLike[str], config: dict[str, Any], weights: Iterable[bytes | memoryview]
) -> None:
    """Write both files into a new directory beside, flush them to disk, then rename it to `directory`.

    Raises ExistsError if `directory` exists, StorageError if the operating system refuses; nothing half-written stays.
    """
    # the full path, but with a last link left as it is: a link that exists is never followed
    path = Path(os.path.abspath(directory))
    if os.path.lexists(path):
        raise ExistsError(f"{path}: exists, expected a new directory; choose another name or remove it", filename=path)
    with new_directory(path) as beside:
        _write(beside / CONFIG, [(json.dumps(config, indent=2) + "\n").encode()])
        _write(beside / WEIGHTS, weights)


def _write(path: Path, parts: Iterable[bytes | memoryview]) -> None:
    with open(path, "xb") as file:
        for part in parts:
            file.write(part)
