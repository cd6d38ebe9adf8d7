"""What an update is written as: safetensors bytes in parts, and the digest of its content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from fedcore.quantized import to_dtype
from fedcore.updates.header import arrange, pack_header
from fedcore.updates.metadata import pack_metadata
from fedcore.updates.pieces import PLAIN, Piece, pieces_of

if TYPE_CHECKING:
    from fedcore.updates.update import Update

#: bytes of a tensor in a file that are in memory at a time while it is hashed or copied
PIECE = 1 << 22


def content_digest(update: Update) -> str:
    """`Update.digest`."""
    scales = json.dumps({module: scale.hex() for module, scale in sorted(update.scaling.items())})
    sha256 = hashlib.sha256(f"fedcore update 1\n{update.layout.digest}\n{scales}\n".encode())
    for piece in pieces_of(update.layout):
        for data in _data(update, piece):
            sha256.update(data)
    return sha256.hexdigest()


def file_parts(update: Update) -> Iterator[bytes | memoryview]:
    """`Update.parts`."""
    order, _ = arrange(update.layout)
    pieces = pieces_of(update.layout)
    metadata = _metadata(update, scaling=update.scaling, adapter_config=update.adapter_config)
    yield pack_header(update.layout, metadata)
    for k in order:
        yield from _data(update, pieces[k])


def decoded_parts(update: Update) -> Iterator[bytes | memoryview]:
    """The parts of a safetensors file in which every tensor lies as its dtype; one is decoded at a time."""
    layout = update.layout.decoded()
    yield pack_header(layout, _metadata(update))
    for k in arrange(layout)[0]:
        if update.layout.formats[k] == layout.dtypes[k]:
            yield from _data(update, Piece(layout.names[k], PLAIN[layout.dtypes[k]], layout.shapes[k], k, 0))
        else:
            yield to_dtype(update.tensors[layout.names[k]], layout.dtypes[k]).tobytes()


def _data(update: Update, piece: Piece) -> Iterator[memoryview]:
    """The bytes of a piece; of a large one in a file, only a part is in memory at a time."""
    start = int(update.scales[piece.part - 1, piece.tensor] if piece.part else update.offsets[piece.tensor])
    step = max(piece.nbytes, 1) if update.mapped else PIECE
    for done in range(0, piece.nbytes, step):
        yield update.bytes_at(start + done, min(step, piece.nbytes - done)).data


def _metadata(update: Update, **also: Any) -> dict[str, str]:
    count = {"num_examples": update.num_examples} if update.counted else {}
    return pack_metadata(client_id=update.client_id, **count, base=update.base, **also)
