"""Files and directories written whole or not at all: beside, flushed to disk, then renamed.

What has its final name is complete and survives a crash; what a killed process leaves is called `.<name>.<hex>.part`.
Files that only grow do so in place (`append`): a crash can leave half of what was last added, for the reader to drop.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from fedcore.errors import ExistsError, FedcoreError, StorageError
from fedcore.numbers import printable

#: how the line of a write that was refused ends; a run that goes on in the same place says something else there
REMEDY = "; nothing half-written was left; free space or choose another place"
#: the same where what was written could not be taken back
_LEFT = "; what was half-written may be left; free space or choose another place"


#: the name of what a killed process was writing
_LEFT_NAME = re.compile(r"\..+\.[0-9a-f]{16}\.part", re.DOTALL)


class Unwritten(StorageError):
    """What was to be added to a file could not be written, and nothing of it is in the file."""


class Unflushed(StorageError):
    """What was to be written is there, whole and under its name, but a power failure may take it back."""


def write_atomically(path: Path, data: bytes | Iterable[bytes | memoryview], *, mode: int = 0o666) -> None:
    """Write a file, all at once or part by part, replacing an earlier one, whose permissions it keeps, and whose owner
    and group, where this process may give them.

    mode  permissions where there is no earlier one, less the umask

    Raises Unflushed where it has replaced the earlier one and may not survive a power failure, else StorageError naming
    it: what was written, half or whole, is removed, so that a file is there only after success where none was before.
    """
    with _all_or_nothing(path) as beside:
        with open(beside, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            if path.exists():
                earlier = path.stat()
                with suppress(PermissionError):
                    os.fchown(file.fileno(), earlier.st_uid, earlier.st_gid)
                os.fchmod(file.fileno(), stat.S_IMODE(earlier.st_mode))
            file.writelines([data] if isinstance(data, bytes) else data)
            file.flush()
            os.fsync(file.fileno())
        replaces = os.path.lexists(path)
        os.replace(beside, path)
        with _taken_back(path, None if replaces else lambda: os.replace(path, beside)):
            sync(path.parent)


def write_new(path: Path, secret: bytes) -> None:
    """Write a file for its owner alone, whole or not at all, where there is none.

    A crash between its two last steps leaves a second name of the whole file, `.<name>.<hex>.part`. Raises ExistsError
    where there is a file, StorageError, after which there is none, and Unflushed where it could not be taken back.
    """
    with _all_or_nothing(path) as beside:
        with open(beside, "xb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            file.write(secret)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(beside, path)  # unlike a rename it replaces nothing
        except FileExistsError:
            raise ExistsError(
                f"{printable(path)}: exists; a key that is in use is not overwritten, give another name", filename=path
            ) from None
        with _taken_back(path, path.unlink):
            beside.unlink()
            sync(path.parent)


def append(path: Path, data: bytes, *, keep: int | None = None, mode: int = 0o666) -> None:
    """Add to the end of a file, made where there is none; when this returns it is on disk, and so is the file's name.

    keep  bytes of the file that stay, where a crash left some after them; None: all
    mode  permissions of a file that is made, less the umask

    Raises Unwritten where nothing of `data` is in the file, StorageError where some of it may be. After any other
    exception, such as an interruption, the file is cut back as well.
    """
    left = False
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, mode)
        try:
            size = os.fstat(descriptor).st_size if keep is None else keep
            left = True
            try:
                if keep is not None:
                    os.ftruncate(descriptor, size)
                while data:
                    data = data[os.write(descriptor, data) :]
                os.fsync(descriptor)
                sync(path.parent)
            except BaseException:
                with suppress(OSError):  # the first one says why
                    os.ftruncate(descriptor, size)
                    os.fsync(descriptor)
                    left = False
                raise
        finally:
            os.close(descriptor)
    except OSError as error:
        if left:
            raise refused(path, error, _LEFT) from error
        raise Unwritten(str(refused(path, error)), errno=error.errno, filename=path) from error


@contextmanager
def new_directory(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """A directory to fill, which becomes `path` at the end of the `with`; after an exception nothing of it is left.

    replace: an earlier directory at `path` gives way at the last moment; it stays if that fails.

    Raises StorageError naming `path`, also for an OSError inside the `with`, Unflushed where it could not be taken
    back, and ExistsError where another process has made one at `path` meanwhile.
    """
    old = None
    with _all_or_nothing(path) as beside:
        beside.mkdir()
        yield beside
        for inner in sorted(beside.rglob("*"), reverse=True):
            sync(inner)
        sync(beside)
        if replace and path.exists():
            old = _beside(path)
            os.rename(path, old)

        def undo() -> None:
            os.rename(path, beside)
            if old is not None:
                os.rename(old, path)

        try:
            _rename_new(beside, path)
        except BaseException:
            if old is not None:
                os.rename(old, path)
            raise
        with _taken_back(path, undo):
            sync(path.parent)
    if old is not None:
        _remove(old)


def write_together(writers: Mapping[Path, Callable[[Path], object]]) -> None:
    """Make several new directories, all of them or none: each is written beside, and renamed when all are there.

    path -> what makes the directory that it is given, whole, as `Update.to_peft` does. Raises StorageError naming the
    path that the system refused, ExistsError where another process has made one of them meanwhile, and what the writers
    raise; nothing of any of them is left then, or the error says so.
    """
    beside, made = {path: _beside(path) for path in writers}, []
    try:
        for path, write in writers.items():
            with _refusing(path):
                make_parents(path)
                write(beside[path])
        for path in writers:
            with _refusing(path):
                _rename_new(beside[path], path)
                made.append(path)
                sync(path.parent)
    except BaseException as error:
        _remove(*(places := (*beside.values(), *made)))
        if isinstance(error, StorageError) and any(os.path.lexists(path) for path in places):
            raise error.with_message(str(error).removesuffix(REMEDY) + _LEFT) from error.__cause__
        raise


def _rename_new(beside: Path, path: Path) -> None:
    """Rename a directory to where there was none. Raises ExistsError where there is something now."""
    try:
        os.rename(beside, path)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise ExistsError(
                f"{printable(path)}: exists, another process made it meanwhile; choose another name or remove it",
                filename=path,
            ) from None
        raise


def _remove(*directories: Path) -> None:
    """Remove what the system lets go, to the end also where it is interrupted, which is raised then."""
    interrupted = None
    for path in directories:
        while True:
            try:
                shutil.rmtree(path, ignore_errors=True)
                break
            except KeyboardInterrupt as error:
                interrupted = error
    if interrupted is not None:
        raise interrupted


@contextmanager
def _refusing(path: Path) -> Iterator[None]:
    """Turn what the system refuses into the StorageError of `path`."""
    try:
        yield
    except OSError as error:
        cause = error.__cause__ if isinstance(error, StorageError) else error
        if isinstance(cause, FedcoreError) or not isinstance(cause, OSError):
            raise
        raise refused(path, cause) from cause


@contextmanager
def _all_or_nothing(path: Path) -> Iterator[Path]:
    """The name to write under before the rename to `path`, whose parents are made."""
    beside = _beside(path)
    try:
        make_parents(path)
        yield beside
    except BaseException as error:
        if beside.is_dir():
            _remove(beside)
        else:
            with suppress(OSError):  # the first one says why
                beside.unlink()
        if isinstance(error, OSError) and not isinstance(error, FedcoreError):
            raise refused(path, error, _LEFT if os.path.lexists(beside) else REMEDY) from error
        raise


@contextmanager
def _taken_back(path: Path, undo: Callable[[], object] | None) -> Iterator[None]:
    """Undo the new name `path` after an exception within, where it is made durable.

    undo: None for a name that stays. Raises Unflushed where the system refuses and it stays.
    """
    try:
        yield
    except BaseException as error:
        stays = undo is None
        if undo is not None:
            try:
                undo()
            except OSError:
                stays = True
        if stays and isinstance(error, OSError):
            raise Unflushed(
                f"{printable(path)}: is written, but its folder cannot be flushed to disk ({error.strerror or error}), "
                "so a power failure may take it back; put that right, then run `sync`",
                errno=error.errno,
                filename=path,
            ) from error
        raise


def make_parents(path: Path) -> None:
    """Make the folders that `path` lies in, each durable in the one that it lies in."""
    made = [folder for folder in path.parents if not folder.is_dir()]
    path.parent.mkdir(parents=True, exist_ok=True)
    for folder in made:
        sync(folder.parent)


def is_left(name: str) -> bool:
    """Whether a file or directory of this name is what a killed process was writing."""
    return _LEFT_NAME.fullmatch(name) is not None


def remove_left(paths: Iterable[Path]) -> None:
    """Remove what processes were writing, files and whole directories, where it is there. Raises StorageError."""
    for path in paths:
        try:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        except OSError as error:
            reason = error.strerror or error
            raise StorageError(
                f"{printable(path)}: cannot be removed ({reason}); remove it, a killed process left it",
                errno=error.errno,
                filename=path,
            ) from error


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name[:64]}.{secrets.token_hex(8)}.part")


def sync(path: Path) -> None:
    """Flush a file's content, or a directory's entries, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def refused(path: Path, error: OSError, remedy: str = REMEDY) -> StorageError:
    """The one line for a write that the system refused."""
    return StorageError(
        f"{printable(path)}: cannot be written ({error.strerror or error}){remedy}", errno=error.errno, filename=path
    )
