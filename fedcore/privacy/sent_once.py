"""One message for one charge: what each client of a round with noise of its own has sent, marked before it leaves."""

from __future__ import annotations

import hashlib
from pathlib import Path

from fedcore.errors import FormatError, PrivacyError
from fedcore.privacy.budget import Noise
from fedcore.privacy.seal import derived, sealed, unsealed
from fedcore.updates.atomic import sync, write_atomically

_KEPT = ".message"


def mark_sent(budget: Path, charge: Noise, client: str, message: bytes) -> bytes:
    """Write what a client is about to send under a charge, and return what it sends; when this returns it is on disk.

    budget: the file that the charge is in. Marks lie beside it, `<budget>.sent/<inputs digest>/<client, hashed>`, and
    not in the folder of the run: one that is put back from a backup, or copied, goes on with the marks of the budget.
    The message is kept beside its mark, sealed, until `all_received`: who is killed before it arrives sends it again,
    whatever it was to send instead, since training seldom gives the same bits twice on a GPU. Raises PrivacyError where
    the client sent something else that arrived under this charge, which is for one message, FormatError for a kept
    message that does not open.
    """
    folder, name = _marks(budget, charge.inputs_digest), derived(charge.key, f"mark of {client}").hex()
    mark, kept = folder / name, folder / f"{name}{_KEPT}"
    secret = derived(charge.key, "seal of messages")
    if kept.is_file():
        if (found := unsealed(secret, kept.read_bytes(), name)) is None:
            raise FormatError(f"{kept}: does not open: the message that {client} was sending was changed; restore it")
        message = found
    digest = hashlib.sha256(message).hexdigest()
    if not mark.is_file():
        write_atomically(kept, sealed(secret, message, name))
        write_atomically(mark, digest.encode())
    elif mark.read_bytes() != digest.encode():
        raise PrivacyError(
            f"{mark}: {client} sent another message under charge {charge.number}, which this run folder has lost, and "
            "a second one is not charged; restore the folder as it was last, or start a new run"
        )
    return message


def all_received(budget: Path, inputs_digest: str) -> None:
    """Delete the messages that were kept under the charge of these inputs: all have counted, and their marks stay."""
    folder = _marks(budget, inputs_digest)
    kept = list(folder.glob(f"*{_KEPT}"))
    for path in kept:
        path.unlink(missing_ok=True)
    if kept:
        sync(folder)


def _marks(budget: Path, inputs_digest: str) -> Path:
    return budget.with_name(budget.name + ".sent") / inputs_digest
