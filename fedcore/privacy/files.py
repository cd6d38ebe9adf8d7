"""The files that privacy keeps: which paths name one, and reading what is there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from fedcore.errors import PrivacyError, StorageError
from fedcore.numbers import got


def file_path(path: Any) -> Path:
    """A path as one that names a file. Raises PrivacyError."""
    text = os.fspath(path) if isinstance(path, (str, os.PathLike)) else None
    if not isinstance(text, str) or not Path(text).name or "\0" in text:
        raise PrivacyError(f"{got('path', path)}, expected the path of a file, such as 'people.budget'")
    return Path(text)


def read(path: Path) -> bytes | None:
    """What a file holds, None where there is none. Raises StorageError where the system does not let it be read."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(
            f"{path}: cannot be read ({error.strerror}); check what is there and its permissions",
            errno=error.errno,
            filename=path,
        ) from (error)
