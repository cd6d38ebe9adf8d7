"""A file that is read in pieces, and noticed when it is no longer what it was.

A memory map cannot promise that: where a mapped file shrinks, the process dies of SIGBUS at the next touch, and where
one is rewritten in place, half of a result is of the old bytes and half of the new. Here every piece is read with
preadv, which returns short instead, and after it the file must still have the size, time and inode that it had when its
header was read.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from fedcore.errors import FedcoreError, FormatError, MissingError, StorageError
from fedcore.numbers import printable


@dataclass(frozen=True)
class File:
    """A regular file as it was at one moment.

    path      where it was found
    size      its bytes
    identity  device, inode, size and time of the last modification in nanoseconds: another one is another file
    """

    path: str
    size: int
    identity: tuple[int, int, int, int]

    @classmethod
    def at(cls, path: str | os.PathLike[str]) -> File:
        """The file at `path` now. Raises MissingError, StorageError, or FormatError where it is no regular file."""
        try:
            found = os.stat(path)
        except OSError as error:
            raise _refused(os.fspath(path), error) from None
        # a FIFO would block the open, so the kind is looked at before
        if not stat.S_ISREG(found.st_mode):
            raise FormatError(f"{os.fspath(path)}: is not a regular file, expected one; write the file again")
        return cls(os.path.abspath(path), found.st_size, _identity(found))

    def open(self) -> int:
        """A descriptor for reading. Raises MissingError, StorageError, or FormatError where the file has changed."""
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise _refused(self.path, error) from None
        try:
            self.check(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    @contextmanager
    def opened(self) -> Iterator[int]:
        """`open` for the length of a `with`."""
        descriptor = self.open()
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def check(self, descriptor: int) -> None:
        """Raise FormatError unless what is open is still the file that it was."""
        now = _identity(os.fstat(descriptor))
        if now == self.identity:
            return
        if now[:2] != self.identity[:2]:
            what = "was replaced"
        elif now[2] != self.identity[2]:
            what = f"now has {now[2]} bytes, expected {self.size}: it changed"
        else:
            what = "was written to"
        raise FormatError(f"{self.path}: {what} after its header was read; keep files as they are while they are read")

    def read_into(self, descriptor: int, view: memoryview, offset: int) -> None:
        """Fill `view` (bytes) from byte `offset` on. Raises FormatError where the file ends before, or StorageError."""
        done, wanted = 0, len(view)
        while done < wanted:
            try:
                count = os.preadv(descriptor, [view[done:]], offset + done)
            except OSError as error:
                raise _refused(self.path, error) from None
            if not count:
                end = min(os.fstat(descriptor).st_size, offset + done)
                raise FormatError(
                    f"{self.path}: ends at byte {end} of {self.size}: it shrank while it was read; fetch it "
                    "again and keep files as they are while they are read"
                )
            done += count

    def read(self, start: int, size: int) -> np.ndarray:
        """Bytes start to start + size as (size,) uint8, a copy. Raises as `open` and `read_into` do."""
        array = np.empty(size, np.uint8)
        with self.opened() as descriptor:
            self.read_into(descriptor, array.data, start)
            self.check(descriptor)
        return array


def read_regular(path: str | os.PathLike[str], most: int, expected: str) -> bytes:
    """A regular file of at most `most` bytes, whole.

    Raises FormatError, which says what is `expected`, for another kind of file and for a longer one, of which no more
    is read, and OSError as `open` does.
    """
    _check_regular(os.stat(path), path, expected)  # a FIFO would block the open, and a device may act on it
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        found = os.fstat(file.fileno())
        _check_regular(found, path, expected)
        data = file.read(most + 1) if found.st_size <= most else b""
    if (size := max(found.st_size, len(data))) > most:
        raise FormatError(f"{printable(path)}: has {size} bytes, expected {expected}")
    return data


def _check_regular(found: os.stat_result, path: str | os.PathLike[str], expected: str) -> None:
    # of a directory the system says so when it is opened
    if not stat.S_ISREG(found.st_mode) and not stat.S_ISDIR(found.st_mode):
        raise FormatError(f"{printable(path)}: is not a regular file, expected {expected}")


def _identity(found: os.stat_result) -> tuple[int, int, int, int]:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _refused(path: str, error: OSError) -> FedcoreError:
    """The one line for a file that the system does not open or read."""
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return MissingError(
            f"{path}: no such file; check where the link leads and that nothing removes files while they are read",
            errno=error.errno,
            filename=path,
        )
    many = error.errno in (errno.EMFILE, errno.ENFILE)
    remedy = "raise `ulimit -n`" if many else "check its permissions and its disk"
    return StorageError(f"{path}: cannot be read ({error.strerror}); {remedy}", errno=error.errno, filename=path)
