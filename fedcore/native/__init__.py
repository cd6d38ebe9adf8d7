"""The C kernels through cffi. Importing this raises ImportError where they were not built."""

from __future__ import annotations

import os
import weakref
from typing import Any

import numpy as np

from fedcore.errors import BackendError, WorkSpaceError
from fedcore.native._fedcore import ffi, lib
from fedcore.rowtable import RowTable

ISAS = {
    "ref": lib.FC_ISA_REF,
    "avx2": lib.FC_ISA_AVX2,
    "avx512": lib.FC_ISA_AVX512,
    "neon": lib.FC_ISA_NEON,
    "amx": lib.FC_ISA_AMX,
}
#: a struct owns none of the structs that it points to: they live as long as it does
_encodings: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()
DTYPES = {"float32": lib.FC_F32, "float16": lib.FC_F16, "bfloat16": lib.FC_BF16, "float64": lib.FC_F64}


def isa_available() -> list[str]:
    """Names of the instruction sets that this machine runs, slowest first."""
    return [name for name, code in ISAS.items() if lib.fc_isa_available(code)]


def isa_selected() -> str:
    """The instruction set that the kernels use: FEDCORE_ISA if set, else the best available."""
    return {code: name for name, code in ISAS.items()}[isa_code() or lib.fc_isa_best()]


def isa_code() -> int:
    """FEDCORE_ISA as the C API takes it; 0 (the best) when unset. Raises BackendError for one that cannot run here."""
    name = os.environ.get("FEDCORE_ISA")
    if not name:
        return 0
    if name not in isa_available():
        raise BackendError(f"FEDCORE_ISA: got {name!r}, expected one of {', '.join(isa_available())} on this machine")
    return ISAS[name]


def c_rows(rows: RowTable | None) -> Any:
    """The fc_rows of a table (NULL for None). It points into the table's arrays, which the caller keeps alive."""
    if rows is None:
        return ffi.NULL
    struct = ffi.new("fc_rows *")
    struct.pointers = ffi.cast("const void *const *", rows.pointers.ctypes.data)
    struct.starts = ffi.cast("const int64_t *", rows.starts.ctypes.data)
    struct.segments, struct.rows, struct.dtype = len(rows.lengths), rows.n, DTYPES[rows.dtype]
    if rows.encoding is not None:
        assert rows.scales is not None
        encoding = ffi.new("fc_encoding *")
        encoding.formats = address(rows.encoding.formats, "const uint8_t *")
        encoding.scales = address(rows.scales, "const void *const *")
        encoding.origins = address(rows.encoding.origins, "const int64_t *")
        struct.encoding = _encodings[struct] = encoding
    return struct


def address(array: np.ndarray, kind: str) -> Any:
    """A C pointer to an array's memory, which it does not keep alive: the array has a name while C runs."""
    return ffi.cast(kind, array.ctypes.data)


def checked(status: int, op: str) -> int:
    """Raise for a status that is not about the data."""
    if status == lib.FC_NO_MEMORY:
        raise WorkSpaceError(f"{op}: no memory for its work space; use fewer threads or free memory")
    if status == lib.FC_NO_ISA:
        raise BackendError(f"{op}: the forced instruction set cannot run on this machine")
    return status
