"""keystream in C."""

from __future__ import annotations

import numpy as np

from fedcore.errors import BackendError
from fedcore.native import checked, ffi, isa_code, isa_selected, lib

STREAMS = {"chacha20": lib.FC_CHACHA20, "aes256ctr": lib.FC_AES256CTR}


def stream_code(op: str, stream: str) -> int:
    """A stream as the C API takes it. Raises BackendError naming the instructions that this machine or ISA lacks."""
    if not lib.fc_stream_available(STREAMS[stream], isa_code()):
        raise BackendError(
            f"{op}: stream {stream!r} needs the AES-NI (or VAES) instructions of x86 and {isa_selected()!r} kernels "
            "have none; use stream='chacha20'"
        )
    return STREAMS[stream]


def checked_stream(status: int, op: str, stream: str) -> None:
    """Raise for a status; also for kernels that failed their known answers."""
    if checked(status, op) == lib.FC_WRONG_STREAM:
        raise BackendError(
            f"{op}: the {stream!r} kernels for {isa_selected()!r} do not give the published answers on this machine "
            "and wrote nothing; rebuild fedcore with another compiler, or set FEDCORE_ISA"
        )


def keystream(out: np.ndarray, key: bytes, nonce: bytes, counter: int, stream: str, threads: int = 1) -> None:
    """As fedcore.reference.keystream, and `stream` may be 'aes256ctr'. The GIL is released while it runs."""
    code = stream_code("keystream", stream)
    status = lib.fc_keystream(
        code, ffi.from_buffer(key), ffi.from_buffer(nonce), counter, ffi.from_buffer(out), out.size, isa_code(), threads
    )
    checked_stream(status, "keystream", stream)
