"""A lock that objects which are copied or pickled can hold."""

from __future__ import annotations

import threading


class Lock:
    """threading.Lock for `with`; what copies deeply or pickles gets a new one that nobody holds."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple[type[Lock], tuple[()]]:
        return Lock, ()
