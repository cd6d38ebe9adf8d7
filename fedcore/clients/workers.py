"""Worker processes: calls that do not depend on each other, each worker with its share of the cores.

A small model's operations are too short for the threads of one process to share: two clients in two processes are done
in little more than the time of one.
"""

from __future__ import annotations

import errno
import multiprocessing
import os
import pickle
import signal
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Any

from fedcore.errors import BackendError, FedcoreError
from fedcore.ops.rows import available_cores

#: what a worker is asked for: a partial of functions and values that pickle
Call = Callable[[], Any]
#: calls of one `each` that may be done before an earlier one is, for each worker: what they gave is held meanwhile
_AHEAD = 2
#: seconds that workers have to end by themselves, which gives back what multiprocessing made in them: semaphores, say
_TO_END = 5


class Workers:
    """`count` processes, started at once, that end with the `with` block, or with this process however it dies.

    threads  of torch in each, or fewer where OMP_NUM_THREADS says so

    As multiprocessing has it, a script that makes one begins its own work under `if __name__ == "__main__":`.
    """

    def __init__(self, count: int):
        context = multiprocessing.get_context("spawn")  # a fork would take over locks of torch's threads
        self.threads = max(1, available_cores() // count)
        self._processes, self._idle = {}, []
        #: what each busy one is at: whose call, and its number there
        self._busy: dict[Connection, tuple[object, int]] = {}
        #: answers that wait for the `each` that asked
        self._answers: dict[object, dict[int, Call]] = {}
        self._fault: Exception | None = None
        # Ctrl+C reaches the whole group of processes; only this one says what became of it. Where the tracker starts
        # in between, it lifts the mask.
        resource_tracker.ensure_running()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            for _ in range(count):
                here, there = context.Pipe()
                process = context.Process(target=_serve, args=(there, self.threads), daemon=True)
                process.start()
                there.close()
                self._processes[here] = process
                self._idle.append(here)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for connection in self._processes:
            connection.close()  # which ends them, once they are idle
        for process in self._processes.values():
            process.join(_TO_END if kind is None else 0)
            process.kill()  # they keep nothing
            process.join()

    def everywhere(self, call: Call) -> None:
        """Have every worker make a call before any later one, not waited for; an error of it is raised by `each`."""
        while self._busy:
            self._receive()
        data = pickle.dumps(call)
        for connection in [*self._idle]:
            self._send(connection, data, (self, 0))

    def each(self, calls: Iterable[Call]) -> Iterator[Call]:
        """For each call, in order, what returns its result or raises its error; later ones are under way meanwhile.

        Raises BackendError where a worker died, and the error of a call that each had to make first.
        """
        this, coming = object(), enumerate(calls)
        done = self._answers[this] = {}
        head, after = 0, 0
        try:
            following = next(coming, None)
            while following is not None or head < after:
                while following is not None and self._idle and following[0] < head + _AHEAD * len(self._processes):
                    self._send(self._idle[-1], pickle.dumps(following[1]), (this, following[0]))
                    after, following = following[0] + 1, next(coming, None)
                if head in done:
                    yield done.pop(head)
                    head += 1
                else:
                    if self._fault is not None:
                        raise self._fault
                    self._receive()
        finally:
            del self._answers[this]

    def _send(self, connection: Connection, call: bytes, ticket: tuple[object, int]) -> None:
        self._idle.remove(connection)
        self._busy[connection] = ticket
        try:
            connection.send_bytes(call)  # not `send`, with which tensors would travel through shared memory
        except (BrokenPipeError, ConnectionResetError):
            self._lost(connection)

    def _receive(self) -> None:
        """Wait for answers, and keep those that somebody waits for."""
        for connection in wait(list(self._busy)):
            assert isinstance(connection, Connection)
            try:
                data = connection.recv_bytes()
            except (EOFError, OSError) as error:
                # one that ends amid its answer is an OSError without a number
                if isinstance(error, OSError) and error.errno not in (None, errno.ECONNRESET):
                    raise
                self._lost(connection)
            whose, number = self._busy.pop(connection)
            self._idle.append(connection)
            answer = pickle.loads(data)
            if whose in self._answers:
                self._answers[whose][number] = answer
            elif whose is self:
                try:
                    answer()
                except Exception as error:
                    self._fault = error

    def _lost(self, connection: Connection) -> None:
        process = self._processes[connection]
        process.join()
        code, count = process.exitcode or 0, len(self._processes)
        if code in (-signal.SIGKILL, -signal.SIGTERM):
            end, do = f"signal {-code}", "if memory ran out, each holds a model of its own: lower run.workers"
        elif code < 0:
            end, do = f"signal {-code}", "a library crashed: report it with what fedcore doctor prints"
        else:
            end, do = f"exit code {code}", "what it said on standard error tells why"
        raise BackendError(f"worker processes: one of {count} ended with {end}, expected an answer; {do}")


def _serve(connection: Connection, threads: int) -> None:
    """What a worker does: answer calls until the other side closes, or dies."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    import torch

    torch.set_num_threads(min(threads, torch.get_num_threads()))
    try:
        while True:
            connection.send_bytes(_answer(connection.recv_bytes()))
    except (EOFError, OSError):
        return


def _end_with(parent: Any) -> None:
    """Leave in the middle of a call, which may be long, when the process dies that asked for it."""
    parent.join()
    os._exit(1)


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
