"""mask_add in C."""

from __future__ import annotations

import numpy as np

from fedcore.native import address, isa_code, lib
from fedcore.native.keystream import checked_stream, stream_code

DTYPES = {"float32": lib.FC_F32, "float64": lib.FC_F64, "uint32": lib.FC_U32, "uint64": lib.FC_U64}


def mask_add(
    values: np.ndarray,
    out: np.ndarray,
    keys: np.ndarray,
    signs: np.ndarray,
    bits: int,
    scale: float,
    limit: int,
    counter: int,
    stream: str,
    threads: int = 1,
) -> bool:
    """As fedcore.reference.mask_add, and `stream` may be 'aes256ctr'. The GIL is released while it runs.

    out may be of uint8: it gets what pack_bits makes of the residues, for a counter that is a multiple of 8.
    """
    status = lib.fc_mask_add(
        address(values, "const void *"), DTYPES[str(values.dtype)], len(values), scale, limit,
        stream_code("mask_add", stream), address(keys, "const uint8_t *"), len(keys), address(signs, "const int8_t *"),
        bits, counter, out.dtype == np.uint8, address(out, "void *"), isa_code(), threads,
    )  # fmt: skip
    if status == lib.FC_NOT_FINITE:
        return False
    checked_stream(status, "mask_add", stream)
    return True
