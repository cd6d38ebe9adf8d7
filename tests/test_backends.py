"""Choosing a backend: argument, context, environment, then where the data lies; a request never falls back."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from inputs import make_rows

import fedcore as fc
from fedcore import backends
from fedcore.errors import BackendError


def test_the_order_of_choice(monkeypatch):
    monkeypatch.delenv("FEDCORE_BACKEND", raising=False)
    monkeypatch.setattr(backends, "unavailable", lambda _: None)
    assert backends.requested(None) is None
    monkeypatch.setenv("FEDCORE_BACKEND", "reference")
    assert backends.requested(None) == "reference"
    with fc.use_backend("triton"):
        assert backends.requested(None) == "triton"
        assert backends.requested("c") == "c"
    assert backends.requested(None) == "reference"


def test_what_is_not_available_is_refused_by_who_asked(monkeypatch):
    monkeypatch.setattr(backends, "unavailable", {"triton": "no module; install it"}.get)
    monkeypatch.setenv("FEDCORE_BACKEND", "triton")
    with pytest.raises(BackendError, match=r"^FEDCORE_BACKEND: 'triton' is not available: no module; install it$"):
        backends.requested(None)
    with fc.use_backend("triton"), pytest.raises(BackendError, match=r"^use_backend: 'triton' is not available"):
        backends.requested(None)
    with pytest.raises(BackendError, match=r"^backend: 'triton' is not available"):
        backends.requested("triton")
    assert backends.requested("c") == "c"


@pytest.mark.parametrize("how", ["argument", "context", "environment"])
def test_an_unknown_backend_is_refused(monkeypatch, how):
    rows = make_rows(2, 5, "float32")
    if how == "environment":
        monkeypatch.setenv("FEDCORE_BACKEND", "cuda")
    context = fc.use_backend("cuda") if how == "context" else contextlib.nullcontext()
    with pytest.raises(BackendError, match="got backend 'cuda', expected one of reference, c, triton"), context:
        fc.ops.squared_norms(rows, backend="cuda" if how == "argument" else None)


def test_a_choice_holds_in_its_context_and_a_thread_pool_has_another(monkeypatch):
    """As the docstring says: who gives work to a pool gives backend= with it."""
    monkeypatch.delenv("FEDCORE_BACKEND", raising=False)

    async def inside():
        with fc.use_backend("reference"), ThreadPoolExecutor(1) as pool:
            carried = await asyncio.to_thread(backends.requested, None)
            pooled = await asyncio.get_running_loop().run_in_executor(pool, backends.requested, None)
            given = await asyncio.get_running_loop().run_in_executor(pool, backends.requested, "c")
        return carried, pooled, given

    assert asyncio.run(inside()) == ("reference", None, "c")
    assert "asyncio.to_thread" in fc.use_backend.__doc__


def test_a_forced_isa_that_is_not_there_is_refused(monkeypatch):
    pytest.importorskip("fedcore.native", reason="the C kernels are not built")
    monkeypatch.setenv("FEDCORE_ISA", "sve9")
    with pytest.raises(BackendError, match="FEDCORE_ISA: got 'sve9', expected one of ref"):
        fc.ops.squared_norms(make_rows(1, 5, "float32"), backend="c")


WITHOUT_C = """
import sys, warnings
import numpy as np
sys.modules["fedcore.native._fedcore"] = None
import fedcore as fc
from fedcore.errors import BackendError
rows = np.ones((2, 10), np.float32)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    assert (fc.ops.weighted_sum(rows, [1, 1]) == 2).all()
assert "C kernels were not built" in str(caught[0].message), caught
try:
    fc.ops.weighted_sum(rows, [1, 1], backend="c")
except BackendError as error:
    assert "install a C compiler" in str(error)
    print("refused")
"""


def test_without_a_compiler_the_reference_works_and_says_so():
    result = subprocess.run([sys.executable, "-c", WITHOUT_C], capture_output=True, text=True, check=False)
    assert result.stdout.strip() == "refused", result.stderr


def test_results_are_the_same_bits_on_reference_and_c():
    pytest.importorskip("fedcore.native", reason="the C kernels are not built")
    rows = make_rows(5, 3000, "float32")
    one, two = (fc.ops.weighted_sum(rows, np.arange(5), backend=b).tobytes() for b in ("reference", "c"))
    assert one == two
