"""What every table of the configuration file is: typed keys, any other refused."""

from __future__ import annotations

import typing
from collections.abc import Callable

from pydantic import BaseModel, ConfigDict, Field, Strict

from fedcore.errors import ConfigError

Name = typing.Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
PositiveInt = typing.Annotated[int, Field(ge=1)]
PositiveFloat = typing.Annotated[float, Field(gt=0, allow_inf_nan=False)]


#: on a field that is a tuple, since TOML knows lists alone; what is in it is strict
FromList = Strict(False)


class Section(BaseModel):
    """A table of the file: its keys are the fields, any other key is an error, and so is a value of another type.

    A whole number is a number where one is expected; `true` is no 1 and "2" no 2.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def as_fault(check: Callable[[], object]) -> None:
    """Call `check`; what it refuses becomes a fault of the file, as pydantic collects them."""
    try:
        check()
    except ConfigError as error:
        raise ValueError(str(error)) from None
