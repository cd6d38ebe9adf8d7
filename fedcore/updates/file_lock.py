"""Locks between processes, on files that are open for writing: NFS gives no exclusive lock on others (flock(2))."""

from __future__ import annotations

import errno
import fcntl
import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedcore.errors import StorageError
from fedcore.numbers import printable
from fedcore.updates.atomic import make_parents, refused

#: what remains to be done where there are no locks
_NO_LOCKS = "; choose a place on a file system that has locks"


class FileLock:
    """A file that one of these holds at a time: until `close`, until nobody has the object, or its process ends.

    path  the file that is locked
    mode  permissions of a file that is made, less the umask; None: it has to be there
    busy  the StorageError where another holds it; None waits for the other

    Forked children do not hold it, nor what is pickled or deeply copied: a finalizer is not taken along. Raises
    StorageError naming the file.
    """

    def __init__(self, path: Path, *, mode: int | None = None, busy: str | None = None):
        try:
            descriptor = os.open(path, os.O_RDWR | (0 if mode is None else os.O_CREAT), mode or 0)
        except OSError as error:
            raise refused(path, error) from error
        self._close = weakref.finalize(self, os.close, descriptor)
        _open.add(self)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if busy is None else fcntl.LOCK_NB))
        except BlockingIOError:
            self.close()
            assert busy is not None
            raise StorageError(busy, errno=errno.EAGAIN, filename=path) from None
        except OSError as error:
            self.close()
            raise StorageError(
                f"{printable(path)}: cannot be locked ({error.strerror}){_NO_LOCKS}", errno=error.errno, filename=path
            ) from error
        except BaseException:
            self.close()
            raise

    @property
    def held(self) -> bool:
        """Whether nobody else can have it."""
        return self._close.alive

    def close(self) -> None:
        """Let others have it; once is enough."""
        self._close()


@contextmanager
def locked_beside(path: Path, mode: int = 0o666) -> Iterator[None]:
    """Hold `<path>.lock` against others who ask for it; its folder is made if need be, and the file stays.

    mode: permissions of the lock file where it is made, less the umask. Raises StorageError naming it.
    """
    beside = path.with_name(path.name + ".lock")
    try:
        make_parents(path)
    except OSError as error:
        raise refused(beside, error) from error
    lock = FileLock(beside, mode=mode)
    try:
        yield
    finally:
        lock.close()


#: locks of this process, held or waited for
_open: weakref.WeakSet[FileLock] = weakref.WeakSet()


def _forget() -> None:
    """A child shares its parent's locks for as long as it has their descriptors open, and writes nothing under them."""
    for lock in list(_open):
        lock.close()


os.register_at_fork(after_in_child=_forget)
