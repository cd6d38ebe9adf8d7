"""Signals that ask a command to end: each is a KeyboardInterrupt, so that what is half-written is removed."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

#: Ctrl+C, what service managers and schedulers send, and a terminal that went away
_ASKING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
#: seconds in which signals count as one: some senders send two at once, and the second would come amid the clean-up
TOGETHER = 1.0


class Ended(KeyboardInterrupt):
    """A signal that asked to end."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.number = number


class Interrupted(Exception):
    """A command that was asked to end, in words: by what, and what it left. `code` is the exit code."""

    def __init__(self, error: KeyboardInterrupt, left: str = ""):
        number = error.number if isinstance(error, Ended) else signal.SIGINT
        by = "" if number == signal.SIGINT else f" by {error}"
        super().__init__(f"interrupted{by}{left}")
        self.code = 128 + number


@contextmanager
def heeded() -> Iterator[None]:
    """Raise Ended for each of these signals within, once for those that come together.

    Those that are ignored, as under nohup, stay so, and so does what the process handles in its own way. Does nothing
    in another thread than the main one, which gets no signals.
    """
    last = -TOGETHER

    def end(number: int, _: FrameType | None) -> None:
        nonlocal last
        if (now := time.monotonic()) - last >= TOGETHER:
            last = now  # of the one that counted: who asks more often than that is heard all the same
            raise Ended(number)

    own = (signal.SIG_DFL, signal.default_int_handler)
    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in _ASKING if main}
    taken = {number: handler for number, handler in before.items() if handler in own}
    try:
        for number in taken:
            signal.signal(number, end)
        yield
    finally:
        for number, handler in taken.items():
            signal.signal(number, handler)
