"""The Triton ChaCha20 against its definition, under Triton's interpreter and, with `-m gpu`, on a GPU."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the Triton kernels take torch tensors")
pytest.importorskip("triton", reason="Triton is not installed; fedcore[train] brings it")

import fedcore as fc  # noqa: E402
from fedcore.kernels import chacha20  # noqa: E402

KEY, NONCE, LAST = bytes(range(7, 39)), bytes(range(200, 212)), (1 << 32) - 1
#: bytes of a program
PROGRAM = chacha20.LANES * chacha20.BLOCK_BYTES


@pytest.mark.parametrize("size", [0, 63, PROGRAM + 70])
def test_keystream(device, size):
    for counter in (0, LAST - PROGRAM // 32):
        expected = fc.ops.keystream(size, KEY, NONCE, counter, backend="reference")
        assert (fc.ops.keystream(size, KEY, NONCE, counter, backend="triton") == expected).all()


@pytest.mark.parametrize("length", [0, 17, PROGRAM // 4 + 33])
def test_keystream_add(device, length):
    values = np.random.default_rng(length).integers(0, 1 << 32, length, np.uint32)
    expected, keys, signs = values.copy(), [KEY, KEY[::-1]], [1, -1]
    fc.ops.keystream_add(expected, keys, NONCE, 3, signs, backend="reference")
    tensor = torch.from_numpy(values.view(np.int32).copy()).to(device)
    fc.ops.keystream_add(tensor, keys, NONCE, 3, signs, backend="triton")
    assert (tensor.cpu().numpy().view(np.uint32) == expected).all()
    if device == "cpu":  # an array too is changed in place
        fc.ops.keystream_add(values, keys, NONCE, 3, signs, backend="triton")
        assert (values == expected).all()
