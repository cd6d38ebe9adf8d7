"""Where a model lies, and the hub of models and data sets, asked once whether it has a name.

Its libraries ask for every file of a name, and each time again and again: offline a typo takes a minute.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from fedcore.errors import MissingError

#: seconds that the hub may take to answer
_PATIENCE = 10.0


def locate(source: str | Path, folder: Path) -> tuple[str, bool]:
    """(what transformers is given, whether it is a local directory); reads no file and asks nobody.

    Raises MissingError where a path leads to no directory, or to one without a model's configuration.
    """
    path = folder / Path(source).expanduser()
    if path.is_dir():
        # an adapter's directory names its base
        if not any((path / name).is_file() for name in ("config.json", "adapter_config.json")):
            raise MissingError(
                f"model {source}: no config.json in it (looked at {path.absolute()}); give a directory in "
                "transformers' format or a hub name",
                filename=path,
            )
        return str(path), True
    if (
        isinstance(source, Path)
        or Path(source).is_absolute()
        or source.startswith((".", "~"))
        or source.count(os.sep) > 1
    ):
        raise MissingError(
            f"model {source}: no such directory (looked at {path.absolute()}); give one in transformers' format or a "
            "hub name",
            filename=path,
        )
    return source, False


def why_not(kind: Literal["model", "dataset"], name: str) -> str | None:
    """Why the hub cannot give a model or data set, as the end of a sentence; None if it has one of that name."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled, RepositoryNotFoundError

    try:
        if kind == "model":
            HfApi().model_info(name, timeout=_PATIENCE)
        else:
            HfApi().dataset_info(name, timeout=_PATIENCE)
    except HFValidationError:
        return "it is no name that the hub could have"
    except OfflineModeIsEnabled:
        return "the hub is not asked, as HF_HUB_OFFLINE is set"
    except RepositoryNotFoundError:
        return "the hub has none of that name, or a private one, for which `hf auth login` is needed"
    # what connections fail with differs between versions of its client
    except Exception as error:
        return f"the hub cannot be reached ({line(error)})"
    return None


def nowhere(path: Path, reason: str) -> str:
    """What to say of a name that is neither a directory nor known to the hub: where it was looked for, and `reason`."""
    return f"no such directory (looked at {path.absolute()}), and it is not in the hub's cache and {reason}"


def line(error: BaseException) -> str:
    """The message of a library as one line. A long one ends at a whole word, so that no address in it is cut."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:300].rsplit(" ", 1)[0] + " ..."
