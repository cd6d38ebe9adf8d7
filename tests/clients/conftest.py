"""A tiny base model, made once per run: one second of work, real enough to quantise, train and evaluate."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="the clients need torch: pip install 'fedcore[train]'")
pytest.importorskip("peft", reason="the clients need peft: pip install 'fedcore[train]'")
pytest.importorskip("bitsandbytes", reason="the clients need bitsandbytes: pip install 'fedcore[train]'")

from fedcore.clients import AdapterSettings, PretrainingSettings, attach, load_base, make_base

TINY = PretrainingSettings(
    vocabulary=300,
    hidden=64,
    layers=2,
    heads=2,
    intermediate=128,
    rounds=2,
    local_steps=3,
    batch_size=4,
    sequence_length=32,
)


@pytest.fixture(scope="session")
def texts():
    """Some 60 short texts that a small model can learn something from in a few steps."""
    verbs, things = ("Return", "Read", "Write", "Close", "Open"), ("the file", "a socket", "every line", "the queue")
    return [f"{verb} {thing}, or raise an error number {i}." for i in range(3) for verb in verbs for thing in things]


@pytest.fixture(scope="session")
def tiny_settings():
    return TINY


@pytest.fixture(scope="session")
def tiny_directory(tmp_path_factory, texts):
    return make_base(tmp_path_factory.mktemp("clients") / "tiny", {"a": texts[::2], "b": texts[1::2]}, TINY, seed=0)


@pytest.fixture
def base(tiny_directory):
    """The tiny base in NF4, freshly loaded."""
    return load_base(tiny_directory, device="cpu")


@pytest.fixture
def adapted(base):
    """The tiny base in NF4 with an initial adapter: (base, initial update)."""
    return base, attach(base, AdapterSettings(rank=4, alpha=8.0), seed=0)
