"""Parameters as bytes: one form of each, which the keys of a round are bound to."""

from __future__ import annotations

import struct
from typing import Any

from fedcore.errors import FormatError
from fedcore.privacy.secagg.counts import STREAMS
from fedcore.privacy.secagg.parameters import ADVERSARIES, Parameters

_STREAMS = [*STREAMS]
_LAYOUT = struct.Struct("<4sBBBBHHHHHHHHQQ")
_MAGIC, _VERSION = b"fcsp", 2
#: what follows magic, version, adversary and stream, in this order
_NUMBERS = (
    "modulus_bits", "clients", "corrupt", "dropout", "neighbours", "threshold", "in_degree", "least_included", "groups",
    "length", "bound",
)  # fmt: skip


def packed(p: Parameters) -> bytes:
    """`Parameters.to_bytes`."""
    kinds = ADVERSARIES.index(p.adversary), _STREAMS.index(p.stream)
    return _LAYOUT.pack(_MAGIC, _VERSION, *kinds, *(getattr(p, name) for name in _NUMBERS))


def unpacked(data: bytes) -> dict[str, Any]:
    """Values of the fields, which `Parameters` checks. Raises FormatError."""
    data = bytes(data) if isinstance(data, (bytearray, memoryview)) else data
    if not isinstance(data, bytes) or len(data) != _LAYOUT.size:
        got = len(data) if isinstance(data, bytes) else type(data).__name__
        raise FormatError(f"parameters: got {got}, expected {_LAYOUT.size} bytes, as to_bytes gives")
    magic, version, adversary, stream, *numbers = _LAYOUT.unpack(data)
    if (magic, version) != (_MAGIC, _VERSION):
        raise FormatError(f"parameters: got version {version}, expected {_VERSION}; update the older side")
    if adversary >= len(ADVERSARIES) or stream >= len(_STREAMS):
        raise FormatError(f"parameters: got adversary {adversary} and stream {stream}, expected known ones")
    kinds = {"adversary": ADVERSARIES[adversary], "stream": _STREAMS[stream]}
    return dict(zip(_NUMBERS, numbers, strict=True)) | kinds
