"""The table of secure aggregation in the configuration file."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from fedcore.federation.section import PositiveFloat, PositiveInt, Section


class Secure(Section):
    """[secure]: clients mask what they send; the server learns a sum alone. `secure = true` takes the defaults."""

    adversary: Literal["semi_honest", "malicious"] = Field(
        default="malicious", description="a server that follows the protocol and looks, or one that may do anything"
    )
    corrupt: float = Field(
        default=0.1,
        ge=0,
        lt=1,
        description="part of the clients that may be with the server, rounded down: 0.1 of eight clients is nobody",
    )
    dropout: float = Field(
        default=0.25,
        ge=0,
        lt=1,
        description="part of the clients that may go away in a round, rounded down: 0.25 of three clients is nobody",
    )
    stream: Literal["chacha20", "aes256ctr"] = Field(default="chacha20", description="the cipher that masks come from")
    bits: int = Field(default=20, ge=2, le=48, description="bits of each number of a change, before they are summed")
    largest: PositiveFloat = Field(
        default=1.0, description="most that a number of a change may be; what is beyond it is clamped"
    )
    largest_weight: PositiveInt | None = Field(
        default=None,
        description='most examples that a client may count for, known to all; with weights = "counts" those of the '
        "largest client if absent",
    )
    groups: PositiveInt | None = Field(
        default=None,
        description="sums over so many random groups, drawn from run.seed, for a robust rule to choose from; a client "
        "hides in its group",
    )
    policy: str | None = Field(
        default=None,
        description="file of the conditions under which a client takes part, its policy.toml; that of [secure] holds "
        "for every arm without one of its own",
    )

    @property
    def bound(self) -> int:
        """Most that an integer of a change may be in absolute value."""
        return (1 << (self.bits - 1)) - 1


def switched(value: Any) -> Any:
    """`true` is a table of defaults."""
    return {} if value is True else value


def given(value: Any) -> Any:
    """The same, and `false` is no table."""
    return None if value is False else switched(value)
