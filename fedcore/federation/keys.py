"""The reference of the configuration file, made from the sections that check it."""

from __future__ import annotations

import json
import types
import typing
from typing import Any, NamedTuple

from fedcore.federation.config import Config
from fedcore.federation.section import Section

_PLAIN = {str: "text", int: "integer", float: "number", bool: "true or false"}


class Key(NamedTuple):
    """One key of the file: its full name, such as 'model.pretrain.rounds'; its default as TOML, '' if there is none."""

    name: str
    type: str
    default: str
    description: str


def keys(section: type[Section] = Config, prefix: str = "") -> list[Key]:
    """Every key, in the order of the sections."""
    found: list[Key] = []
    for name, field in section.model_fields.items():
        inner, many = _section_of(field.annotation)
        if inner is not None:
            found += keys(inner, f"{prefix}{name}{'[]' if many else ''}.")
            continue
        default = "" if field.is_required() else field.get_default(call_default_factory=True)
        said = "" if default in ("", None) else "{}" if default == {} else json.dumps(default, ensure_ascii=False)
        found.append(Key(prefix + name, _type(field.annotation), said, field.description or ""))
    return found


def _section_of(annotation: Any) -> tuple[type[Section] | None, bool]:
    """(the section that a field holds, whether it holds a list of them)."""
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return (annotation if issubclass(annotation, Section) else None), False
    for inner in typing.get_args(annotation):
        section, _ = _section_of(inner)
        if section is not None:
            return section, typing.get_origin(annotation) is list
    return None, False


def _type(annotation: Any) -> str:
    """A type in the words of the file."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _type(arguments[0])
    if origin is typing.Literal:
        return " or ".join(json.dumps(value) for value in arguments)
    if origin is dict:
        return "table"
    if origin in (tuple, list):
        return "list of " + _type(arguments[0])
    if arguments:
        return " or ".join(_type(inner) for inner in arguments if inner is not type(None))
    return _PLAIN.get(annotation, str(annotation))
