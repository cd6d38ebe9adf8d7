"""What the server looks at before it acknowledges a message: nothing that it could not count is acknowledged."""

from __future__ import annotations

from fedcore import ops
from fedcore.errors import FormatError, NonFiniteError
from fedcore.updates import Update


def check_message(data: bytes, client_id: str, broadcast: Update, remedy: str | None) -> None:
    """Decode a client's bytes and compare them with what it was sent.

    client_id: who the channel says is speaking. remedy: what lets a run go on without NaN and Inf of this sender, None
    where those are excluded later. Raises FormatError naming the client where the bytes are damaged, speak for another
    client or another base, or hold other tensors than `broadcast`; NonFiniteError with the remedy for NaN or Inf.
    """
    source = f"message of client {client_id!r}"
    update = Update.from_bytes(data, source=source)
    if update.client_id != client_id:
        raise FormatError(f"{source}: says it is from {update.client_id!r}; refused: no client speaks for another")
    if update.base != broadcast.base:
        raise FormatError(f"{source}: its base is {update.base!r}, expected {broadcast.base!r}; load that base")
    if difference := broadcast.layout.difference(update.layout):
        raise FormatError(f"{source}: {difference} like the adapter it was sent; send that adapter, trained")
    if update.scaling != broadcast.scaling:
        raise FormatError(f"{source}: its scales differ from those of the adapter it was sent; leave alpha as it was")
    if remedy is not None and (place := nonfinite_place(update)):
        raise NonFiniteError(f"client {client_id!r}: {place}; {remedy}")


def nonfinite_place(update: Update) -> str | None:
    """In words, where the first NaN or Inf is, tensors in canonical order; None if all is finite."""
    for name, tensor in update.tensors.items():
        try:
            ops.squared_norms([tensor.reshape(-1)])
        except NonFiniteError as error:
            return f"tensor {name!r} holds NaN or Inf at element {error.column}"
    return None
