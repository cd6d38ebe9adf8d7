"""What is fuzzed: every decoder of bytes that somebody else sent, and the kernels on whatever they let through.

A target takes bytes and returns. The only exception that may leave a decoder is a FedcoreError.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

import fedcore as fc
from fedcore.errors import FedcoreError
from fedcore.federation.config_file import load_config
from fedcore.updates import Update

SHAPES = {"m.lora_A.weight": (2, 6), "m.lora_B.weight": (5, 2), "head": (37,)}
CONFIG = {"r": 2, "lora_alpha": 4, "peft_type": "LORA", "target_modules": ["m"]}
TOML = b"""
[run]
name = "x"
rounds = 1
"""


def seed_update(client: str = "a", dtype: type = np.float32) -> Update:
    """A small valid update: a pair and a dense tensor."""
    rng = np.random.default_rng(1)
    tensors = {name: rng.normal(size=shape).astype(dtype) for name, shape in SHAPES.items()}
    return Update.from_tensors(tensors, scaling={"m": 2.0}, client_id=client, num_examples=3, adapter_config=CONFIG)


def message(data: bytes) -> None:
    """The bytes of a client's message; what is accepted is aggregated with itself, in both spaces."""
    with contextlib.suppress(FedcoreError):
        update = Update.from_bytes(data)
        for space in ("parameters", "delta"):
            with contextlib.suppress(FedcoreError):
                fc.aggregate([update], fc.rules.NormClipping(1.0), space=space, threads=1)
        with contextlib.suppress(FedcoreError):
            fc.aggregate([update], fc.rules.Median(), space="parameters", threads=1)
        update.digest()
        Update.from_bytes(update.to_bytes())


def directory(data: bytes) -> None:
    """The tensors of an adapter directory, read through a memory map."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "adapter_config.json").write_text(json.dumps(CONFIG))
        (Path(folder) / "adapter_model.safetensors").write_bytes(data)
        with contextlib.suppress(FedcoreError):
            update = Update.from_peft(folder)
            fc.aggregate([update], fc.rules.Mean(), space="parameters", threads=1)
        with contextlib.suppress(FedcoreError):  # in tiles, read from the file
            fc.aggregate([folder], fc.rules.Median(), space="parameters", threads=1)


def stored(data: bytes) -> None:
    """What an Accumulator finds in its directory: an update, and before the first line break the weight beside it."""
    weight, _, update = data.partition(b"\n")
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "a.weight").write_bytes(weight)
        (Path(folder) / "a.safetensors").write_bytes(update)
        with contextlib.suppress(FedcoreError):
            fc.Accumulator(fc.rules.GeometricMedian(weighted=True), folder, threads=1).result()


def adapter_config(data: bytes) -> None:
    """The configuration of an adapter directory."""
    with tempfile.TemporaryDirectory() as folder:
        seed_update().to_peft(Path(folder) / "a")
        (Path(folder) / "a" / "adapter_config.json").write_bytes(data)
        with contextlib.suppress(FedcoreError):
            Update.from_peft(Path(folder) / "a")


def run_config(data: bytes) -> None:
    """The configuration file of a run."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.toml"
        path.write_bytes(data)
        with contextlib.suppress(FedcoreError):
            load_config(path)


#: name -> (target, valid inputs to start from)
TARGETS: dict[str, tuple[Callable[[bytes], None], list[bytes]]] = {}


def _register() -> None:
    halves = seed_update("b", np.float16)
    encoded = [seed_update(format).quantize(format).to_bytes() for format in ("int8", "nf4")]
    messages = [seed_update().to_bytes(), halves.to_bytes(), *encoded]
    demo = (Path(fc.__file__).parent / "cli" / "demo.toml").read_bytes()
    TARGETS["message"] = (message, messages)
    TARGETS["directory"] = (directory, messages)
    TARGETS["stored"] = (stored, [b"0x1.8p+1\n" + data for data in messages])
    TARGETS["adapter_config"] = (adapter_config, [json.dumps(CONFIG).encode()])
    TARGETS["run_config"] = (run_config, [demo])


_register()
