"""Every error fedcore raises on purpose. Each is also the builtin error it is, so callers need not import these.

A message is one line: the thing, what was got, what was expected, what to do.
"""

from __future__ import annotations

import errno as codes
import os
from collections.abc import Sequence
from typing import Any, ClassVar, TypeVar

_Error = TypeVar("_Error", bound="FedcoreError")


class FedcoreError(Exception):
    """Base of all errors that fedcore raises on purpose."""

    #: what its builtin knows beside the message and keeps out of `__dict__`
    _known: ClassVar[tuple[str, ...]] = ()

    def __str__(self) -> str:
        """The message: an OSError that knows its file would make another one."""
        return Exception.__str__(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self.args, {**self.__dict__, **{name: getattr(self, name) for name in self._known}}

    def with_message(self: _Error, message: str) -> _Error:
        """The same error, with all that it knows, under another message: for who can say more of where it happened."""
        kind = type(self)
        # not by its constructor, which may take something else than a message, nor by what a lookup finds, which may be
        # that of a builtin beside FedcoreError
        made = (OSError if isinstance(self, OSError) else Exception).__new__(kind)
        made.args = (message,)
        made.__dict__.update(self.__dict__)
        for name in self._known:
            setattr(made, name, getattr(self, name))
        return made


class ShapeError(FedcoreError, ValueError):
    """Lengths, shapes or counts do not fit together."""


class DTypeError(FedcoreError, TypeError):
    """A dtype that the operation does not take."""


class WeightError(FedcoreError, ValueError):
    """A weight, count or divisor that is not usable: not finite, negative, all zero, or a count above 2**24."""


class NonFiniteError(FedcoreError, ValueError):
    """NaN or Inf in the input, or LoRA factors that cancel so far that their product is not defined in fp64.

    `row` and `column` say where (0-based; -1: not known), `read` which rows were read in the pass that found it
    (empty: not known).
    """

    def __init__(self, message: str, row: int = -1, column: int = -1, read: Sequence[int] = ()):
        super().__init__(message)
        self.row = row
        self.column = column
        self.read = tuple(read)


class RangeError(FedcoreError, OverflowError):
    """A finite result that the output dtype cannot hold, or a counter or number of threads outside its range."""


class BackendError(FedcoreError, RuntimeError):
    """A backend that was asked for by name and is not there or cannot do this."""


class WorkSpaceError(FedcoreError, MemoryError):
    """No memory for what a kernel needs beside its rows and its result."""


class RuleError(FedcoreError, ValueError):
    """A rule that cannot run on this cohort, such as f too large for n."""


class LayoutError(FedcoreError, ValueError):
    """Updates whose tensors (names, shapes, dtypes, ranks, scales, base) do not agree."""


class FormatError(FedcoreError, ValueError):
    """A file or message that is truncated, damaged or of another kind than expected."""


class SystemRefusal(FedcoreError, OSError):
    """Base of what is wrong with files.

    `errno` is the number that the operating system gave and `filename` the file or directory that this is about, each
    None where there is none. `strerror` is None: the message says it all.
    """

    _known = ("errno", "filename")
    #: what `errno` is where nobody says
    _number: ClassVar[int | None] = None

    def __init__(self, *message: Any, errno: int | None = None, filename: str | os.PathLike[str] | None = None):
        super().__init__(*message)
        self.errno = self._number if errno is None else errno
        self.filename = None if filename is None else os.fspath(filename)


class MissingError(SystemRefusal, FileNotFoundError):
    """A file or directory that should be there."""

    _number = codes.ENOENT


class ExistsError(SystemRefusal, FileExistsError):
    """An output that already exists and would be overwritten."""

    _number = codes.EEXIST


class StorageError(SystemRefusal):
    """The operating system refused a write (a full disk, a permission); nothing half-written is left, or it says so."""


class BudgetError(FedcoreError, ValueError):
    """A memory budget that is no size, or that is too small for the cohort; the message says the least that works."""


class ConfigError(FedcoreError, ValueError):
    """A configuration with an unknown key or a value out of range."""


class DependencyError(FedcoreError, ImportError):
    """An optional package that is not installed; the message names the extra, and `name` is the package's."""

    _known = ("name",)


class TrainingError(FedcoreError, RuntimeError):
    """Training that cannot go on, or whose update would be silently wrong.

    A frozen base changed, a gradient never arrived, a loss is NaN, memory ran out.
    """


class PrivacyError(FedcoreError, ValueError):
    """A privacy parameter out of range, or a combination that would not be private; the message says why."""


class PrivacyBudgetError(PrivacyError):
    """A release that would pass the privacy budget; nothing was charged and nothing may be released."""


class SecureSumError(FedcoreError):
    """Base of what ends or refuses a step of a secure sum; the message names the stage and the member, no secret."""


class Void(SecureSumError, RuntimeError):
    """A round of a secure sum that cannot give its sum, or a member that cannot go on.

    Nothing beyond a sum that the guarantee allows was learned: a sum that leaves its bound is void after it is plain.

    `suspects`: identifiers of members to be left out of the next round: as long as no more than `corrupt` members lie,
    each of them did, whoever changed messages on their way. None where that is certain of nobody.
    """

    def __init__(self, message: str, suspects: Sequence[str | int] = ()):
        super().__init__(message)
        self.suspects = list(suspects)


class Forged(SecureSumError, ValueError):
    """A message that its member did not make, or that asks for what the protocol never gives."""


class Replayed(SecureSumError, ValueError):
    """A message that came before, too late, out of order or from another round, or a state that may be an old one."""
