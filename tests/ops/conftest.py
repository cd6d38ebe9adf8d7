"""Fixtures that force every C instruction set in turn."""

from __future__ import annotations

import pytest

from fedcore import backends


def _implementations() -> list[str]:
    if backends.unavailable("c"):
        return []
    from fedcore.native import isa_available

    return [f"c-{isa}" for isa in isa_available()]


@pytest.fixture(params=_implementations() or ["c"])
def compiled(request, monkeypatch) -> dict:
    """Keyword arguments that force the C kernels of one ISA."""
    if request.param == "c":
        pytest.skip(f"the C kernels are not built: {backends.unavailable('c')}")
    monkeypatch.setenv("FEDCORE_ISA", request.param.removeprefix("c-"))
    return {"backend": "c"}


@pytest.fixture(params=["float32", "float16", "bfloat16"])
def dtype(request) -> str:
    return request.param
