"""What fedcore writes into a file's own metadata beside the tensors: one JSON string under one key."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from fedcore.errors import FormatError, LayoutError, WeightError
from fedcore.numbers import shown
from fedcore.updates.header import parse_json
from fedcore.updates.layout import LONE_SURROGATE

KEY = "fedcore"
VERSION = 1
#: more is a mistake or an attack: the bound keeps the sum over a cohort within 64 bits
MOST_EXAMPLES = 1 << 40
#: what may stand there, and its types
_TYPES: dict[str, type | tuple[type, ...]] = {
    "version": int,
    "client_id": str,
    "num_examples": int,
    "base": (str, type(None)),
    "scaling": dict,
    "adapter_config": dict,
}


def pack_metadata(**fields: Any) -> dict[str, str]:
    """The metadata of a file; "format" is what transformers looks for. The same fields give the same strings."""
    return {"format": "pt", KEY: json.dumps({"version": VERSION} | fields)}


def unpack_metadata(metadata: dict[str, str], source: str) -> dict[str, Any]:
    """The fields that fedcore wrote, checked; {} where it wrote nothing. Raises FormatError naming `source`."""
    if KEY not in metadata:
        return {}
    where = f"{source}: metadata {KEY!r}"
    fields = parse_json(metadata[KEY].encode(errors="surrogatepass"), where)
    for key, value in fields.items():
        if key not in _TYPES or not isinstance(value, _TYPES[key]):
            raise FormatError(f"{where}: got {shown(key)}: {shown(value)}, which no version writes; write it again")
    if fields.get("version") != VERSION:
        raise FormatError(
            f"{where}: version {fields.get('version')}, expected {VERSION}; update fedcore or write it again"
        )
    try:
        check_identity(fields.get("num_examples", 1), fields.get("client_id", ""), fields.get("base"))
    except (LayoutError, WeightError) as error:
        raise FormatError(f"{where}: {error}") from None
    return fields


def check_identity(num_examples: Any, client_id: object, base: object) -> None:
    """Raise WeightError for a count, LayoutError for a client_id or base, that no update may have."""
    whole = isinstance(num_examples, (int, np.integer)) and not isinstance(num_examples, bool)
    if not whole or not 1 <= num_examples <= MOST_EXAMPLES:
        raise WeightError(
            f"num_examples: got {shown(num_examples)}, expected a whole number from 1 to {MOST_EXAMPLES}; correct it"
        )
    for key, text in (("client_id", client_id), ("base", "" if base is None else base)):
        if not isinstance(text, str) or LONE_SURROGATE.search(text):
            raise LayoutError(f"{key}: got {shown(text)}, expected a str of valid Unicode")
