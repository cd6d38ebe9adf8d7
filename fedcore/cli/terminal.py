"""What commands show: results on stdout, live progress on stderr."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import time
from collections.abc import Iterator
from textwrap import shorten
from typing import TYPE_CHECKING, Any, TextIO, cast

from fedcore.errors import FedcoreError, StorageError

if TYPE_CHECKING:
    from rich.progress import TaskID

#: seconds that work may take before it is worth a progress bar
LATE = 2.0


class Failed(Exception):
    """An error in mid-run, with what was kept and how to go on once its cause is gone."""

    def __init__(self, error: Exception, hint: str):
        super().__init__(str(error))
        self.hint = hint


def print_json(result: Any) -> None:
    """The one JSON object of --json, in ASCII: whatever the encoding of stdout lacks, it stays JSON."""
    sys.stdout.write(json.dumps(result, indent=2) + "\n")


def cause_of(error: OSError | MemoryError) -> str:
    """What the system refused, in a line of its own words."""
    if isinstance(error, MemoryError):
        said = shorten(str(error), 120, placeholder=" …")
        return "memory ran out" + (f" ({said})" if said else "")
    return f"{error.filename or 'system'}: {error.strerror or error}"


@contextlib.contextmanager
def showing(done: str = "") -> Iterator[None]:
    """Print a result within; `done` says what is there even if nobody could be told, such as 'out is complete'.

    Raises StorageError where stdout takes no more, and BrokenPipeError as ever where its reader went away.
    """
    try:
        yield
        sys.stdout.flush()
    except OSError as error:
        if isinstance(error, (BrokenPipeError, FedcoreError)) or error.filename is not None:
            raise
        reason = f"standard output cannot be written ({error.strerror or error})"
        raise StorageError(f"{reason}; {done or 'free space or send it to another place'}") from error


def inert(text: str) -> str:
    """A text with escapes for what would act on a terminal, as a name of a file may hold it."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


class _Lossy:
    """A stream that drops what it cannot write."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def lossy_stderr() -> Iterator[None]:
    """Let no work end because a line about it cannot be shown: a full disk under a log, a terminal that is gone."""
    stream = sys.stderr
    try:
        with contextlib.redirect_stderr(cast(TextIO, _Lossy(stream))):
            yield
    finally:
        try:
            if not getattr(stream, "closed", False):  # an embedding process may have put less than a file here
                stream.flush()
        except OSError:
            # what is held back would be tried once more at the exit, which takes a failure for its code
            with contextlib.suppress(OSError), open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), stream.fileno())


@contextlib.contextmanager
def all_on_stdout() -> Iterator[None]:
    """Escape on stdout what its encoding lacks: no reason to hide a result."""
    stream = sys.stdout
    if not isinstance(stream, io.TextIOWrapper) or stream.closed:
        yield
        return
    before = stream.errors
    stream.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        with contextlib.suppress(OSError, ValueError):  # closed meanwhile, or full
            stream.reconfigure(errors=before)


@contextlib.contextmanager
def only_results_on_stdout() -> Iterator[None]:
    """Send to stderr what libraries print meanwhile, so that stdout holds the result alone."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


class LiveProgress:
    """A progress bar for each phase, on stderr; call it as fedcore calls any progress function.

    Use as a context manager. On a stderr that is no terminal each finished phase is one line instead.
    """

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        self._console = Console(stderr=True)
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("[dim]{task.fields[said]}"),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> LiveProgress:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def __call__(self, phase: str, done: int, total: int, **metrics: Any) -> None:
        """Show that `done` of `total` parts of a phase are there, and its latest figures."""
        said = "  ".join(f"{name} {_figure(value)}" for name, value in metrics.items())
        if phase not in self._tasks:
            self._tasks[phase] = self._bars.add_task(phase, total=total, said=said)
        self._bars.update(self._tasks[phase], completed=done, total=total)
        if said:
            self._bars.update(self._tasks[phase], said=said)
        if not self._console.is_terminal and done >= total:
            self._console.print(f"{phase}: done{'  ' + said if said else ''}", highlight=False)


class LateProgress:
    """`LiveProgress` that shows nothing of work that is done within LATE seconds."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._live: LiveProgress | None = None

    def __enter__(self) -> LateProgress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.__exit__()

    def __call__(self, phase: str, done: int, total: int, **metrics: Any) -> None:
        """As `LiveProgress`; a phase that began before the bar did is shown from where it is."""
        if self._live is None:
            if time.perf_counter() - self._start < LATE:
                return
            self._live = LiveProgress().__enter__()
        self._live(phase, done, total, **metrics)


def _figure(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)
