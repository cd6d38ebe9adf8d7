"""Worker processes: calls that do not depend on each other, each worker with its share of the cores.

A small model's operations are too short for the threads of one process to share: two clients in two processes are done
in little more than the time of one.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import traceback
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Any

from fedcore.errors import BackendError, FedcoreError

#: what a worker is asked for: a partial of functions and values that pickle
Call = Callable[[], Any]
#: calls of one `each` that may be done before an earlier one is, for each worker: what they gave is held meanwhile
_AHEAD = 2


class Workers:
    """`count` processes, started at once and ended with the `with` block, or when this process dies in any way."""

    def __init__(self, count: int):
        context = multiprocessing.get_context("spawn")  # a fork would take over locks of torch's threads
        threads = max(1, _cores() // count)
        self._processes, self._idle = {}, []
        self._busy: dict[Connection, tuple[object, int]] = {}
        self._fault: Exception | None = None
        # Ctrl+C reaches the whole group of processes; only this one says what became of it. Where the tracker starts
        # in between, it lifts the mask.
        resource_tracker.ensure_running()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            for _ in range(count):
                here, there = context.Pipe()
                process = context.Process(target=_serve, args=(there, threads), daemon=True)
                process.start()
                there.close()
                self._processes[here] = process
                self._idle.append(here)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for connection, process in self._processes.items():
            process.terminate()
            process.join()
            connection.close()

    def everywhere(self, call: Call) -> None:
        """Have every worker make a call before any later one; returns at once, an error of it is raised by `each`."""
        while self._busy:
            self._receive()
        for connection in [*self._idle]:
            self._send(connection, call, (self, 0))

    def each(self, calls: Iterable[Call]) -> Iterator[Call]:
        """For each call, in order, what returns its result or raises its error; later ones are under way meanwhile.

        Raises BackendError where a worker died, and the error of a call that each had to make first.
        """
        this, coming = object(), enumerate(calls)
        done: dict[int, Call] = {}
        head, after = 0, 0
        following = next(coming, None)
        while following is not None or head < after:
            while following is not None and self._idle and following[0] < head + _AHEAD * len(self._processes):
                self._send(self._idle[-1], following[1], (this, following[0]))
                after, following = following[0] + 1, next(coming, None)
            if head in done:
                yield done.pop(head)
                head += 1
            else:
                if self._fault is not None:
                    raise self._fault
                done.update((number, answer) for whose, number, answer in self._receive() if whose is this)

    def _send(self, connection: Connection, call: Call, ticket: tuple[object, int]) -> None:
        self._idle.remove(connection)
        self._busy[connection] = ticket
        try:
            # not `send`, with which tensors would travel through shared memory
            connection.send_bytes(pickle.dumps(call))
        except (BrokenPipeError, ConnectionResetError):
            self._lost(connection)

    def _receive(self) -> list[tuple[object, int, Call]]:
        """Wait for answers: whose they are, the number of the call, and what gives its result."""
        found = []
        for connection in wait(list(self._busy)):
            assert isinstance(connection, Connection)
            try:
                answer = pickle.loads(connection.recv_bytes())
            except (EOFError, ConnectionResetError):
                self._lost(connection)
            whose, number = self._busy.pop(connection)
            self._idle.append(connection)
            found.append((whose, number, answer))
            if whose is self:
                try:
                    answer()
                except Exception as error:
                    self._fault = error
        return found

    def _lost(self, connection: Connection) -> None:
        process = self._processes[connection]
        process.join()
        raise BackendError(
            f"worker processes: one of {len(self._processes)} ended with {_ending(process.exitcode)}, expected an "
            "answer; if memory ran out, each holds a model of its own: lower run.workers"
        )


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _ending(code: int | None) -> str:
    return f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"


def _serve(connection: Connection, threads: int) -> None:
    """What a worker does: answer calls until the other side closes, or dies."""
    import torch

    torch.set_num_threads(threads)
    try:
        while True:
            connection.send_bytes(_answer(connection.recv_bytes()))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


def _answer(call: bytes) -> bytes:
    try:
        return pickle.dumps(partial(_result, pickle.loads(call)()))
    except FedcoreError as error:
        return pickle.dumps(partial(_raise, error))
    except Exception:  # a fault of ours, to be seen where it happened
        return pickle.dumps(partial(_raise, RuntimeError(f"in a worker process:\n{traceback.format_exc()}")))


def _result(value: Any) -> Any:
    return value


def _raise(error: Exception) -> None:
    raise error
