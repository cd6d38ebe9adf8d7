"""Reading and writing the TOML file of a federation, and saying in one line each what is wrong with it.

Paths in a file are relative to that file. What `to_toml` writes is exact: a run folder keeps it, with absolute paths,
but for those of a private run's budget and sealing key, which are empty there and in its private folder (`sealing`).
"""

from __future__ import annotations

import difflib
import json
import math
import re
import sys
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fedcore.errors import ConfigError, MissingError
from fedcore.federation.attack_faults import attack_faults
from fedcore.federation.config import Config
from fedcore.federation.config_data import BUILT_IN_TEXTS
from fedcore.federation.methods import method_faults
from fedcore.federation.parameters import as_written
from fedcore.federation.privacy_faults import privacy_faults
from fedcore.federation.private_journal import FOLDER
from fedcore.federation.rule_faults import rule_faults
from fedcore.federation.sealing import with_places
from fedcore.federation.section import Section
from fedcore.federation.secure_faults import secure_faults
from fedcore.federation.unused_keys import unused_keys

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


#: the keys that name files, by table
PATHS = (
    ("data", "source"),
    ("server", "data"),
    ("model", "source"),
    ("run", "output"),
    ("privacy", "budget"),
    ("privacy", "sealing_key"),
    ("secure", "policy"),
)
#: in the places of pydantic's errors, what is no key but one of several types
_TYPES = ("str", "tuple[str, ...]", "Secure", "literal[False]")


def load_config(path: str | Path) -> Config:
    """Read, check and complete a configuration file.

    Raises MissingError if there is no such file, ConfigError with one line per fault: file, key, got, what to do.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")  # some editors begin a file with a byte-order mark
    except (FileNotFoundError, IsADirectoryError):
        raise MissingError(f"{path}: no such configuration file; give the path of a TOML file", filename=path) from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8") from None
    return parse_config(text, str(path), path.parent)


def parse_config(text: str, name: str, folder: Path = Path("."), *, ran: bool = False) -> Config:
    """`load_config` on text; `name` stands for the file in errors, `folder` is what its paths are relative to.

    ran: of a run that there is. What can be run was asked when it began, and must not keep anybody from its folder.
    """
    try:
        data = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # of TOML, a number of too many digits, or nesting too deep
        raise ConfigError(f"{name}: not TOML: {error}; correct that line") from None
    if isinstance(data.get("privacy"), dict):
        data["privacy"] = with_places(data["privacy"], name, folder / FOLDER)
    arms = data["arms"] if isinstance(data.get("arms"), list) else []
    held = [(data.get(table), key) for table, key in PATHS]
    held += [(arm.get("secure"), "policy") for arm in arms if isinstance(arm, dict)]
    for section, key in held:
        if isinstance(section, dict) and isinstance(value := section.get(key), str):
            section[key] = _located(value, folder, always=key in ("output", "budget", "sealing_key", "policy"))
    try:
        config = Config.model_validate(data)
        config._folder = folder
    except ValidationError as error:
        raise ConfigError("\n".join(f"{name}: {_fault(entry)}" for entry in _own(error.errors()))) from None
    if ran:
        return config
    if config.partition.kind != "column":
        check_clients(config, config.partition.clients or 8, name)
    else:
        # as many clients as the column has values; until the texts are read, only names and parameters can be wrong
        check_clients(config, None, name)
    return config


def _located(value: str, folder: Path, always: bool) -> str:
    """A path of the file, made absolute where it names something on disk (a hub name does not)."""
    if value == BUILT_IN_TEXTS:
        return value
    path = folder / value
    return str(path.resolve()) if always or path.exists() or value.endswith((".jsonl", ".json")) else value


def check_clients(config: Config, clients: int | None, name: str, examples: Sequence[int] = ()) -> None:
    """Build every arm's rule once, so that a wrong rule or attack is an error of the file `name`, before any work.

    clients: how many there are; None where only the texts will tell. examples: of each, once the texts are read. Raises
    ConfigError with one line per fault.
    """
    faults: list[str] = []
    for index, arm in enumerate(config.arms):
        settings = config.aggregation_of(arm)
        if settings.method is not None:
            faults += [f"arms[{index}]: {fault}" for fault in method_faults(config, index)]
        else:
            faults += rule_faults(config, index, clients)
        faults += attack_faults(config, index, clients)
        faults += privacy_faults(config, index, clients)
        faults += secure_faults(config, index, clients, examples)
    faults += unused_keys(config)
    if faults:
        raise ConfigError("\n".join(dict.fromkeys(f"{name}: {fault}" for fault in faults)))


def _own(entries: Sequence[Any]) -> list[Any]:
    """One entry for each fault of the file.

    Without lists that are too short for pydantic alone, as it leaves out the entries that it refuses; and of a key of
    several types, for each of which pydantic has its own, the one that is in the value, or one that names all types.
    """
    places = [entry["loc"] for entry in entries]
    entries = [e for e in entries if e["type"] != "too_short" or not any(e["loc"] == place[:-1] for place in places)]
    by_key: dict[Any, list[Any]] = {}
    for number, entry in enumerate(entries):
        types = [at for at, part in enumerate(entry["loc"]) if part in _TYPES]
        by_key.setdefault(entry["loc"][: types[0]] if types else number, []).append(entry)
    return [entry for group in by_key.values() for entry in _of_one_key(group)]


def _of_one_key(group: list[Any]) -> list[Any]:
    inside = [entry for entry in group if not entry["loc"] or entry["loc"][-1] not in _TYPES]
    if inside:
        return inside
    first, *others = [entry for entry in group if entry["loc"][-1] != "literal[False]"]  # a table says so with true
    return [first | {"msg": " or ".join([first["msg"], *(e["msg"].removeprefix("Input should be ") for e in others)])}]


def _fault(entry: Any) -> str:
    """One pydantic error as one line: key, what was got, what to do."""
    location = entry["loc"]
    key = re.sub(r"\.(\d+)", r"[\1]", ".".join(str(part) for part in location if part not in _TYPES))
    if entry["type"] == "extra_forbidden":
        known = list(_section_at(location[:-1]).model_fields)
        close = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.5)
        return f"{key}: unknown key; " + (f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(known)}")
    if entry["type"] == "missing":
        section = _section_at(location[:-1])
        return f"{key}: missing; {section.model_fields[str(location[-1])].description or 'add this table'}"
    message = entry["msg"].removeprefix("Value error, ")
    if entry["type"] == "value_error":
        return f"{key}: {message}" if key else message
    # in the words of TOML
    message = f"{message[0].lower()}{message[1:]}".removesuffix(" after validation, not 0").replace("tuple", "list")
    message = message.replace("dictionary or instance of Secure", "table, true or false")
    message = re.sub(r"dictionary( or instance of \w+)?", "table", message)
    return f"{key}: got {as_written(entry['input'])}; {message}"


def _section_at(location: tuple[Any, ...]) -> type[Section]:
    """The section class that a location leads to."""
    section: type[Section] = Config
    for part in location:
        if isinstance(part, str) and part in section.model_fields:
            section = _sections_in(section.model_fields[part].annotation) or section
    return section


def _sections_in(annotation: Any) -> type[Section] | None:
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return annotation if issubclass(annotation, Section) else None
    return next((found for inner in typing.get_args(annotation) if (found := _sections_in(inner))), None)


def to_toml(config: Config) -> str:
    """The exact configuration as TOML, defaults filled in; absent keys stay absent. Loads back as an equal one."""
    return "\n".join(_tables(config.model_dump(exclude_none=True))).strip() + "\n"


def _tables(data: dict[str, Any], prefix: str = "") -> list[str]:
    """TOML lines: scalars first, then tables, then arrays of tables; a rule's and an arm's own tables stay inline."""
    inline = ("parameters", "before")
    nested = {k: v for k, v in data.items() if isinstance(v, dict) and k not in inline}
    arrays = {k: v for k, v in data.items() if isinstance(v, list) and v and isinstance(v[0], dict) and k not in inline}
    lines = [f"{key} = {_value(value)}" for key, value in data.items() if key not in nested and key not in arrays]
    for key, value in nested.items():
        lines += ["", f"[{prefix}{key}]", *_tables(value, f"{prefix}{key}.")]
    for key, entries in arrays.items():
        for entry in entries:
            lines += ["", f"[[{prefix}{key}]]", *(f"{inner} = {_value(value)}" for inner, value in entry.items())]
    return lines


def _value(value: Any) -> str:
    if isinstance(value, dict):
        pairs = ", ".join(
            f"{key if key.isidentifier() and key.isascii() else json.dumps(key)} = {_value(inner)}"
            for key, inner in value.items()
        )
        return "{ " + pairs + " }" if pairs else "{}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_value(inner) for inner in value) + "]"
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else str(value)
    # a JSON string of printable text is a TOML basic string; integers and booleans are the same in both
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
