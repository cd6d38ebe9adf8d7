"""What worker processes are asked for in tests: they import it by its name."""

from __future__ import annotations

import os
import signal
import time

from fedcore.errors import NonFiniteError


def pid_after(seconds: float, value: int) -> tuple[int, int]:
    time.sleep(seconds)
    return value, os.getpid()


def fail(value: int) -> None:
    raise (NonFiniteError(f"client {value}", value) if value else ZeroDivisionError("by a fault"))


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
