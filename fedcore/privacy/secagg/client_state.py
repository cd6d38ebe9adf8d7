"""What of a client goes into its state, and back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedcore.privacy.secagg.peers import read_included, read_keys, read_sealed

if TYPE_CHECKING:
    from fedcore.privacy.secagg.client import Client


def client_fields(client: Client) -> dict[str, bytes]:
    """Its keys, and the messages that it answered: all else is found again from them."""
    fields = client.round.fields() | {
        "client": str(client._me).encode(),
        "signing": client._signing.private_bytes_raw(),
        "secret": client._secret,
        "vector": client._vector,
    }
    return fields | {f"input {stage}": message for stage, message in client._inputs.items()}


def inputs_of(fields: dict[str, bytes], stages: tuple[str, ...]) -> dict[str, bytes]:
    """Stage -> the message that was answered in it."""
    return {stage: fields[f"input {stage}"] for stage in stages if f"input {stage}" in fields}


def repeat(client: Client, inputs: dict[str, bytes], vector: bytes) -> None:
    """Find again what the messages said."""
    about = client.round, client._me
    if "share" in inputs:
        keys = read_keys(*about, client._holders, inputs["share"])
        client._peers, (client._tag, client._tags) = keys.peers, client._under(keys)
    if "mask" in inputs:
        found = read_sealed(*about, client._holders, client._peers, client._tag, inputs["mask"])
        client._take_shares(*found)
    if "acknowledge" in inputs:
        message = inputs["acknowledge"]
        client._included = read_included(*about, client._partners, client._held, client._tag, message)
    client._inputs, client._vector = inputs, vector
