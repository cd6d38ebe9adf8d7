"""Which implementation of an op runs: the (op, backend) table and the order in which a choice is made.

An explicit argument beats the `use_backend` context manager, which beats FEDCORE_BACKEND, which beats where the data
lies. A backend that was asked for by any of the first three never falls back: it works or BackendError is raised.
"""

from __future__ import annotations

import functools
import importlib
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from fedcore.errors import BackendError
from fedcore.numbers import among, shown

BACKENDS = ("reference", "c", "triton")
OPS = (
    "weighted_sum",
    "squared_norms",
    "gram",
    "squared_distances",
    "median",
    "trimmed_mean",
    "mean_around_median",
    "weighted_sums",
    "sign_counts",
    "clip_round",
    "clip_noise_accumulate",
    "hadamard",
    "exact_sum",
    "exact_round",
    "lora_delta_sum",
    "lora_blocks",
    "lora_gram",
    "lora_delta_median",
    "lora_delta_trimmed_mean",
    "keystream",
    "keystream_add",
    "discrete_gaussian",
    "mask_add",
    "pack_bits",
    "unpack_add",
    "shamir_split",
    "shamir_combine",
)

_MODULES = {"reference": "fedcore.reference", "c": "fedcore.native", "triton": "fedcore.kernels"}
#: what importing a backend raises where a package is missing, or the libraries of one, as torch's, do not load
BROKEN = (ImportError, OSError)
#: what has no entry: (op, backend)
_ABSENT = {(op, "triton") for op in ("exact_sum", "exact_round", "shamir_split", "shamir_combine")}

_chosen: ContextVar[str | None] = ContextVar("fedcore_backend", default=None)


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Run every op inside the `with` block on one backend: 'reference', 'c' or 'triton'. BackendError if unknown.

    That is every op of this context, as contextvars has it: `asyncio.to_thread` carries it along, a thread pool and
    `loop.run_in_executor` do not. Give backend= to work that a pool does.
    """
    token = _chosen.set(_known(name, "use_backend"))
    try:
        yield
    finally:
        _chosen.reset(token)


def _known(name: str, source: str) -> str:
    if not among(name, BACKENDS):
        raise BackendError(f"{source}: got backend {shown(name)}, expected one of {', '.join(BACKENDS)}")
    return name


def _usable(name: str, source: str, op: str | None) -> str:
    _known(name, source)
    if op is not None:  # first: no installation would help
        _check_has(op, name)
    if reason := unavailable(name):
        raise BackendError(f"{source}: {name!r} is not available: {reason}")
    return name


def _check_has(op: str, backend: str) -> None:
    if (op, backend) in _ABSENT:
        raise BackendError(f"{op}: the {backend} backend has no such kernel; use 'c' or 'reference'")


def requested(explicit: str | None, op: str | None = None) -> str | None:
    """The backend that somebody asked for, or None when the data is to decide.

    Raises BackendError for one that is unknown, has no kernel of `op` or is not available here, before anything looks
    at the data.
    """
    if explicit is not None:
        return _usable(explicit, "backend", op)
    if (chosen := _chosen.get()) is not None:
        return _usable(chosen, "use_backend", op)
    if name := os.environ.get("FEDCORE_BACKEND"):
        return _usable(name, "FEDCORE_BACKEND", op)
    return None


@functools.cache
def unavailable(backend: str) -> str | None:
    """Why a backend cannot be used here, in words, or None if it can."""
    try:
        importlib.import_module(_MODULES[backend])
    except BROKEN as error:
        there = not isinstance(error, ModuleNotFoundError)
        remedy = {
            "c": "install a C compiler and reinstall fedcore",
            "triton": "reinstall torch and triton" if there else "install fedcore[train] for torch and triton",
        }.get(backend, "reinstall fedcore")
        return f"{error}; {remedy}"
    return None


def selected_isa() -> str | None:
    """The instruction set whose C kernels run here, or None where they were not built."""
    return importlib.import_module(_MODULES["c"]).isa_selected() if unavailable("c") is None else None


def implementation(op: str, backend: str) -> Callable:
    """The function that implements `op` on `backend`. Raises BackendError saying why there is none."""
    _check_has(op, backend)
    try:
        return getattr(importlib.import_module(f"{_MODULES[backend]}.{op}"), op)
    except BROKEN as error:
        raise BackendError(f"{op}: backend {backend!r} is not available: {unavailable(backend) or error}") from error


def default(on_gpu: bool) -> str:
    """Where nobody asked: Triton for data on a GPU, else the C kernels, else the reference with one warning."""
    if on_gpu:
        return "triton"
    if unavailable("c") is None:
        return "c"
    warnings.warn(
        "fedcore runs on its NumPy reference, which is 10 to 100 times slower: the C kernels were not built; "
        "install a C compiler and reinstall fedcore, or run `fedcore doctor`",
        RuntimeWarning,
        stacklevel=4,
    )
    return "reference"
