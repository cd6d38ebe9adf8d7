"""One message for one charge: what each client of a round with noise of its own has sent, marked before it leaves."""

from __future__ import annotations

import hashlib
from pathlib import Path

from fedcore.errors import PrivacyError
from fedcore.privacy.budget import Noise
from fedcore.privacy.seal import derived
from fedcore.updates.atomic import write_atomically


def mark_sent(budget: Path, charge: Noise, client: str, message: bytes) -> None:
    """Write what a client is about to send under a charge; when this returns it is on disk.

    budget: the file that the charge is in. Marks lie beside it, `<budget>.sent/<inputs digest>/<client, hashed>`, and
    not in the folder of the run: one that is put back from a backup, or copied, goes on with the marks of the budget.
    Raises PrivacyError where the client sent something else under this charge, which is for one message.
    """
    name, digest = derived(charge.key, f"mark of {client}").hex(), hashlib.sha256(message).hexdigest()
    path = budget.with_name(budget.name + ".sent") / charge.inputs_digest / name
    if not path.is_file():
        write_atomically(path, digest.encode())
    elif path.read_text() != digest:
        raise PrivacyError(
            f"{path}: {client} sent another message under charge {charge.number}, which this run folder has lost, and "
            "a second one is not charged; restore the folder as it was last, or start a new run"
        )
