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

from fedcore.errors import ConfigError, MissingError, RuleError
from fedcore.federation.config import Aggregation, Config
from fedcore.federation.config_data import BUILT_IN_TEXTS
from fedcore.federation.methods import method_faults
from fedcore.federation.privacy_faults import privacy_faults
from fedcore.federation.private_journal import FOLDER
from fedcore.federation.rule_names import make_chain
from fedcore.federation.sealing import with_places
from fedcore.federation.section import Section
from fedcore.federation.secure_faults import secure_faults
from fedcore.numbers import shown
from fedcore.rules import Rule

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


def parse_config(text: str, name: str, folder: Path = Path(".")) -> Config:
    """`load_config` on text; `name` stands for the file in errors, `folder` is what its paths are relative to."""
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
    faults = []
    for index, arm in enumerate(config.arms):
        settings = config.aggregation_of(arm)
        if settings.method is not None:
            faults += [f"{name}: arms[{index}]: {fault}" for fault in method_faults(config, index)]
        else:
            secure = config.secure_of(arm)
            rows = clients if secure is None else secure.groups
            faults += [f"{name}: {fault}" for fault in _rule_faults(config, index, rows)]
        faults += [f"{name}: {fault}" for fault in _at_odds(config, index)]
        faults += [f"{name}: {fault}" for fault in privacy_faults(config, index, clients)]
        faults += [f"{name}: {fault}" for fault in secure_faults(config, index, clients, examples)]
        if arm.attack and clients is not None and arm.attack.clients >= clients:
            faults.append(
                f"{name}: arms[{index}].attack.clients: got {arm.attack.clients} of {clients} clients, expected at "
                f"most {clients - 1}; leave one that is honest"
            )
    faults += _centers(config, name)
    if faults:
        raise ConfigError("\n".join(dict.fromkeys(faults)))


def _rule_faults(config: Config, index: int, clients: int | None) -> list[str]:
    """Why an arm cannot run its rule."""
    arm = config.arms[index]
    settings = config.aggregation_of(arm)
    try:
        rule = make_chain(settings.rule, settings.parameters, settings.before)
        if clients is not None:
            rule.check(clients)
    except RuleError as error:
        own = any(getattr(arm, key) is not None for key in ("rule", "parameters", "before"))
        return [f"{f'arms[{index}]' if own else 'aggregation'}: {error}"]
    return _missing(rule, config)


def _centers(config: Config, name: str) -> list[str]:
    """Why a centre that moves on would do nothing: no arm's rule has one."""
    settings = [config.aggregation_of(arm) for arm in config.arms]
    if config.aggregation.center == "reference" or any(_looks_at_center(one) for one in settings):
        return []
    rules = ", ".join(dict.fromkeys(one.method or one.rule for one in settings))
    return [
        f'{name}: aggregation.center: got "moved_on" with {rules}; it is where centered_clipping starts: leave it out'
    ]


def _looks_at_center(settings: Aggregation) -> bool:
    """Whether its rule starts at a centre; a rule that is wrong, or a method with a centre, is told of elsewhere."""
    if settings.method is not None:
        return settings.center != "reference"
    try:
        return "center" in make_chain(settings.rule, settings.parameters, settings.before).uses
    except RuleError:
        return True


def _missing(rule: Rule, config: Config) -> list[str]:
    """What a rule needs and the file does not have."""
    faults = []
    if "server" in rule.uses and config.server.data is None:
        faults.append(f'server.data: missing; {rule!r} compares with an update of the server: data = "texts.jsonl"')
    return faults


def _at_odds(config: Config, index: int) -> list[str]:
    """What an arm asks for that does not go together."""
    arm, faults = config.arms[index], []
    settings = config.aggregation_of(arm)
    if settings.method is None and config.optimizer_of(arm) is not None and settings.space == "delta":
        key, used = ("server", config.server) if arm.server is None else (f"arms[{index}].server", arm.server)
        faults.append(
            f'{key}.optimizer: got "{used.optimizer}" with space = "delta" (arm {arm.name!r}), expected space = '
            '"parameters": factors of a truncated delta have another gauge each round, so their momentum means nothing'
        )
    if config.adapter.mixed and settings.method is None and settings.space == "parameters":
        faults.append(
            f'adapter.ranks: got {list(config.adapter.each_rank)} with space = "parameters" (arm {arm.name!r}), '
            'which adds up factors of one rank; set space = "delta"'
        )
    if config.adapter.mixed and arm.attack:
        faults.append(
            f"arms[{index}].attack: got one with adapter.ranks = {list(config.adapter.each_rank)}, and attacks are "
            "crafted from adapters of one rank; give all clients one rank"
        )
    if arm.attack and not arm.attack.made().finite and settings.on_nonfinite == "raise":
        faults.append(
            f'arms[{index}].attack.kind: got "{arm.attack.kind}" with aggregation.on_nonfinite = "raise", which stops '
            "the run at the first message; "
            + ('set on_nonfinite = "exclude"' if settings.method is None else "methods count every client: use a rule")
        )
    return faults


def _own(entries: Sequence[Any]) -> list[Any]:
    """Without lists that are too short for pydantic alone, as it leaves out the entries that it refuses."""
    places = [entry["loc"] for entry in entries]
    return [e for e in entries if e["type"] != "too_short" or not any(e["loc"] == place[:-1] for place in places)]


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
    message = re.sub(r"dictionary or instance of \w+", "table", message).replace("tuple", "list")
    return f"{key}: got {shown(entry['input'])}; {message[0].lower()}{message[1:]}"


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
