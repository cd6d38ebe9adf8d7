"""What of a client goes into its state, and back: what it was told, not the signatures and proofs that it checked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedcore.privacy.secagg.peers import Peer
from fedcore.privacy.secagg.sharing import seals_of
from fedcore.privacy.secagg.state import positions, read_positions, read_records, records

if TYPE_CHECKING:
    from fedcore.privacy.secagg.client import Client


def client_fields(client: Client) -> dict[str, bytes]:
    """Its keys, and of each stage that it answered what the server said; after the last its answer in their place."""
    fields = client.round.fields() | {"client": str(client._me).encode(), "generation": client._generation}
    fields |= {f"answered {stage}": digest for stage, digest in client._answered.items()}
    if "mask" in client._answered:
        fields["held"] = records({i: (bytes(shares),) for i, shares in client._held.items()})
    if "unmask" in client._answered:
        return fields | {"sent": client._sent}
    assert client._signing is not None  # until then
    fields |= {
        "signing": client._signing.private_bytes_raw(),
        "secret": bytes(client._secret),
        "vector": client._vector,
    }
    if "share" in client._answered:
        peers = {i: (p.share_public, p.mask_public, bytes([p.ward])) for i, p in client._peers.items()}
        fields |= {"tag": client._tag, "server": client._server, "peers": records(peers)}
    if "mask" in client._answered:
        fields["partners"] = positions(client._partners)
    if client._included is not None and "acknowledge" in client._answered:
        fields["included"] = positions(client._included)
    return fields


def take_fields(client: Client, fields: dict[str, bytes]) -> None:
    """Put a fresh client of the same keys where the fields were taken."""
    stages = client.round.parameters.stages
    client._answered = {stage: fields[f"answered {stage}"] for stage in stages if f"answered {stage}" in fields}
    client._generation, client._sent = fields["generation"], fields.get("sent", b"")
    client._vector = fields.get("vector", b"")
    if "peers" in fields:
        peers = {
            i: Peer(share, mask, ward == b"\1") for i, (share, mask, ward) in read_records(fields["peers"]).items()
        }
        tag = fields["tag"]
        client._take_keys(tag, fields["server"], peers, seals_of(client.round, client._keys, client._me, tag))
    if "held" in fields:
        client._held = {i: bytearray(shares) for i, (shares,) in read_records(fields["held"]).items()}
    if "partners" in fields:
        client._partners = read_positions(fields["partners"])
    if "included" in fields:
        client._included = set(read_positions(fields["included"]))
