"""What measures a GPU, triton_lora.py and triton_streams.py, at tiny sizes: checks pass, or find an op that is wrong.

Interpreted on the CPU, compiled on a GPU.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="it measures kernels on torch tensors")
pytest.importorskip("triton", reason="Triton is not installed; fedcore[train] brings it")

import fedcore as fc  # noqa: E402

FOLDER = Path(__file__).parents[1] / "benchmarks"
ROOF = {f"{name} matrix product, flop/s": 1e9 for name in ("fp32", "fp64", "tf32", "bf16")}


@pytest.fixture
def lines(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.delitem(sys.modules, "inputs", raising=False)  # the tests have one of that name, too
    module = importlib.import_module("triton_lora")
    monkeypatch.setattr(module, "CHECKED", ((9, 20, [3, 1, 2]),))
    yield module
    for name in ("triton_lora", "inputs"):
        sys.modules.pop(name, None)


@pytest.fixture
def batched(monkeypatch):
    """Tensors take the path of a GPU wherever they lie."""
    monkeypatch.setattr("fedcore.ops.lora_stack.Parts.on_gpu", property(lambda parts: parts.device is not None))


OPS = ["lora_delta_sum", "lora_delta_median", "lora_delta_trimmed_mean", "lora_gram", "lora_truncate"]


def test_every_lora_op_has_a_line(lines):
    assert list(lines.LINES) == OPS


@pytest.mark.parametrize("op", OPS)
def test_each_op_passes_its_check_and_has_figures(lines, batched, device, op):
    sizes = lines.Sizes(d=33, clients=5, rank=3, linear=((32, 24),), layers=1, gram=3, rounds=1)
    found = lines.line(op, sizes, device, ["bfloat16"], ROOF)
    assert "wrong" not in found, found
    assert all(name.endswith(", bfloat16") for name in found)
    for figures in found.values():
        assert 0 < figures["min"] <= figures["median"] <= figures["max"]
        parts = [value for name, value in figures.items() if name.startswith("part of the")]
        assert parts
        assert parts[0] == pytest.approx(figures["flop/s"] / 1e9)


@pytest.mark.parametrize("op", OPS)
def test_each_check_finds_an_op_that_is_a_little_off(lines, batched, device, monkeypatch, op):
    """A result off by 1e-4 of itself in one place."""
    name = "lora_truncate_modules" if op == "lora_truncate" else op
    right = getattr(fc.ops, name)

    def off(*given, **options):
        found = right(*given, **options)
        if op == "lora_truncate":
            found[0][4].b[3, 1] *= 1.001
        elif options.get("backend") == "triton":
            largest = found.argmax() if isinstance(found, np.ndarray) else int(found.abs().argmax())
            found.reshape(-1)[largest] *= 1 + 1e-4
        return found

    monkeypatch.setattr(fc.ops, name, off)
    assert list(lines.LINES[op][0](device))


@pytest.fixture
def streams(lines, monkeypatch):
    module = importlib.import_module("triton_streams")
    monkeypatch.setattr(module, "UNMASKED", ((9, 2),))
    monkeypatch.setattr(module, "BLOCKS", (1, 64))
    yield module
    sys.modules.pop("triton_streams", None)


def test_streams_pass_their_checks_and_have_figures(streams, device):
    for op in streams.STREAMS:
        found = streams.stream_line(op, streams.Sizes(40, 1, 2, 1), device, {"copy, bytes/s": 1e9})
        assert "wrong" not in found, (op, found)
        for figures in found.values():
            assert 0 < figures["min"] <= figures["median"] <= figures["max"]
            assert figures["part of the copy bandwidth"] == pytest.approx(figures["GB/s"])


@pytest.mark.parametrize("op", ["unmask_sum", "hadamard", "clip_noise_accumulate"])
def test_the_checks_of_streams_find_one_bit(streams, device, monkeypatch, op):
    right = getattr(fc.ops, op)

    def off(*given, **options):
        found = right(*given, **options)
        if options["backend"] == "triton":
            bits = (found.sum if op == "clip_noise_accumulate" else found).view(torch.int32)
            bits[-1] ^= 1
        return found

    monkeypatch.setattr(fc.ops, op, off)
    assert list(streams.STREAMS[op][0](device))
