"""What a report takes from a run's files, asked of them whole before anything is shown: a line may be valid JSON only.

Keys that no report reads are not asked for, whatever they hold.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from fedcore.errors import FormatError
from fedcore.federation.folder import RunFolder
from fedcore.federation.journal import LineLog
from fedcore.federation.simulation import BASE, LOCAL_ONLY
from fedcore.numbers import shown

_REMEDY = "the file was damaged, restore it from a copy"


def _time(text: str) -> str:
    try:
        datetime.fromisoformat(text)
    except ValueError:
        raise ValueError("a time such as 2026-01-31T12:00:00+00:00") from None
    return text


def _nonzero(number: float) -> float:
    if not number:
        raise ValueError("a number other than 0")
    return number


Count = Annotated[int, Field(ge=0, le=2**63 - 1)]
#: a plot has a tick for each
Number = Annotated[int, Field(ge=0, le=10**6)]


class _Part(BaseModel):
    """Keys that are read together."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class _Client(_Part):
    id: str
    examples: Count
    labels: dict[str, Count]


class Facts(_Part):
    """run.json."""

    started: Annotated[str, AfterValidator(_time)]
    base: str
    base_name: str
    clients: list[_Client]
    population: Count
    held_out: Count
    questions: Count
    machine: dict[str, Any]
    versions: dict[str, Any]


class Line(_Part):
    """Of metrics.jsonl."""

    arm: str
    round: Number
    loss: float | None
    perplexity: float | None
    accuracy: float | None
    bytes_up: Count
    bytes_down: Count
    seconds: dict[str, float]
    client: str = ""
    failed: bool = False
    epsilon: float | None = None


class _Privacy(_Part):
    void: str = ""
    charge: Count | None = None


class _Secure(_Part):
    void: str = ""
    sums: list[str] = []
    liars: dict[str, str] = {}
    warnings: list[str] = []


class Entry(_Part):
    """Of ledger.jsonl, whatever came of the round."""

    arm: str
    round: Number
    stopped: str = ""
    privacy: _Privacy = _Privacy()
    secure: _Secure = _Secure()


class _Output(_Part):
    rule: str
    parameters: dict[str, Any]
    output: str
    space: str = ""
    excluded: dict[str, str] = {}
    not_counted: dict[str, str] = {}


class _Norms(_Part):
    inputs: dict[str, str]
    change_norms: dict[str, float]
    poisoned: list[str]


class _Shares(_Part):
    coefficients: dict[str, float]
    divisor: Annotated[float, AfterValidator(_nonzero)] | None

    @model_validator(mode="after")
    def _divided(self) -> _Shares:
        if self.coefficients and self.divisor is None:  # an order statistic has neither
            raise ValueError("a divisor beside coefficients")
        return self


class _Errors(_Part):
    both: float = Field(alias="a and b")
    b: float


class _Release(_Part):
    charge: Count
    epsilon: float
    clip: float | Annotated[dict[str, float], Field(min_length=1)]
    noise_of_mean: float
    inputs: str
    output: str
    error_of_delta: _Errors | None = None


class _Masks(_Part):
    adversary: str
    clients: list[int]
    corrupt: list[int]
    neighbours: list[int]
    threshold: list[int]
    modulus_bits: int
    min_honest: int
    stream: str
    sums: list[str]
    bytes_up: Count
    bytes_down: Count
    survivors: list[list[str]] | None = None
    groups: int | None = None

    @model_validator(mode="after")
    def _of_sizes(self) -> _Masks:
        if len({len(each) for each in (self.clients, self.corrupt, self.neighbours, self.threshold)}) > 1:
            raise ValueError("clients, corrupt, neighbours and threshold with a number for each size of group")
        return self


class _Groups(_Part):
    void_groups: Annotated[list[str], Field(min_length=1)]
    groups: int | None = None
    void: str | None = None

    @model_validator(mode="after")
    def _counted(self) -> _Groups:
        if self.void is None and self.groups is None:
            raise ValueError("groups beside void_groups")
        return self


#: what else an entry has: (where, the key that says so, what is read with it)
_BESIDE: tuple[tuple[str, str, type[_Part]], ...] = (
    ("", "output", _Output),
    ("", "change_norms", _Norms),
    ("", "coefficients", _Shares),
    ("privacy", "output", _Release),
    ("secure", "adversary", _Masks),
    ("secure", "void_groups", _Groups),
)


def check_intact(folder: RunFolder) -> list[str]:
    """What to say of logs that lack a torn last line, in sentences.

    Raises FormatError naming file, line and key where the report would miss something, where a round stands twice, or
    where the ledger lacks one that metrics.jsonl has.
    """
    _check(Facts, folder.facts, str(folder.path / "run.json"))
    metrics = _rounds(folder.metrics, Line)
    # a round is in the ledger before it has metrics: read in this order, also of a run that is going on
    folder.ledger.read_on()
    ledger = _rounds(folder.ledger, Entry, _BESIDE)
    for (arm, number, _), line in metrics.items():
        if arm not in (BASE, LOCAL_ONLY) and (arm, number, "") not in ledger:
            raise FormatError(
                f"{folder.ledger.path}: has no line for {shown(arm)} round {number}, as line {line} of "
                f"{folder.metrics.path.name} has; {_REMEDY}"
            )
    return [
        f"{log.path}: its last line was torn and is left out; unless the run is going on, resume it or restore the "
        "file from a copy"
        for log in (folder.metrics, folder.ledger)
        if log.dropped
    ]


def _rounds(
    log: LineLog, model: type[_Part], beside: Sequence[tuple[str, str, type[_Part]]] = ()
) -> dict[tuple[str, int, str], int]:
    """(arm, round, client or "") -> the line that it stands in, counted from 1, of lines that are all checked."""
    found: dict[tuple[str, int, str], int] = {}
    for index, entry in enumerate(log, 1):
        where = f"{log.path}:{index}"
        _check(model, entry, where)
        for place, key, other in beside:
            part = entry.get(place, {}) if place else entry
            if key in part:
                _check(other, part, where, place)
        arm, number, client = entry["arm"], entry["round"], entry.get("client", "")
        if (first := found.setdefault((arm, number, client), index)) != index:
            of = f" of {shown(client)}" if client else ""
            raise FormatError(f"{where}: {shown(arm)} round {number}{of} stands in line {first} already; {_REMEDY}")
    return found


def _check(model: type[_Part], value: Any, where: str, place: str = "") -> None:
    """Raise FormatError naming the first key that is not as `model` has it; `place`: the key that holds `value`."""
    try:
        model.model_validate(value)
    except ValidationError as error:
        fault = error.errors()[0]
    else:
        return
    key = shown(".".join(str(part) for part in (place, *fault["loc"]) if part != "") or "the line")
    message = re.sub(r"^(Value error, |Input should be |.* should have )", "", fault["msg"])
    message = re.sub(r"dictionary( or instance of \w+)?", "object", message)
    message = re.sub(r"^(greater|less) than", r"a number \1 than", message)
    said = (
        f"{key} is missing" if fault["type"] == "missing" else f"{key} is {shown(fault['input'])}, expected {message}"
    )
    raise FormatError(f"{where}: {said}; {_REMEDY}")
