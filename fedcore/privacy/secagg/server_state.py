"""What of a server goes into its state, and back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fedcore.privacy.secagg import merkle
from fedcore.privacy.secagg.keys import rooted
from fedcore.privacy.secagg.peers import holders_of
from fedcore.privacy.secagg.state import positions, read_positions, read_records, records
from fedcore.privacy.secagg.transcripts import Sent

if TYPE_CHECKING:
    from fedcore.privacy.secagg.server import Server


def server_fields(server: Server) -> dict[str, bytes]:
    """Everything that cannot be found again from the rest."""
    fields = server.round.fields() | {
        "generation": server.generation,
        "stage": bytes([server._stage]),
        "expected": positions(server._expected),
        "done": positions(server._done),
        "sealing": positions(server._around.sealing),
        "included": positions(server._included),
        "lists": records(server._lists),
        "sent": records(server._sent.earlier),
        "private": server._private.private_bytes_raw(),
    }
    for stage, found in server._signed.items():
        fields[f"signed {stage}"] = records(found)
    if "_folding" in server.__dict__:
        fields["total"] = server._folding.total.tobytes()
    return fields


def take_fields(server: Server, fields: dict[str, bytes]) -> None:
    """Put a fresh server of the same round where the fields were taken."""
    server._stage, server.generation = fields["stage"][0], fields["generation"]
    server._expected, server._done = set(read_positions(fields["expected"])), set(read_positions(fields["done"]))
    server._around.sealing = set(read_positions(fields["sealing"]))
    server._included = frozenset(read_positions(fields["included"]))
    server._sent = Sent(server.answers, read_records(fields["sent"]))
    server._private = X25519PrivateKey.from_private_bytes(fields["private"])
    server._signed = {stage: read_records(fields[f"signed {stage}"]) for stage in server.round.parameters.stages}
    lists = read_records(fields["lists"])
    # a list whose vector is not whole comes again with it
    server._lists = {i: found for i, found in lists.items() if i in server._done or server.stage != "mask"}
    advertised = server._signed["advertise"]
    for position, (body, _) in advertised.items():
        server._around.add(position, holders_of(server.round, position, body, "state of a server"))
    if server._stage > 0:
        tree = merkle.Tree({i: body for i, (body, _) in advertised.items()}, server.round.parameters.clients)
        server._tag = rooted(server.round.binding, tree.root)
    if "total" in fields:
        server._folding.total[:] = np.frombuffer(fields["total"], server._folding.total.dtype)
    if server.stage == "unmask" or server.stage is None:
        server._requests(server._expected | server._signed["unmask"].keys())
