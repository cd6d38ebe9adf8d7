"""What worker processes are asked for in tests: they import it by its name."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time

from fedcore.clients import training
from fedcore.errors import NonFiniteError, TrainingError


def pid_after(seconds: float, value: int) -> tuple[int, int]:
    time.sleep(seconds)
    return value, os.getpid()


def fail(value: int) -> None:
    raise (NonFiniteError(f"client {value}", value) if value else ZeroDivisionError("by a fault"))


def break_client(broken: str | None, steps: int = 2) -> None:
    """From now on the client of that id (None: no client) fails in this process to train so many steps."""
    train = getattr(training.train, "whole", training.train)

    def failing(base, texts, settings, seed, *, client_id: str = "", **options):
        if client_id == broken and settings.steps == steps:
            raise TrainingError(f"client {client_id}: its machine is gone")
        return train(base, texts, settings, seed, client_id=client_id, **options)

    failing.whole = train
    training.train = failing


def die(number: int = signal.SIGKILL) -> None:
    os.kill(os.getpid(), number)


def hold_a_semaphore() -> bool:
    """As tqdm does, of which a process has one until it ends."""
    global _held
    _held = multiprocessing.get_context("spawn").Lock()
    return True


def die_while_answering() -> bytes:
    """An answer longer than what a pipe takes at once, amid which the process ends."""
    threading.Timer(0.5, die).start()
    return bytes(1 << 26)
