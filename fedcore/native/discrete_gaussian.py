"""discrete_gaussian in C."""

from __future__ import annotations

import numpy as np

from fedcore.gaussian_table import GaussianTable
from fedcore.native import address, ffi, isa_code, lib
from fedcore.native.keystream import checked_stream, stream_code


def discrete_gaussian(
    out: np.ndarray, table: GaussianTable, key: bytes, counter: int, stream: str, threads: int = 1
) -> None:
    """As fedcore.reference.discrete_gaussian, and `stream` may be 'aes256ctr'. The GIL is released while it runs."""
    struct = ffi.new("fc_gaussian_table *")
    struct.first, struct.rest = address(table.first, "const uint32_t *"), address(table.rest, "const uint64_t *")
    struct.strides = address(table.strides, "const int64_t *")
    struct.entries, struct.draws = len(table.first), len(table.strides)
    code = stream_code("discrete_gaussian", stream)
    status = lib.fc_discrete_gaussian(
        struct, code, ffi.from_buffer(key), counter, address(out, "int64_t *"), out.size, isa_code(), threads
    )
    checked_stream(status, "discrete_gaussian", stream)
