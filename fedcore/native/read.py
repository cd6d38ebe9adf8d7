"""The roof of memory-bound work: a read of every byte of the rows, for benchmarks and `fedcore doctor`."""

from __future__ import annotations

from fedcore.errors import DTypeError
from fedcore.native import c_rows, checked, ffi, isa_code, lib
from fedcore.rowtable import RowTable


def read(rows: RowTable, streams: int = 4, threads: int = 1) -> int:
    """Read every byte, `streams` rows side by side a thread; returns the OR of all 8-byte words, so none is dropped.

    Raises DTypeError for encoded rows.
    """
    if rows.encoding is not None:
        raise DTypeError("read: got encoded rows, expected plain ones; give their bytes as rows")
    digest = ffi.new("uint64_t *")
    checked(lib.fc_read(c_rows(rows), streams, digest, isa_code(), threads), "read")
    return int(digest[0])
