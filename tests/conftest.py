"""Settings of every test run."""

from __future__ import annotations

import importlib.util
import os
import sys

import numpy as np
import pytest

# From the repository's root, `kernels/` looks like an empty namespace package called `kernels`, which transformers and
# bitsandbytes would take for a public package of that name.
_spec = importlib.util.find_spec("kernels")
if _spec is not None and _spec.origin is None:
    sys.modules["kernels"] = None  # type: ignore[assignment]


def _gpu() -> bool:
    if importlib.util.find_spec("torch") is None:
        return False
    import torch

    return torch.cuda.is_available()


# Triton reads this when it is imported: without a GPU its kernels run under the interpreter.
if not _gpu():
    os.environ.setdefault("TRITON_INTERPRET", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Workers share the cores, and libraries whose idle threads spin would take them from each other. Read by torch and BLAS
# when they are imported.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request, monkeypatch) -> str:
    """Where Triton kernels run: interpreted on the CPU, compiled on a GPU.

    Interpreted, a shift by as many bits as the number has fails: NumPy gives 0, a compiler whatever it likes.
    """
    torch = pytest.importorskip("torch", reason="the Triton kernels take torch tensors")
    triton = pytest.importorskip("triton", reason="Triton is not installed; fedcore[train] brings it")
    from fedcore.kernels import fold

    interpreted = not isinstance(fold._fold_kernel, triton.JITFunction)
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU on this machine")
    if request.param == "cuda" and interpreted:
        pytest.skip("TRITON_INTERPRET is set, so kernels do not reach the GPU; unset it")
    if request.param == "cpu" and not interpreted:
        pytest.skip("kernels are compiled for the GPU here; set TRITON_INTERPRET=1 to run them interpreted")
    if interpreted:
        from triton.runtime.interpreter import InterpreterBuilder

        monkeypatch.setattr(InterpreterBuilder, "binary_op", _with_shifts_checked(InterpreterBuilder.binary_op))
    return request.param


def _with_shifts_checked(binary_op):
    """Triton's interpreter's binary_op, which asserts that shifts are from 0 to the width, the width excluded."""

    def checked(self, lhs, rhs, op):
        if op in (np.left_shift, np.right_shift):
            width = 8 * lhs.data.dtype.itemsize
            assert ((rhs.data >= 0) & (rhs.data < width)).all(), f"a shift of {width} bits by {rhs.data.max()}"
        return binary_op(self, lhs, rhs, op)

    return checked


@pytest.fixture
def sampler(monkeypatch):
    """Noise of private releases that a test can follow: see `private_releases`."""
    from private_releases import injected

    return injected(monkeypatch)


@pytest.fixture
def silent(sampler):
    """Releases without their noise."""
    sampler.on = False
    return sampler


@pytest.fixture
def disk(tmp_path, monkeypatch):
    """What of `tmp_path` a crash would leave: see `durable_disk`."""
    from durable_disk import watched

    with watched(tmp_path, monkeypatch) as found:
        yield found


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """The folder of a private run that is over, for reading; what changes it takes a copy."""
    from private_runs import run

    path = tmp_path_factory.mktemp("private") / "run"
    run(path)
    return path
