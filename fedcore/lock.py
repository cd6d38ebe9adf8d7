"""A lock for the methods of one object: what it guards is never seen half-changed, whoever calls and from where."""

from __future__ import annotations

import os
import threading
import weakref
from contextlib import AbstractContextManager
from typing import Any

from fedcore.errors import FedcoreError, StorageError

#: from where a thread that is in a call can call again, unless something else is likelier
_CALLBACK = "another call on the same object, as by a signal handler; let that end first"


class Lock:
    """One call at a time: other threads wait. Raises `error` where a wait would have no end.

    error   what is raised
    within  what the message says of the call that a second one of the same thread came in the middle of, and what to do

    Copies that are deep or pickled are new ones that nobody holds. `with` is over an RLock itself, which enters and
    exits in C: in Python a signal handler could raise between taking the lock and the `with`, and it stayed taken.
    """

    def __init__(self, error: type[FedcoreError] = StorageError, within: str = _CALLBACK) -> None:
        self._error, self._within = error, within
        #: Any: _is_owned, which threading.Condition relies on too, is not in its type
        self._lock: Any = threading.RLock()
        self._torn = False
        _locks.add(self)

    def alone(self, what: str) -> AbstractContextManager[Any]:
        """For a `with` around the call named `what`. Raises `error` within another one, and in a forked child where a
        thread that stayed behind was in one."""
        self._check_whole(what)
        if self._lock._is_owned():
            raise self._error(f"{what}: called from within {self._within}")
        return self._lock

    def shared(self, what: str) -> AbstractContextManager[Any]:
        """The same for a call that may come within another."""
        self._check_whole(what)
        return self._lock

    def _check_whole(self, what: str) -> None:
        if self._torn:
            raise self._error(
                f"{what}: another thread was in a call on this object when this process was forked, which left it "
                "half-changed here; go on with it in the parent, or fork while no call is going on"
            )

    def _after_fork(self) -> None:
        if self._lock._is_owned():  # by the thread that forked: it goes on here
            return
        if self._lock.acquire(blocking=False):
            self._lock.release()
        else:
            self._torn = True

    def __reduce__(self) -> tuple[type[Lock], tuple[type[FedcoreError], str]]:
        return Lock, (self._error, self._within)


_locks: weakref.WeakSet[Lock] = weakref.WeakSet()


def _mark() -> None:
    """Threads other than the one that forked are not in the child: what they hold is never let go."""
    for lock in list(_locks):
        lock._after_fork()


os.register_at_fork(after_in_child=_mark)
