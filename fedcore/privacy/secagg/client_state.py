"""What of a client goes into its state, and back: what it was told, not the signatures and proofs that it checked."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from fedcore.privacy.secagg.peers import Peer

if TYPE_CHECKING:
    from fedcore.privacy.secagg.client import Client

_PEER = struct.Struct("<H?32s32s")
_HELD = struct.Struct("<HB")


def client_fields(client: Client) -> dict[str, bytes]:
    """Its keys, and of each stage that it answered what the server said."""
    fields = client.round.fields() | {
        "client": str(client._me).encode(),
        "signing": client._signing.private_bytes_raw(),
        "secret": client._secret,
        "vector": client._vector,
    }
    fields |= {f"answered {stage}": digest for stage, digest in client._answered.items()}
    if "share" in client._answered:
        peers = client._peers.items()
        fields |= {"tag": client._tag, "server": client._server}
        fields["peers"] = b"".join(_PEER.pack(i, p.ward, p.share_public, p.mask_public) for i, p in peers)
    if "mask" in client._answered:
        fields["partners"] = _positions(client._partners)
        fields["held"] = b"".join(_HELD.pack(i, len(data)) + data for i, data in client._held.items())
    if client._included is not None and "acknowledge" in client._answered:
        fields["included"] = _positions(sorted(client._included))
    return fields


def take_fields(client: Client, fields: dict[str, bytes]) -> None:
    """Put a fresh client of the same keys where the fields were taken."""
    stages = client.round.parameters.stages
    client._answered = {stage: fields[f"answered {stage}"] for stage in stages if f"answered {stage}" in fields}
    client._vector = fields["vector"]
    if "peers" in fields:
        peers = {i: Peer(share, mask, ward) for i, ward, share, mask in _PEER.iter_unpack(fields["peers"])}
        client._take_keys(fields["tag"], fields["server"], peers)
    if "held" in fields:
        client._partners, client._held = _read_positions(fields["partners"]), _read_held(fields["held"])
    if "included" in fields:
        client._included = set(_read_positions(fields["included"]))


def _positions(found: list[int]) -> bytes:
    return struct.pack(f"<{len(found)}H", *found)


def _read_positions(data: bytes) -> list[int]:
    return list(struct.unpack(f"<{len(data) // 2}H", data))


def _read_held(data: bytes) -> dict[int, bytes]:
    """Member -> its shares; none of one whose did not open."""
    found, at = {}, 0
    while at < len(data):
        position, size = _HELD.unpack_from(data, at)
        at += _HELD.size
        found[position] = data[at : at + size]
        at += size
    return found
