"""The factors of one module after the other, stacked as they were sent, and two modules worked on at a time."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from threading import Lock
from typing import Any, NamedTuple, TypeVar

import numpy as np

from fedcore.dtypes import bf16_bits, name_of
from fedcore.lora.stacks import Adapter

#: modules that are worked on at a time
WORKERS = 2
Result = TypeVar("Result")


class Terms(NamedTuple):
    """The rank-one terms of one module over some rows, in fp32, which holds whatever updates are made of.

    b, a      (d_out, R) and (R, d_in), scales not applied; they lie in a buffer that another module is read into
              afterwards
    scale     (R,) what each term is multiplied by in its update
    starts    (rows + 1,) where each row's terms begin, and the end; in the order of the rows that were asked for
    """

    b: np.ndarray
    a: np.ndarray
    scale: np.ndarray
    starts: np.ndarray

    @property
    def owner(self) -> np.ndarray:
        """(R,) the place of each term's row among those that were asked for."""
        return np.repeat(np.arange(len(self.starts) - 1), np.diff(self.starts))

    def row(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """(b, a) of one row in fp64, its scale in b."""
        terms = slice(self.starts[i], self.starts[i + 1])
        return self.b[:, terms].astype(np.float64) * self.scale[terms], self.a[terms].astype(np.float64)


def each_module(
    updates: Sequence[Adapter], modules: Sequence[str], work: Callable[[int, Terms], Result]
) -> Iterator[Result]:
    """work(m, terms) of each module over all `updates`, in the order of the modules.

    Two threads take a module each. With BLAS held to one thread (OMP_NUM_THREADS=1) both work at a time, which is the
    quickest; otherwise one works while the other reads, as threads that call a threaded BLAS at once stand in each
    other's way for minutes. What comes of a module does not depend on its turn.
    """
    turn: Any = nullcontext() if _blas_is_single() else Lock()
    sizes = []
    for module in modules:
        pair = updates[0].modules[module]
        sizes.append(sum(update.modules[module].rank for update in updates) * (pair.d_in + pair.d_out))
    buffers = [np.empty(max(sizes, default=0), np.float32) for _ in range(min(WORKERS, len(modules)))]

    def one(m: int) -> Result:
        buffer = buffers.pop()
        try:
            terms = _read(updates, modules[m], buffer)
            with turn:
                return work(m, terms)
        finally:
            buffers.append(buffer)

    with ThreadPoolExecutor(WORKERS, "fedcore-factors") as threads:
        ahead: deque[Future[Result]] = deque()
        try:
            for m in range(len(modules)):
                ahead.append(threads.submit(one, m))
                if len(ahead) > WORKERS:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for waiting in ahead:
                waiting.cancel()


def _blas_is_single() -> bool:
    """Whether NumPy's BLAS was told to use one thread; OpenBLAS heeds its own variable first."""
    return os.environ.get("OPENBLAS_NUM_THREADS", os.environ.get("OMP_NUM_THREADS")) == "1"


def _read(updates: Sequence[Adapter], module: str, buffer: np.ndarray) -> Terms:
    pairs = [update.modules[module] for update in updates]
    starts = np.concatenate(([0], np.cumsum([pair.rank for pair in pairs]))).astype(np.int64)
    terms, d_in, d_out = int(starts[-1]), pairs[0].d_in, pairs[0].d_out
    b = buffer[: d_out * terms].reshape(d_out, terms)
    a = buffer[d_out * terms :][: terms * d_in].reshape(terms, d_in)
    for update, pair, start, stop in zip(updates, pairs, starts, starts[1:], strict=False):
        _to_float32(update.tensors[pair.b], b[:, start:stop])
        _to_float32(update.tensors[pair.a], a[start:stop])
    scale = np.repeat([pair.scale for pair in pairs], np.diff(starts)).astype(np.float64)
    return Terms(b, a, scale, starts)


def _to_float32(values: np.ndarray, out: np.ndarray) -> None:
    """Every element exactly; a bf16 one is the upper half of an fp32 one."""
    if name_of(values.dtype) != "bfloat16":
        out[...] = values
        return
    bits = out.view(np.uint32)
    bits[...] = bf16_bits(values)
    np.left_shift(bits, 16, out=bits)
