"""Triton hadamard against its definition, interpreted and on a GPU."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the Triton kernels take torch tensors")
pytest.importorskip("triton", reason="Triton is not installed; fedcore[train] brings it")

from triton_rows import check_bits, make_rows  # noqa: E402

import fedcore as fc  # noqa: E402
from fedcore.errors import NonFiniteError  # noqa: E402
from fedcore.kernels import hadamard  # noqa: E402
from fedcore.reference import hadamard as definition  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, for the Inf and NaN that tests feed


@pytest.mark.parametrize(("block", "count"), [(1, 5), (2, 3), (32, 200), (4096, 3), (8192, 1), (1 << 17, 1)])
def test_bits(device, block, count):
    row = make_rows(1, block * count, "float32", device, seed=count, spread=8.0)[0]
    expected = row.cpu().numpy().copy()
    assert not definition.hadamard(expected, block)
    assert not hadamard.hadamard(row, block)
    check_bits(row, expected)


def test_no_elements(device):
    assert not hadamard.hadamard(torch.empty(0, device=device), 8)


def test_public_function_in_place(device):
    x = torch.arange(64, dtype=torch.float32, device=device)
    assert fc.ops.hadamard(x, 16, backend="triton") is x
    array = np.arange(64, dtype=np.float32)
    fc.ops.hadamard(array, 16, backend="triton")
    assert array.tolist() == x.tolist()
    assert array[0] == sum(range(16)) / 4
    for value in (float("nan"), float("inf")):
        x[20] = value
        with pytest.raises(NonFiniteError, match="an output is not finite"):
            fc.ops.hadamard(x.clone(), 16, backend="triton")
