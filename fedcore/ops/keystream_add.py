"""The public sum of keystreams into a vector: masks."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedcore.backends import implementation
from fedcore.errors import DTypeError, ShapeError
from fedcore.ops.rows import thread_count
from fedcore.ops.streams import NONCE, block_counter, fixed_bytes, key_rows, plus_or_minus, stream_backend
from fedcore.ops.tensors import check_plain, check_reach, is_torch


def keystream_add(
    values: Any,
    keys: Any,
    nonce: Any,
    counter: int,
    signs: Any,
    stream: str = "chacha20",
    backend: str | None = None,
    threads: int | None = None,
) -> None:
    """Add or subtract the keystreams of several keys, as little-endian uint32, to a vector in place, modulo 2³².

    values    (length,) uint32 array, or a torch.uint32 or torch.int32 tensor on a CPU or GPU, contiguous; changed
    keys      n keys of 32 bytes, or an (n, 32) uint8 array
    nonce     12 bytes, for all keys
    counter   the first block's number, for all keys
    signs     n numbers, each 1 (add) or −1 (subtract)
    stream    as in keystream: values[k] += Σ_i signs[i] · (bytes 4k to 4k + 3 of keystream(…, keys[i], nonce, counter))

    One pass over `values`: a piece that fits the first-level cache takes all keys before the next one is read.
    Raises DTypeError and ShapeError for what it cannot write to, ShapeError for keys, nonce and signs that do not fit,
    RangeError for a counter that would wrap, BackendError; `values` is unchanged after any of them.
    """
    target = _target(values)
    name = stream_backend("keystream_add", stream, backend, on_gpu=is_torch(target))
    if is_torch(target):
        check_reach("values", target.device, name)
    secrets = key_rows("keystream_add", keys)
    once = fixed_bytes("keystream_add", "nonce", nonce, NONCE)
    first = block_counter("keystream_add", stream, counter, 4 * len(target))
    directions, count = plus_or_minus(signs, len(secrets)), thread_count(threads)
    if name == "triton" and not is_torch(target):
        import torch

        target = torch.from_numpy(target.view(np.int32))
    implementation("keystream_add", name)(target, secrets, once, first, directions, stream, count)


def _target(values: Any) -> Any:
    """An array over the memory of `values`, or a tensor of int32 on a GPU."""
    check_plain("values", values)
    if is_torch(values):
        import torch

        if values.dtype not in (torch.uint32, torch.int32):
            raise DTypeError(f"values: got {values.dtype}, expected torch.uint32 or torch.int32")
        if values.ndim != 1 or not values.is_contiguous() or values.data_ptr() % 4:
            raise ShapeError(
                f"values: got shape {tuple(values.shape)}, expected one dimension, contiguous and aligned; pass a copy"
            )
        words = values.detach().view(torch.int32)
        return words if values.device.type != "cpu" else words.numpy().view(np.uint32)
    if not isinstance(values, np.ndarray) or values.dtype != np.uint32:
        raise DTypeError(f"values: got {getattr(values, 'dtype', type(values).__name__)}, expected a uint32 array")
    if values.ndim != 1 or not values.flags.c_contiguous or not values.flags.aligned or not values.flags.writeable:
        raise ShapeError(
            f"values: got shape {values.shape}, expected one dimension, contiguous, aligned and writable; pass a copy"
        )
    return values
